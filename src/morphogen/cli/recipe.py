"""Recipes by name: a shipped one ("digits-diffusion"), or a function of the user's own file ("my.py:cats")."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError, out_of_memory, unknown
from .flags import REQUIRED, Flag, flags_of

if TYPE_CHECKING:
    from ..experiment import Experiment

_loaded: dict[str, Path] = {}  # the user's files by module name


class Recipe(NamedTuple):
    """A recipe found. name: as a run notes it. short: names the run folder. file: its source."""

    name: str
    short: str
    make: Callable[..., Any]
    file: Path

    @property
    def flags(self) -> list[Flag]:
        """Its dials."""
        return flags_of(self.make)

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """All arguments, defaults included. Raises UserError where one is missing."""
        for flag in self.flags:
            if flag.default is REQUIRED and flag.name not in given:
                raise UserError(f"{self.name} needs {flag.spelled}: `morphogen train {self.name} --help` explains it.")
        bound = inspect.signature(self.make).bind(**given)
        bound.apply_defaults()
        return dict(bound.arguments)

    def build(self, arguments: dict[str, Any]) -> Experiment:
        """The experiment. Raises UserError naming file and line where the user's code fails."""
        from ..experiment import Experiment

        with _own_code(self.file):
            made = self.make(**arguments)
        if not isinstance(made, Experiment):
            raise UserError(
                f"{self.name} returned a {type(made).__name__}: a recipe returns an Experiment(model, data, trainer)."
            )
        return made


def find(name: str) -> Recipe:
    """The recipe of that name. Raises UserError naming the nearest."""
    path, _, function = name.partition(":")
    if path.endswith(".py") or function:
        return _own(Path(path).expanduser(), function)
    from ..experiment import import_recipe
    from ..recipes import names

    wished = name.replace("_", "-")
    if (spec := Path(name) / "spec.json").is_file():
        raise UserError(
            f"{name!r} is a run and no recipe: continue it with `morphogen train --run {spec.parent}`, or start another"
            f" like it (--like {spec.parent})."
        )
    if wished not in names():
        where = "`morphogen train --help` lists them; your own is given as FILE.py:FUNCTION."
        raise unknown("recipe", name, names(), where)
    make = import_recipe(wished)
    return Recipe(wished, wished, make, Path(inspect.getsourcefile(inspect.unwrap(make)) or ""))


def _own(path: Path, function: str) -> Recipe:
    if path.suffix != ".py":
        raise UserError(f"{str(path)!r} is no Python file: give your recipe as FILE.py:FUNCTION.")
    module = load_file(path)
    made_here = {
        n: f
        for n, f in vars(module).items()
        if inspect.isfunction(f) and inspect.unwrap(f).__module__ == module.__name__ and not n.startswith("_")
    }
    if not function:
        recipes = [n for n, f in made_here.items() if "Experiment" in str(f.__annotations__.get("return", ""))]
        if len(recipes) != 1:
            known = ", ".join(f"{path}:{n}" for n in recipes or made_here) or f"{path}:FUNCTION"
            raise UserError(f"Say which function of {str(path)!r} is the recipe: {known}.")
        (function,) = recipes
    if function not in made_here:
        raise unknown("recipe", f"{path}:{function}", [f"{path}:{n}" for n in made_here])
    short = function.replace("_", "-")
    return Recipe(f"{path.name}:{function}", short, made_here[function], path)


def load_files(paths: Iterable[Path]) -> list[ModuleType]:
    """The user's files as modules, for runs that use classes of theirs."""
    return [load_file(path) for path in paths]


def load_file(path: Path) -> ModuleType:
    """A file as the module of its own name. Raises UserError naming file and line where it fails."""
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        if not near:
            raise UserError(f"There is no file {str(path)!r}: check the path, or write your recipe there first.")
        raise unknown("file", str(path), [str(path.parent / n) for n in near])
    if path.suffix != ".py":
        raise UserError(f"{str(path)!r} is no Python file: give one that ends in .py.")
    name = path.stem
    if not name.isidentifier():
        raise UserError(f"{str(path)!r} cannot be a module's name: rename it to letters, digits and _ (my_recipe.py).")
    if name not in _loaded and _taken(name):
        raise UserError(f"{str(path)!r} has the name of another module, {name!r}: rename the file.")
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    before = sys.modules.get(name)
    sys.modules[name], _loaded[name] = module, path
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)  # a recipe may import its neighbours
    try:
        with _own_code(path):
            found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _taken(name: str) -> bool:
    """Whether a module of that name is there already: loaded, Python's own, or of an installed package."""
    if name in sys.modules or name in sys.stdlib_module_names:
        return True
    found = importlib.util.find_spec(name)
    where = Path(found.origin).parts if found is not None and found.origin else ()
    return bool({"site-packages", "dist-packages"} & set(where))


class _own_code:
    """Turns an error inside the user's file into one sentence with file and line; the traceback stays for --debug."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return
        if out_of_memory(error):
            return
        if isinstance(error, OSError) and error.errno is not None and own_fault(error) is None:
            return  # of the system, met in this package: the recipe is not to blame
        raise UserError(f"{place(error, self.path)}: {said(error)} (--debug shows the traceback).") from error


def place(error: BaseException, path: Path | None = None) -> str:
    """'my.py, line 12' of an error: the innermost line in `path` or another file of the user's, else anywhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    own = {p.resolve() for p in [*_loaded.values(), *([path] if path else [])]}
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if Path(f.filename).resolve() in own), frames[-1] if frames else None)
    if path is not None and (frame is None or Path(frame.filename).resolve() not in own):
        return path.name  # it came no further than being read
    return f"{Path(frame.filename).name}, line {frame.lineno}" if frame else "somewhere"


def own_fault(error: BaseException) -> str | None:
    """The sentence for an error that a file of the user's raised itself, or in what it called outside this package."""
    package, own = Path(__file__).resolve().parents[1], {p.resolve() for p in _loaded.values()}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if file in own:
            return f"{place(error)}: {said(error)} (--debug shows the traceback)."
        if file.is_relative_to(package):
            return None
    return None


def said(error: BaseException) -> str:
    """'NameError: name 'x' is not defined', on one line."""
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}".removesuffix(": ").rstrip(".")
