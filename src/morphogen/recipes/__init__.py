"""The shipped recipes: typed functions that return an `Experiment`, one in a file of its own name.

    recipes/digits_diffusion.py:  def digits_diffusion(width: int = 64, ...) -> Experiment     digits-diffusion

The list is read from the files' text, so that the command line can show it without importing any of them.
"""

from __future__ import annotations

import ast
from importlib.resources import files


def names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(
        f.name.removesuffix(".py").replace("_", "-")
        for f in files(__name__).iterdir()
        if f.name.endswith(".py") and not f.name.startswith("_")
    )


def about() -> dict[str, str]:
    """Each recipe's name with the first line of its docstring."""
    found = {}
    for name in names():
        tree = ast.parse(files(__name__).joinpath(name.replace("-", "_") + ".py").read_text(encoding="utf-8"))
        defined = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        recipe = defined.get(name.replace("-", "_"))
        doc = (ast.get_docstring(recipe) if recipe else None) or ast.get_docstring(tree) or ""
        found[name] = doc.strip().partition("\n")[0]
    return found
