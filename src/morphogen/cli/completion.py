"""`morphogen completion SHELL`: what a shell offers when Tab is pressed, from the signatures that the parser reads.

The script that a shell evaluates asks `morphogen --complete WORD …`, whose last word is the one being typed, and gets a
candidate a line, with its meaning after a tab. Where there is none the shell offers files. Nothing here imports torch:
the sampling options of a run's model, which only its class knows, are left to `--help`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..data import table
from ..recipes import about
from . import recipe as recipes
from .context import Context
from .flags import Flag, choices, flags_of, summary
from .line import is_flag

Candidates = list[tuple[str, str]]  # what may be typed, and what it means

_SCRIPTS = {
    "bash": r"""_morphogen() {
  local word meaning
  COMPREPLY=()
  while IFS=$'\t' read -r word meaning; do COMPREPLY+=("$word"); done \
    < <("${COMP_WORDS[0]}" --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then compopt -o nospace; fi
}
complete -o default -F _morphogen morphogen""",
    "zsh": r"""#compdef morphogen
_morphogen() {
  local line; local -a found
  for line in "${(@f)$("${words[1]}" --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
    [[ -n $line ]] && found+=("${${line//:/\\:}/$'\t'/:}")
  done
  if (( $#found )); then _describe morphogen found; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _morphogen morphogen""",
    "fish": r"""function __morphogen
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] --complete $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c morphogen -f -a '(__morphogen)'""",
}


def completion(context: Context, shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print what lets a shell complete verbs, flags, recipes, choices and runs at Tab.

    In ~/.bashrc or ~/.zshrc: eval "$(morphogen completion bash)" (or zsh); in ~/.config/fish/config.fish: morphogen
    completion fish | source.

    shell: which shell.
    """
    context.tell.answer("completion", {"shell": shell, "script": _SCRIPTS[shell]}, _SCRIPTS[shell])


def candidates(words: Sequence[str], verbs: Mapping[str, Any], common: Iterable[tuple[str, str]]) -> Candidates:
    """What may stand where the last of `words` is being typed, after `morphogen` and the words before it.

    verbs: as the command line knows them. common: the flags of every verb, with their meaning.
    """
    *before, typed = words or [""]
    before = [w for w in before if w != "="]  # bash takes --kind=fancy for three words
    typed = "" if typed == "=" else typed
    if not before:
        found = [(name, _first(v)) for name, v in verbs.items()] + [*common, ("--version", "print the version")]
        return _beginning(found if typed.startswith("-") else found[: len(verbs)], typed)
    name, *rest = before
    if name not in verbs:
        return []
    verb: Any = verbs[name]
    if isinstance(verb, Mapping):
        if not rest:
            return _beginning([(sub, _first(v)) for sub, v in verb.items()], typed)
        sub, *rest = rest
        if sub not in verb:
            return []
        verb = verb[sub]
    flags = flags_of(verb.do, skip=("context",), positional=True)
    bare, open_ = _read(rest, flags)
    places = [f for f in flags if f.positional]
    if places and places[0].name == "recipe":
        flags = flags + _of_recipe(bare)
        bare, open_ = _read(rest, flags)
    named = {f.spelled: f for f in flags if not f.positional}
    spelled, equals, value = typed.partition("=")
    if equals and spelled in named:
        return [(f"{spelled}={v}", text) for v, text in _values(named[spelled], value, bare)]
    if typed.startswith("-"):
        return _beginning(_spellings(named.values(), rest, common), typed)
    if open_ is not None:
        return _values(open_, typed, bare)
    if len(bare) < len(places) and not places[len(bare)].many:
        return _values(places[len(bare)], typed, bare)
    more = _values(places[-1], typed, bare) if places and places[-1].many else []
    return more + _beginning(_spellings(named.values(), rest, common), typed)


def _first(verb: Any) -> str:
    does = [v.do for v in verb.values()] if isinstance(verb, Mapping) else [verb.do]
    return "; ".join(summary(do).partition("\n")[0].rstrip(".") for do in does)


def _read(words: Sequence[str], flags: Sequence[Flag]) -> tuple[list[str], Flag | None]:
    """The words that are given by place, and the flag that still takes a value."""
    named = {f.spelled: f for f in flags if not f.positional}
    bare: list[str] = []
    flag: Flag | None = None
    for word in words:
        if is_flag(word):
            flag = named.get(word)
            flag = None if flag is None or flag.switch else flag
        elif flag is None:
            bare.append(word)
        elif not flag.many:
            flag = None
    return bare, flag


def _of_recipe(bare: Sequence[str]) -> list[Flag]:
    """The flags of a shipped recipe. A file of the user's own is not run for this."""
    name = bare[0].replace("_", "-") if bare else ""
    return recipes.find(name).flags if name in about() else []


def _spellings(flags: Iterable[Flag], given: Sequence[str], common: Iterable[tuple[str, str]]) -> Candidates:
    once = {word.partition("=")[0] for word in given}
    found = []
    for flag in flags:
        off = "--no-" + flag.spelled.removeprefix("--")
        if flag.spelled not in once and off not in once:
            found.append((off if flag.switch and flag.default is True else flag.spelled, flag.text))
    return found + [(spelled, text) for spelled, text in common if spelled not in once]


def _values(flag: Flag, typed: str, bare: Sequence[str]) -> Candidates:
    """What may be the flag's value: what its type names, or what its name stands for."""
    named = [(str(v), "") for h in choices(flag.hint) for v in get_args(h) if get_origin(h) is Literal]
    if named:
        return _beginning(named, typed)
    return _MEANT[flag.name](typed, bare) if flag.name in _MEANT else []


def _runs(typed: str, _bare: Sequence[str]) -> Candidates:
    """Run folders that begin so, in runs/ too where nothing is typed; and folders on the way to others."""
    folder = Path(typed if typed.endswith("/") else str(Path(typed).parent)) if typed else Path()
    looked = [folder] + ([Path("runs")] if not typed else [])
    try:
        inside = sorted(p for f in looked if f.expanduser().is_dir() for p in f.expanduser().iterdir() if p.is_dir())
    except OSError:
        return []
    found = []
    for path in inside:
        shown = f"{typed[: typed.rfind('/') + 1]}{path.name}" if typed else str(path)
        if not path.name.startswith("."):
            found.append((shown, "a run") if (path / "spec.json").is_file() else (shown + "/", "a folder"))
    return _beginning(sorted(found, key=lambda c: c[0].endswith("/")), typed)


def _checkpoints(typed: str, bare: Sequence[str]) -> Candidates:
    steps = sorted(p.name.lstrip("0") or "0" for p in Path(bare[0], "checkpoints").glob("*[0-9]")) if bare else []
    return _beginning([("newest", ""), ("best", "by the held-out metric"), *((s, "a step") for s in steps)], typed)


_MEANT: Mapping[str, Callable[[str, Sequence[str]], Candidates]] = {  # what an argument of a verb stands for
    "recipe": lambda typed, bare: _beginning(about().items(), typed),
    "name": lambda typed, bare: _beginning(((n, table.describe(n).summary) for n in table.names()), typed),
    "run": _runs,
    "like": _runs,
    "judge": _runs,
    "weak": _runs,
    "also": _runs,
    "others": _runs,
    "checkpoint": _checkpoints,
    "device": lambda typed, bare: _beginning([("cpu", ""), ("cuda", "NVIDIA"), ("mps", "Apple")], typed),
}


def _beginning(found: Iterable[tuple[str, str]], typed: str) -> Candidates:
    return [(word, text) for word, text in found if word.startswith(typed)]
