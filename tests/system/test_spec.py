"""The constructor is the configuration: graphs of calls, written, built, compared, and refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from morphogen import Asset, Net, Remembers, UserError
from morphogen.optim import AdamW, Cosine
from morphogen.spec import adopt_assets, arguments, build, differences, modules_of, remembered, spec

HERE = [sys.modules[__name__]]


class Box(Remembers):
    def __init__(self, content=None, *rest, size: int = 3, **more):
        self.content, self.rest, self.size, self.more = content, rest, size, more


class Layer(Net):
    def __init__(self, inner: nn.Module | None = None, width: int = 4) -> None:
        super().__init__()
        self.inner, self.linear = inner, nn.Linear(width, width)


def helper() -> int:
    return 5


def round_trip(obj):
    graph = json.loads(json.dumps(spec(obj)))
    again = build(graph, modules=HERE)
    assert spec(again) == graph
    return again


def test_defaults_are_written_down():
    assert spec(AdamW())["args"]["betas"] == {"tuple": [0.9, 0.999]}
    assert arguments(Box(1, 2, 3, a=4)) == {"content": 1, "rest": (2, 3), "size": 3, "more": {"a": 4}}


class Bare(Remembers):
    """Has no constructor, and may get one in a later version."""


class BareNet(Net):
    """The same of a net, whose base takes anything."""


@pytest.mark.parametrize("make", [Bare, BareNet, Box])
def test_what_was_not_given_to_the_rest_is_not_written_down(make):
    graph = spec(make())
    assert not {"args", "kwargs", "rest", "more"} & set(graph["args"])
    assert spec(round_trip(make())) == graph


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda v: (
        st.lists(v, max_size=3)
        | st.lists(v, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), v, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_any_plain_value_round_trips(value):
    assert round_trip(Box(value)).content == value


def test_special_values_round_trip(tmp_path):
    box = round_trip(
        Box(
            [math.inf, Path("a/b"), torch.float16, torch.device("cpu"), helper, Layer],
            1,
            more=AdamW(schedule=Cosine(3)),
        )
    )
    assert box.content == [math.inf, Path("a/b"), torch.float16, torch.device("cpu"), helper, Layer]
    assert box.more["more"].schedule.warmup == 3
    assert math.isnan(round_trip(Box(math.nan)).content)


def test_a_shared_object_stays_shared():
    net = Layer()
    again = round_trip(Box([net, {"a": net}], Layer(net)))
    assert again.content[0] is again.content[1]["a"] is again.rest[0].inner


def test_weights_are_a_function_of_spec_and_seed():
    graph = spec(Layer(Layer()))
    state = torch.get_rng_state()
    a, b, c = (build(graph, modules=HERE, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["linear.weight"], c["linear.weight"])


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (lambda x: x, "Box.content is a lambda"),
        (torch.ones(3), r"save it to a file and pass Asset\(path\)"),
        (nn.Linear(2, 2), "derive its class from morphogen.Net"),
        ({1: 2}, "keys that are not strings"),
        (object(), "cannot write down"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_sentence(value, sentence):
    with pytest.raises(UserError, match=sentence):
        spec(Box(value))


def test_a_local_class_is_refused():
    class Local(Remembers):
        pass

    with pytest.raises(UserError, match="defined inside a function"):
        spec(Local())


@pytest.mark.parametrize(
    "name",
    [
        "os:system", "subprocess:Popen", "builtins:eval", "morphogen.spec:importlib", "morphogen.spec:Path",
        "morphogen.checkpoint:os", "morphogen.experiment:json.loads", "morphogen.nothing:X", "morphogen.optim:Nothing",
        "morphogen.optim:AdamW.make", "nowhere:Thing", "tests.system.test_spec:pytest", "", ":", "morphogen:",
    ],
)  # fmt: skip
@pytest.mark.parametrize("node", ["class", "name"])
def test_a_file_cannot_choose_what_is_imported_or_called(name, node):
    if node == "name" and name.endswith("AdamW.make"):
        pytest.skip("a function of this package by its name is allowed; nothing calls it")
    with pytest.raises(UserError):
        build({"class": name, "args": {}} if node == "class" else {"name": name}, modules=HERE)


@pytest.mark.parametrize("node", [{"class": "morphogen.spec:spec", "args": {}}, {"a": 1, "b": 2}, {"zzz": 1}, {}])
def test_a_damaged_graph_is_a_sentence(node):
    with pytest.raises(UserError):
        build(node)


def test_users_modules_must_be_named():
    with pytest.raises(UserError, match=r"uses 'Box' of your module .*--with"):
        build(spec(Box()))
    assert modules_of(Box(Layer(), helper)) == [sys.modules[__name__]]


def test_assets_travel_by_hash(tmp_path):
    file = tmp_path / "vocabulary.txt"
    file.write_text("a b c")
    graph = json.loads(json.dumps(spec(Box(Asset(file)))))
    adopt_assets(graph, tmp_path / "run" / "assets")
    file.unlink()
    box = build(graph, modules=HERE, assets=tmp_path / "run" / "assets")
    assert box.content.path.read_text() == "a b c"
    box.content.path.write_text("a b d")
    with pytest.raises(UserError, match="has changed"):
        build(graph, modules=HERE, assets=tmp_path / "run" / "assets")
    with pytest.raises(UserError, match="does not exist"):
        Asset(tmp_path / "gone.txt")


def test_differences_are_named():
    a, b = spec(Box(Layer(width=4), size=1)), spec(Box(Layer(width=5), 9, size=2))
    assert differences(a, a) == []
    assert differences(a, b) == [
        "content.width: 4 there, 5 here",
        "size: 1 there, 2 here",
        "rest: absent there, [9] here",
    ]
    assert differences(spec(Box(Layer())), spec(Box(AdamW()))) == ["content: Layer there, AdamW here"]
    assert differences(spec(Box({"a": 1})), spec(Box({"b": 1}))) == [
        "content.a: 1 there, absent here",
        "content.b: absent there, 1 here",
    ]


@pytest.mark.parametrize(
    "node",
    [
        {"ref": 99}, {"ref": {}}, {"ref": [1]}, {"class": 5, "args": {}}, {"class": "morphogen.optim:AdamW"},
        {"class": "morphogen.optim:AdamW", "args": [1]}, {"class": "morphogen.optim:AdamW", "args": {"foo": 1}},
        {"class": "morphogen.optim:AdamW", "args": {}, "id": []},
        {"class": "morphogen.optim:AdamW", "args": {"self": 1}},
        {"class": "morphogen.optim:AdamW", "args": {"lr": {"ref": 0}}, "id": 0}, {"tuple": 5}, {"dict": [1]},
        {"float": "abc"}, {"float": []}, {"dtype": "load"}, {"dtype": "nn"}, {"dtype": "zzz"}, {"dtype": 5},
        {"device": "zzz"}, {"path": 5}, {"name": 5}, {"name": "morphogen..x:y"}, {"name": "morphogen.__main__:main"},
    ],
)  # fmt: skip
def test_a_malicious_graph_is_a_sentence(node):
    with pytest.raises(UserError) as error:
        build(node, modules=HERE)
    assert "\n" not in str(error.value)


def test_endless_nesting_is_a_sentence():
    graph: list = []
    for _ in range(5000):
        graph = [graph]
    with pytest.raises(UserError, match="nested without end"):
        build(graph)
    loop: list = []
    loop.append(loop)
    with pytest.raises(UserError, match="hold themselves"):
        spec(Box(loop))
    loop = [Box()]
    box = Box(loop)
    loop[0] = box
    with pytest.raises(UserError):
        build(spec(box), modules=HERE)


def test_a_graph_cannot_read_outside_its_assets(tmp_path):
    (tmp_path / "secret").write_text("s")
    (tmp_path / "assets").mkdir()
    for path in (str(tmp_path / "secret"), "../secret"):
        with pytest.raises(UserError, match="does not exist"):
            build({"class": "morphogen.spec:Asset", "args": {"path": path}}, assets=tmp_path / "assets")


def test_an_asset_of_a_run_keeps_its_name(tmp_path):
    (tmp_path / "words.txt").write_text("a b c")
    first = spec(Box(Asset(tmp_path / "words.txt")))
    adopt_assets(first, tmp_path / "assets")
    again = spec(build(first, modules=HERE, assets=tmp_path / "assets"))
    adopt_assets(again, tmp_path / "assets")
    assert differences(first, again) == []


@remembered
def widened(layer: Layer, by: int) -> Layer:
    """Surgery: the same object, changed."""
    layer.linear = nn.Linear(4 + by, 4 + by)
    return layer


def plainly(layer: Layer, by: int) -> Layer:
    return layer


def test_surgery_is_remembered_with_what_the_object_was():
    layer = widened(Layer(width=4), by=2)
    graph = spec(Box([layer, layer]))
    inside = graph["args"]["content"][0]
    assert inside["class"].endswith(":widened")
    assert inside["args"]["by"] == 2
    assert inside["args"]["layer"]["class"].endswith(":Layer")
    assert graph["args"]["content"][1] == {"ref": inside["id"]}
    again = round_trip(Box([layer, layer])).content
    assert again[0] is again[1]
    assert again[0].linear.weight.shape == (6, 6)
    twice = widened(layer, by=3)
    assert spec(twice)["args"]["layer"]["args"]["layer"]["class"].endswith(":Layer")
    assert round_trip(twice).linear.weight.shape == (7, 7)
    assert differences(spec(layer), spec(widened(Layer(width=4), by=1)))
    assert modules_of(layer) == HERE


def test_only_marked_functions_are_called():
    graph = spec(widened(Layer(width=4), by=2))
    graph["class"] = graph["class"].replace("widened", "plainly")
    with pytest.raises(UserError, match="not a class that a run may make"):
        build(graph, modules=HERE)
