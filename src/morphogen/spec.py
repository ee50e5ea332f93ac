"""The constructor is the configuration: objects remember the call that made them.

`spec(obj)` is that call as a JSON graph (class, every argument, defaults included; an object used twice is written
once and referred to), `build(graph)` makes the object again, and `differences(a, b)` names what differs.

What is done to an object after it was made (weights put in, adapters added) is a function marked `remembered`: the
object then remembers that call instead, whose argument is the object as it was.

A graph cannot choose what is imported: names resolve only in this package and in modules that the caller hands to
`build`, and only to what is defined there: classes that derive from `Remembers`, and remembered functions. Nothing is
unpickled or evaluated. Tensors and files enter as `Asset`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import itertools
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from .disk import copy, make
from .errors import UserError

Json = Any
PACKAGE = __name__.partition(".")[0]


class Remembers:
    """Mixin: the instance remembers its constructor's arguments, for `spec`.

    pins: arguments that are written down as the attribute of that name says, whatever was given (a file's hash).
    """

    pins: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        self.__dict__["_call"] = (cls, args, kwargs)
        return self


class _Former(Remembers):
    """What an object was before a remembered function changed it: its call, and nothing else."""

    def __init__(self, call: Any) -> None:
        self.__dict__["_call"] = call


_surgeries: set[Callable[..., Any]] = set()
F = TypeVar("F", bound=Callable[..., Any])


def remembered(surgery: F) -> F:
    """Mark a function of a module, which changes one of its arguments or makes something of them, as one that what it
    returns remembers: `spec` writes that call, and `build` calls it again.
    """

    @functools.wraps(surgery)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = {id(a): a.__dict__["_call"] for a in (*args, *kwargs.values()) if isinstance(a, Remembers)}
        made = surgery(*args, **kwargs)

        def former(a: Any) -> Any:
            return _Former(before[id(a)]) if a is made else a

        made.__dict__["_call"] = (call, tuple(map(former, args)), {k: former(a) for k, a in kwargs.items()})
        return made

    _surgeries.add(call)
    return cast("F", call)


class Asset(Remembers):
    """A file that a constructor needs (a vocabulary, a tensor): copied into the run and found again by its hash.

    path: the file. `Asset.sha256` is its content's hash, made when the asset is made.
    Raises UserError where the file is missing.
    """

    pins = ("sha256",)

    def __init__(self, path: str | Path, sha256: str = "") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"The file {str(path)!r} does not exist: give the path of an existing file.")
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if sha256 and sha256 != self.sha256:
            raise UserError(f"The file {str(path)!r} has changed since the run was made: its SHA-256 is another one.")


def maker(obj: Remembers) -> Callable[..., Any]:
    """What made `obj` as it is: its class, or a remembered function."""
    made: Callable[..., Any] = obj.__dict__["_call"][0]
    return made


def arguments(obj: Remembers) -> dict[str, Any]:
    """The arguments that `obj` was made with, defaults included, by name."""
    make, args, kwargs = obj.__dict__["_call"]
    if isinstance(make, type):
        bound = inspect.signature(make.__init__).bind(obj, *args, **kwargs)  # type: ignore[misc]
    else:
        bound = inspect.signature(make).bind(*args, **kwargs)
    given = set(bound.arguments)  # what *rest and **rest got nothing for is no argument
    bound.apply_defaults()
    rest = {p.name for p in bound.signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    named = list(bound.arguments.items())[isinstance(make, type) :]
    found = {name: value for name, value in named if name in given or name not in rest}
    return found | {name: getattr(obj, name) for name in getattr(make, "pins", ()) if isinstance(obj, make)}


# ---- object -> graph -----------------------------------------------------------------------------------------------


def spec(obj: Any) -> Json:
    """The JSON graph of the calls that made `obj`. Raises UserError on what cannot be written (a lambda, a tensor)."""
    counts: dict[int, int] = {}
    try:
        _count(obj, counts)
        return _write(obj, maker(obj).__name__ if isinstance(obj, Remembers) else type(obj).__name__, counts, {})
    except RecursionError:
        raise UserError(
            f"The arguments of {type(obj).__name__} hold themselves: a run cannot write that down."
        ) from None


def _count(value: Any, counts: dict[int, int]) -> None:
    if isinstance(value, Remembers):
        counts[id(value)] = counts.get(id(value), 0) + 1
        if counts[id(value)] == 1:
            _count(arguments(value), counts)
    elif isinstance(value, Mapping):
        for v in value.values():
            _count(v, counts)
    elif isinstance(value, list | tuple):
        for v in value:
            _count(v, counts)


def _write(value: Any, where: str, counts: dict[int, int], ids: dict[int, int]) -> Json:
    def write(v: Any, name: str) -> Json:
        return _write(v, f"{where}.{name}", counts, ids)

    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Remembers):
        if id(value) in ids:
            return {"ref": ids[id(value)]}
        node: dict[str, Json] = {"class": name_of(maker(value), where)}
        if counts[id(value)] > 1:
            node["id"] = ids[id(value)] = len(ids)
        if isinstance(value, Asset):  # its path as text, which moves with the run
            return node | {"args": {"path": str(value.path), "sha256": value.sha256}}
        return node | {"args": {k: write(v, k) for k, v in arguments(value).items()}}
    if isinstance(value, list):
        return [write(v, str(i)) for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [write(v, str(i)) for i, v in enumerate(value)]}
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise UserError(f"{where} is a mapping with keys that are not strings: use string keys.")
        return {"dict": {k: write(v, k) for k, v in value.items()}}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return {"name": name_of(value, where)}
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0 and type(value).__module__ == "numpy":
        return write(value.item(), "item")
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    advice = (
        "save it to a file and pass Asset(path)"
        if hasattr(value, "shape")
        else "derive its class from morphogen.Net (a network) or morphogen.Remembers (anything else)"
    )
    raise UserError(f"{where} is a {kind}, which a run cannot write down: {advice}.")


def name_of(thing: Any, where: str = "This") -> str:
    """'module:qualified.name' of a class or function, by which `build` finds it again."""
    module, name = thing.__module__, thing.__qualname__
    if "<" in name:
        what = "a lambda" if name.endswith("<lambda>") else f"{name!r}, defined inside a function"
        raise UserError(f"{where} is {what}, which cannot be found again by name: define it at the top of a module.")
    if module == "__main__":
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem
    return f"{module}:{name}"


def assets(graph: Json) -> Iterator[dict[str, Json]]:
    """The argument mappings (path, sha256) of the assets in a graph; editing `path` there moves the asset."""
    if isinstance(graph, dict):
        if graph.get("class") == f"{__name__}:Asset":
            yield graph["args"]
        else:
            for v in graph.values():
                yield from assets(v)
    elif isinstance(graph, list):
        for v in graph:
            yield from assets(v)


def adopt_assets(graph: Json, folder: Path) -> None:
    """Copy the graph's assets into `folder` (named by hash) and let the graph refer to the copies, by name alone."""
    for args in assets(graph):
        source = Path(args["path"])
        mark = f"{args['sha256'][:16]}-"
        target = folder / (mark + source.name.removeprefix(mark))
        make(folder)
        if not target.exists():
            copy(source, target)
        args["path"] = target.name


# ---- graph -> object -----------------------------------------------------------------------------------------------


def build(
    graph: Json, *, modules: Iterable[types.ModuleType] = (), assets: Path | None = None, seed: int | None = None
) -> Any:
    """Make the object of a graph again.

    modules: where names outside this package may be found. assets: the folder that holds the graph's assets.
    seed: seeds torch's default generator while building (and restores it), so that weights are a function of it.
    Raises UserError where a name is not found or not allowed.
    """
    maker = _Maker({_module_name(m): m for m in modules}, assets)
    try:
        if seed is None:
            return maker.make(graph)
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return maker.make(graph)
    except RecursionError:
        raise UserError("This spec is damaged: it is nested without end.") from None


def _module_name(module: types.ModuleType) -> str:
    name = module.__name__
    return Path(getattr(module, "__file__", None) or name).stem if name == "__main__" else name


class _Maker:
    def __init__(self, modules: dict[str, types.ModuleType], assets: Path | None) -> None:
        self.modules, self.assets, self.shared = modules, assets, dict[int, Any]()

    def find(self, name: str) -> Any:
        module_name, _, path = name.partition(":")
        if module_name in self.modules:
            module: Any = self.modules[module_name]
        elif module_name.partition(".")[0] == PACKAGE:
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                raise UserError(
                    f"This run needs {module_name!r}, which this version of {PACKAGE} lacks: use the one that made it."
                ) from error
        else:
            raise UserError(
                f"This run uses {path!r} of your module {module_name!r}: name that file at the call"
                f" (--with {module_name}.py, or modules=[{module_name}] in Python)."
            )
        thing = module
        for part in path.split("."):
            thing = vars(thing).get(part) if hasattr(thing, "__dict__") else None
        if not isinstance(thing, type | types.FunctionType) or thing.__module__ != module.__name__:
            raise UserError(f"{module_name!r} defines no {path!r}: the run was made by another version of that file.")
        return thing

    def make(self, node: Json) -> Any:
        if isinstance(node, list):
            return [self.make(v) for v in node]
        if not isinstance(node, dict):
            return node
        match node:
            case {"class": str(), "args": dict()} if isinstance(node.get("id", 0), int):
                return self.construct(node)
            case {"ref": int(i)} if i in self.shared:
                return self.shared[i]
            case {"tuple": list(values)}:
                return tuple(self.make(v) for v in values)
            case {"dict": dict(values)}:
                return {k: self.make(v) for k, v in values.items()}
            case {"float": "inf" | "-inf" | "nan" as number}:
                return float(number)
            case {"path": str(path)}:
                return Path(path)
            case {"name": str(name)}:
                return self.find(name)
            case {"dtype": str(name)}:
                import torch

                if isinstance(dtype := getattr(torch, name, None), torch.dtype):
                    return dtype
            case {"device": str(name)}:
                import torch

                with contextlib.suppress(RuntimeError):
                    return torch.device(name)
        raise UserError(f"This spec is damaged or of another version: {str(node)[:80]} is no node of a graph.")

    def construct(self, node: Json) -> Any:
        cls = self.find(node["class"])
        if not (issubclass(cls, Remembers) if isinstance(cls, type) else cls in _surgeries):
            raise UserError(f"{node['class']!r} is not a class that a run may make: derive it from Remembers.")
        args = {k: self.make(v) for k, v in node["args"].items()}
        if cls is Asset and self.assets is not None:
            args["path"] = self.assets / Path(str(args.get("path"))).name  # in that folder, whatever the file says
        try:
            obj = call(cls, args)
        except UserError:
            raise
        except Exception as error:  # of arguments that were never meant a constructor raises whatever it meets
            said = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            raise UserError(
                f"This spec asks {cls.__name__} for what it cannot be made with ({said}): it is damaged or of another"
                " version."
            ) from error
        if "id" in node:
            self.shared[node["id"]] = obj
        return obj


def call(f: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    """Call f with arguments by name, its positional-only and *rest ones included."""
    positional: list[Any] = []
    named = dict(args)
    signature = inspect.signature(f)
    try:
        for p in signature.parameters.values():
            if p.kind is p.VAR_POSITIONAL:
                before = [q.name for q in signature.parameters.values() if q.kind is q.POSITIONAL_OR_KEYWORD]
                positional = [named.pop(q) for q in before] + list(named.pop(p.name, ()))
            elif p.kind is p.VAR_KEYWORD:
                named |= named.pop(p.name, {})
        signature.bind(*positional, **named)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{f.__name__} does not take these arguments ({error}): the run was made by another version of it."
        ) from None
    return f(*positional, **named)


# ---- graph against graph -------------------------------------------------------------------------------------------


def differences(old: Json, new: Json, where: str = "", assets: Path | None = None) -> list[str]:
    """What differs between two graphs, as lines 'model.net.width: 64 there, 96 here'.

    assets: the folder that holds both graphs' assets; then those that are text are told apart line by line.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        if "class" in old and old.get("class") == new.get("class"):
            if old["class"] == f"{__name__}:Asset" and assets is not None:
                return _lines(old["args"], new["args"], where, assets)
            return differences(old["args"], new["args"], where, assets)
        for kind in ("dict", "tuple"):
            if set(old) == set(new) == {kind}:
                return differences(old[kind], new[kind], where, assets)
        if "class" not in old and "class" not in new:
            found = []
            for k in [*old, *(k for k in new if k not in old)]:
                there, here = old.get(k, _ABSENT), new.get(k, _ABSENT)
                found += differences(there, here, f"{where}.{k}" if where else k, assets)
            return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        both = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in both for d in differences(a, b, f"{where}[{i}]", assets)]
    return [] if old == new else [f"{where or 'the object'}: {_short(old)} there, {_short(new)} here"]


_ABSENT = object()


def _lines(old: Json, new: Json, where: str, folder: Path) -> list[str]:
    """What differs between two files: the lines that only one of them has, or the files where they are no text."""
    if old["sha256"] == new["sha256"]:
        return []
    try:
        there, here = ((folder / Path(a["path"]).name).read_text(encoding="utf-8").splitlines() for a in (old, new))
    except (OSError, UnicodeDecodeError):
        return differences(old["path"], new["path"], where)
    gone, come = ([line for line in a if line not in b] for a, b in ((there, set(here)), (here, set(there))))
    pairs = itertools.zip_longest(gone, come, fillvalue=_ABSENT)
    return [d for a, b in pairs for d in differences(a, b, where)]


def _short(node: Json) -> str:
    if node is _ABSENT:
        return "absent"
    if isinstance(node, dict) and "class" in node:
        return str(node["class"]).partition(":")[2]
    text = str(next(iter(node.values())) if isinstance(node, dict) and len(node) == 1 else node)
    return text if len(text) < 60 else text[:57] + "…"


def modules_of(obj: Any) -> list[types.ModuleType]:
    """The modules that define the classes and functions of `obj`'s graph: all that `build` needs to make it again."""
    found: dict[str, types.ModuleType] = {}
    seen: set[int] = set()

    def walk(value: Any) -> None:
        if isinstance(value, Remembers):
            if id(value) in seen:
                return
            seen.add(id(value))
            found.setdefault(maker(value).__module__, sys.modules[maker(value).__module__])
            walk(arguments(value))
        elif isinstance(value, Mapping):
            for v in value.values():
                walk(v)
        elif isinstance(value, list | tuple):
            for v in value:
                walk(v)
        elif isinstance(value, type | types.FunctionType):
            found.setdefault(value.__module__, sys.modules[value.__module__])

    walk(obj)
    return list(found.values())
