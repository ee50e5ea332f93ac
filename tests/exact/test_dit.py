"""DiT against the paper's formulas written out, and what it must be equal to, or must not notice."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from morphogen.errors import UserError
from morphogen.nets.dit import PATCHES, SIZES, DiT, DiTBlock, Positions
from morphogen.nets.embed import Sinusoidal
from morphogen.nets.transformer import Attention, CrossAttention, FeedForward
from morphogen.spec import build, spec

from .test_nets import awake


def small(dims: int = 2, **options) -> DiT:
    chosen = {"width": 24, "depth": 2, "heads": 2, "classes": 5, "text": 6, "sinusoid": 16}
    return awake(DiT(2, dims=dims, **(chosen | options)))


def conditions(b: int, dtype=torch.float32) -> dict[str, Tensor]:
    mask = torch.arange(4) < torch.tensor([3, 1, 4, 2])[torch.arange(b) % 4, None]
    label = torch.arange(b) % 5
    return {"t": 900 * torch.rand(b, dtype=dtype), "label": label, "text": torch.randn(b, 4, 6, dtype=dtype)} | {
        "text_mask": mask
    }


# ---- the paper, written out ----------------------------------------------------------------------------------------


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """One sample, head by head, query by query: q (N, D), k and v (M, D)."""
    d = q.shape[1] // heads
    out = torch.empty_like(q)
    for i in range(heads):
        part = slice(i * d, (i + 1) * d)
        for n in range(len(q)):
            weight = torch.exp(torch.stack([q[n, part] @ key / math.sqrt(d) for key in k[:, part]]))
            out[n, part] = (weight / weight.sum()) @ v[:, part]
    return out


def norm(h: Tensor) -> Tensor:
    return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def paper(net: DiT, x: Tensor, t: float, label: int, text: Tensor, heads: int) -> Tensor:
    """DiT with cross-attention for one picture x (C, H, W), one time, one class and real tokens only (T, D)."""
    p, (channels, height, width) = net.patch, x.shape
    half = net.times[0].sinusoid.width // 2
    angles = [t * 10_000 ** (-k / half) for k in range(half)]
    code = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=x.dtype)
    e = linear(net.times[0].outer, F.silu(linear(net.times[0].inner, code))) + net.classes.table[label]
    act = e * torch.sigmoid(e)
    # a convolution whose kernel and stride are the patch
    kernel = net.first.weight.view(-1, channels, p, p)
    h = F.conv2d(x[None], kernel, net.first.bias, stride=p)[0]  # (D, rows, columns)
    rows, columns = h.shape[1:]
    h = h.flatten(1).T.clone()
    quarter = h.shape[1] // 4
    for row in range(rows):
        for column in range(columns):
            for k in range(quarter):
                f = 10_000 ** (-k / quarter)
                h[row * columns + column, k] += math.sin(column * f)
                h[row * columns + column, quarter + k] += math.cos(column * f)
                h[row * columns + column, 2 * quarter + k] += math.sin(row * f)
                h[row * columns + column, 3 * quarter + k] += math.cos(row * f)
    c = linear(net.text.project.outer, gelu(linear(net.text.project.inner, text)))
    for block in net.blocks:
        b1, s1, g1, b2, s2, g2 = linear(block.modulation, act).chunk(6)
        q, k, v = linear(block.attention.qkv, norm(h) * (1 + s1) + b1).chunk(3, 1)
        h = h + g1 * linear(block.attention.out, attended(q, k, v, heads))
        k, v = linear(block.cross.kv, c).chunk(2, 1)
        h = h + linear(block.cross.out, attended(linear(block.cross.q, h), k, v, heads))
        m = linear(block.mlp.outer, gelu(linear(block.mlp.inner, norm(h) * (1 + s2) + b2)))
        h = h + g2 * m
    shift, scale = linear(net.modulation, act).chunk(2)
    y = linear(net.last, norm(h) * (1 + scale) + shift)
    out = x.new_zeros(net.outputs, height, width)
    for row in range(height):
        for column in range(width):
            token = (row // p) * columns + column // p
            inside = (row % p) * p + column % p
            out[:, row, column] = y[token, inside * net.outputs : (inside + 1) * net.outputs]
    return out


@pytest.mark.parametrize(("patch", "heads", "size"), [(2, 2, (4, 6)), (1, 3, (3, 2)), (3, 1, (3, 6))])
def test_it_is_the_papers_formula(patch: int, heads: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = small(patch=patch, heads=heads, outputs=3).double()
    x, cond = torch.randn(3, 2, *size, dtype=torch.float64), conditions(3, torch.float64)
    y = net(x, cond)
    for i in range(3):
        text = cond["text"][i, cond["text_mask"][i]]
        alone = paper(net, x[i], cond["t"][i].item(), int(cond["label"][i]), text, heads)
        torch.testing.assert_close(y[i], alone, rtol=0, atol=1e-12)
    nothing = net(x, cond | {"null": torch.tensor([False, True, False])})
    alone = paper(net, x[1], cond["t"][1].item(), 5, net.text.null[None], heads)  # the rows of "no class", "no text"
    torch.testing.assert_close(nothing[1], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(nothing[[0, 2]], y[[0, 2]], rtol=0, atol=1e-12)


# ---- sizes and starts ----------------------------------------------------------------------------------------------


def test_parameters_of_the_named_nets() -> None:
    """XL/2 without the authors' table of positions; the others in millions as in their table 1 (33, 130, 458, 675)."""
    with torch.device("meta"):
        count = {s: sum(p.numel() for p in DiT.named(f"{s}/2", outputs=8).parameters()) for s in SIZES}
        assert {len(DiT.named(f"DiT-S/{p}").first.weight.T) for p in PATCHES} == {16, 64, 256}
    assert count["XL"] + 256 * 1152 == 675_129_632
    assert {s: round((n + 256 * SIZES[s][0]) / 1e6) for s, n in count.items()} == {
        "S": 33,
        "B": 131,  # 130.5; the paper cuts it off
        "L": 458,
        "XL": 675,
    }


def test_it_starts_as_zero_and_its_blocks_as_the_identity() -> None:
    net = DiT(2, width=24, depth=2, heads=2, classes=5, text=6)
    x, cond = torch.randn(4, 2, 6, 6), conditions(4)
    assert torch.equal(net(x, cond), torch.zeros_like(x))
    h = torch.randn(4, 9, 24)
    for block in net.blocks:
        context = torch.randn(4, 3, 24)
        assert torch.equal(block(h, torch.randn(4, 24), context, torch.ones(4, 3, dtype=torch.bool)), h)


def test_initial_weights_are_the_authors() -> None:
    """Glorot-uniform products, the embeddings' N(0, 0.02²), zero biases, zero modulations."""
    torch.manual_seed(0)
    net = DiT(4, width=96, depth=1, heads=2, classes=50, text=64)
    assert all(not p.any() for n, p in net.named_parameters() if n.endswith("bias"))
    for layer in (net.first, net.blocks[0].attention.qkv, net.blocks[0].mlp.inner, net.blocks[0].cross.kv):
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert abs(layer.weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.05
    for weight in (net.times[0].inner.weight, net.times[0].outer.weight, net.classes.table):
        assert abs(weight.std().item() / 0.02 - 1) < 0.05
    assert abs(DiT(4, width=96, depth=1, heads=2, classes=50, spread=1.0).classes.table.std().item() - 1) < 0.05
    for layer in (net.modulation, net.last, net.blocks[0].modulation, net.blocks[0].cross.out):
        assert not layer.weight.any()


def test_time_is_the_authors_sinusoid_with_columns_swapped() -> None:
    """Theirs: cosines first, frequencies exp(-ln(10000) k / 128)."""
    t = torch.tensor([0.0, 1.0, 37.5, 999.0], dtype=torch.float64)
    sinusoid = DiT(1, width=24, depth=1, heads=2).times[0].sinusoid
    angle = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float64) / 128)
    theirs = torch.cat((angle.cos(), angle.sin()), 1)
    torch.testing.assert_close(sinusoid(t).roll(128, 1), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("width", "counts"), [(8, (3,)), (24, (2, 3)), (22, (3, 2)), (26, (2, 1, 3))])
def test_positions_are_each_axis_sinusoid_last_axis_first(width: int, counts: tuple[int, ...]) -> None:
    dims = len(counts)
    net, like = Positions(width, dims), torch.zeros((), dtype=torch.float64)
    table = net(counts, like)
    share = width // (2 * dims) * 2
    for n, place in enumerate(torch.cartesian_prod(*map(torch.arange, counts)).view(-1, dims).tolist()):
        codes = [Sinusoidal(share, shift=0.0)(torch.tensor([float(a)], dtype=torch.float64))[0] for a in place[::-1]]
        expected = torch.cat([*codes, torch.zeros(width - dims * share, dtype=torch.float64)])
        torch.testing.assert_close(table[n], expected, rtol=0, atol=1e-14)
    assert len({tuple(row) for row in table.tolist()}) == math.prod(counts)  # no two places look the same


@pytest.mark.parametrize(
    ("size", "patch"), [((8,), 2), ((7,), 2), ((1,), 4), ((8, 8), 2), ((7, 5), 2), ((28, 28), 4), ((1, 1), 2),
                        ((5, 9), 3), ((3, 4), 1), ((6, 3, 5), 2), ((4, 4, 4), 2)], ids=str,
)  # fmt: skip
def test_output_is_as_large_as_the_input_and_padding_is_zeros(size: tuple[int, ...], patch: int) -> None:
    net = small(len(size), patch=patch, outputs=3).double()
    x, cond = torch.randn(2, 2, *size, dtype=torch.float64), conditions(2, torch.float64)
    y = net(x, cond)
    assert y.shape == (2, 3, *size)
    whole = torch.zeros(2, 2, *(-(-n // patch) * patch for n in size), dtype=torch.float64)
    inside = (..., *map(slice, size))
    whole[inside] = x
    torch.testing.assert_close(net(whole, cond)[inside], y, rtol=0, atol=1e-13)


def test_a_position_counts_whatever_the_size() -> None:
    """Moving a picture by a patch is not moving its output: places are told apart."""
    net = small(dims=1, text=0).double()
    x, cond = torch.randn(1, 2, 8, dtype=torch.float64), {"t": torch.rand(1, dtype=torch.float64)}
    assert (net(x.roll(2, 2), cond) - net(x, cond).roll(2, 2)).abs().max() > 1e-3


def test_without_conditions_and_empty_batches() -> None:
    net = small(scalars=(), classes=0, text=0)
    assert net(torch.randn(2, 2, 5, 4)).shape == (2, 2, 5, 4)
    assert not any(n.startswith(("times", "classes", "text")) or ".cross." in n for n, _ in net.named_parameters())
    assert small()(torch.randn(0, 2, 4, 4), conditions(0)).shape == (0, 2, 4, 4)


# ---- conditions ----------------------------------------------------------------------------------------------------


def test_rows_are_independent_and_every_condition_counts() -> None:
    net = small(scalars=("t", "r")).double()
    x, cond = torch.randn(3, 2, 7, 5, dtype=torch.float64), conditions(3, torch.float64)
    cond["r"] = 900 * torch.rand(3, dtype=torch.float64)
    y = net(x, cond)
    for i in range(3):
        alone = net(x[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()})
        torch.testing.assert_close(alone, y[i : i + 1], rtol=0, atol=1e-12)
    second = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    changes = {
        "t": cond["t"] + second,
        "r": cond["r"] + second,
        "label": (cond["label"] + second.long()) % 5,
        "null": second.bool(),
        "text": cond["text"] + second[:, None, None],
        "text_mask": cond["text_mask"] ^ (second.bool()[:, None] & (torch.arange(4) == 1)),
    }
    for name, value in changes.items():
        differs = (net(x, cond | {name: value}) - y).abs().flatten(1).amax(1)
        assert (differs > 1e-6).tolist() == [False, True, False], name
    swapped = net(x, cond | {"t": cond["r"], "r": cond["t"]})
    assert (swapped - y).abs().max() > 1e-6  # the scalars are not interchangeable


@pytest.mark.parametrize("filler", [1e4, math.nan, math.inf])
def test_a_padded_token_never_changes_the_answer(filler: float) -> None:
    net = small().double()
    x, cond = torch.randn(4, 2, 4, 6, dtype=torch.float64), conditions(4, torch.float64)
    y = net(x, cond)
    text = cond["text"].masked_fill(~cond["text_mask"][..., None], filler)
    assert torch.equal(net(x, cond | {"text": text}), y)
    longer = {"text": F.pad(text, (0, 0, 2, 3), value=filler), "text_mask": F.pad(cond["text_mask"], (2, 3))}
    torch.testing.assert_close(net(x, cond | longer), y, rtol=0, atol=1e-12)  # wherever the padding stands
    y.sum().backward()
    want = {n: p.grad.clone() for n, p in net.named_parameters()}
    net.zero_grad()
    net(x, cond | longer).sum().backward()
    for n, p in net.named_parameters():
        torch.testing.assert_close(p.grad, want[n], rtol=1e-9, atol=1e-9, msg=n)


def test_no_text_is_one_thing_however_it_is_said() -> None:
    net = small().double()
    x, cond = torch.randn(3, 2, 4, 4, dtype=torch.float64), conditions(3, torch.float64)
    del cond["label"]
    dropped = net(x, cond | {"null": torch.ones(3, dtype=torch.bool)})
    for nothing in (
        {"t": cond["t"]},
        cond | {"text_mask": torch.zeros(3, 4, dtype=torch.bool)},
        {"t": cond["t"], "text": torch.zeros(3, 0, 6, dtype=torch.float64)},
    ):
        torch.testing.assert_close(net(x, nothing), dropped, rtol=0, atol=1e-12)
    unmasked = {k: v for k, v in cond.items() if k != "text_mask"}
    whole = cond | {"text_mask": torch.ones(3, 4, dtype=torch.bool)}
    assert torch.equal(net(x, unmasked), net(x, whole))  # without a mask every token is real
    assert (net(x, whole) - dropped).abs().amax((1, 2, 3)).min() > 1e-6


def test_a_text_is_a_set_of_tokens_to_the_net() -> None:
    """Order is the text encoder's matter."""
    net = small().double()
    x, cond = torch.randn(2, 2, 4, 4, dtype=torch.float64), conditions(2, torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    turned = cond | {k: cond[k][:, order] for k in ("text", "text_mask")}
    torch.testing.assert_close(net(x, turned), net(x, cond), rtol=0, atol=1e-12)


# ---- gradients, dtypes, specs --------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter() -> None:
    net = small()
    cond = conditions(6) | {"null": torch.arange(6) == 5}
    net(torch.randn(6, 2, 4, 4), cond).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("given", [("label", "text", "text_mask"), ("text",), ()])
def test_no_parameter_is_unused_whatever_is_given(given: tuple[str, ...]) -> None:
    net, cond = DiT(2, width=24, depth=2, heads=2, classes=5, text=6), conditions(2)
    net(torch.randn(2, 2, 4, 4), {k: cond[k] for k in ("t", *given)}).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_gradient_is_the_slope() -> None:
    net = small(width=8, depth=1).double()
    cond = conditions(1, torch.float64)
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    text = cond["text"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, text: net(x, cond | {"text": text}), (x, text))


def test_float64_and_float32_agree_and_bfloat16_is_close() -> None:
    net = small()
    x, cond = torch.randn(3, 2, 8, 6), conditions(3)
    y = net(x, cond)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in cond.items()}
    exact = copy.deepcopy(net).double()(x.double(), wide)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, cond).float()
    assert ((low - y).std() / y.std()) < 0.05


def test_recomputed_blocks_have_the_same_gradients() -> None:
    x, cond = torch.randn(2, 2, 4, 4), conditions(2)
    grads = []
    for recompute in (False, True):
        torch.manual_seed(4)
        net = small(depth=3)
        blocks = [m for m in net.modules() if getattr(m, "recomputable", False)]
        assert [type(m) for m in blocks] == [DiTBlock] * 3
        if recompute:
            for block in blocks:
                plain = block.forward
                block.forward = lambda *args, plain=plain: checkpoint(plain, *args, use_reentrant=False)
        y = net(x, cond)
        y.square().sum().backward()
        grads.append([y, *(p.grad for p in net.parameters())])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_spec_round_trip() -> None:
    for net in (
        DiT(2, width=12, depth=1, heads=3, dims=3, text=5, scalars=("t", "r")),
        Attention(4, 2),
        CrossAttention(4, 3, 2),
        FeedForward(4, 8, 2),
    ):
        graph = spec(net)
        a, b = build(graph, seed=3), build(graph, seed=3)
        assert spec(a) == graph
        for k, v in a.state_dict().items():
            assert v.shape == net.state_dict()[k].shape
            assert torch.equal(v, b.state_dict()[k])
    with torch.device("meta"):
        graph = spec(DiT.named("DiT-S/8", 3))
    assert graph["class"] == "morphogen.nets.dit:DiT"
    assert (graph["args"]["width"], graph["args"]["patch"]) == (384, 8)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'XL/2'"):
        DiT.named("XL2")
    with pytest.raises(UserError, match="10 does not divide into 4 attention heads"):
        DiT(1, width=10, heads=4)
    with pytest.raises(UserError, match="dims=1, 2 or 3"):
        DiT(1, dims=4)
    with pytest.raises(UserError, match="at least 12"):
        DiT(1, width=10, heads=2, dims=3)
    with pytest.raises(UserError, match="at least 1 of each"):
        DiT(1, depth=0)
    net, x = small(), torch.zeros(2, 2, 4, 4)
    with pytest.raises(UserError, match="condition 't'"):
        net(x, {})
    with pytest.raises(UserError, match=r"tokens of width 6"):
        net(x, conditions(2) | {"text": torch.zeros(2, 4, 5)})
    with pytest.raises(UserError, match="classes 0 to 4"):
        net(x, conditions(2) | {"label": torch.tensor([0, 5])})
