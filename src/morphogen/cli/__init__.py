"""The command line. Verbs are typed functions, their flags come from their signatures; torch is imported by those that
work with it, when they do.

Every mistake of the user is one sentence on stderr that says what is wrong, the nearest right thing and what to do
next; a traceback is shown with --debug alone.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..data.table import names as data_sets
from ..errors import UserError, out_of_memory, unknown
from ..recipes import names as recipe_names
from . import (
    anomaly,
    completion,
    data,
    directions,
    doctor,
    evaluate,
    interpolate,
    map,
    plan,
    play,
    recipe,
    reconstruct,
    reflow,
    restore,
    runs,
    sample,
    scale,
    train,
    translate,
)
from .context import Context
from .flags import Flag, described, flags_of, summary, table
from .line import scan
from .tell import Tell

OK, UNEXPECTED, MISTAKE, NOT_FINITE = 0, 1, 2, 3
_CODES = (
    ("0", "done"),
    ("1", "an error that is not yours (run again with --debug), `runs verify` found a difference or `doctor` a fault"),
    ("2", "something that you can put right: a wrong name or value, a missing file, a full disk"),
    ("3", "training met NaN or Inf; no bad number was saved"),
    ("130, 143", "stopped by Ctrl-C or SIGTERM; a training has saved, and the same command continues it"),
)
_COMMON = (
    ("--json", "one JSON object a line on stdout, for machines"),
    ("--debug", "show the traceback of an error"),
    ("--help", "explain; after a recipe or a run also its own flags"),
)


class Verb(NamedTuple):
    """A command. more: the flags that its subject (a recipe, a run) adds, with the heading they are shown under."""

    do: Callable[..., int | None]
    more: Callable[[Mapping[str, Any]], tuple[str, list[Flag]]] | None = None
    alias: Mapping[str, str] | None = None


_LABEL = {"class": "label"}
VERBS: dict[str, Verb | dict[str, Verb]] = {
    "train": Verb(train.train, train.own_flags),
    "plan": Verb(plan.plan, train.own_flags),
    "scale": Verb(scale.scale, train.own_flags),
    "sample": Verb(sample.sample, sample.own_flags, _LABEL),
    "reflow": Verb(reflow.reflow, sample.own_flags, _LABEL),
    "evaluate": Verb(evaluate.evaluate, sample.own_flags),
    "play": Verb(play.play),
    "reconstruct": Verb(reconstruct.reconstruct),
    "interpolate": Verb(interpolate.interpolate),
    "directions": Verb(directions.directions),
    "map": Verb(map.map_),
    "anomaly": Verb(anomaly.anomaly),
    "restore": Verb(restore.restore),
    "translate": Verb(translate.translate),
    "data": {"list": Verb(data.list_), "show": Verb(data.show), "get": Verb(data.get)},
    "runs": {
        "list": Verb(runs.list_),
        "show": Verb(runs.show),
        "verify": Verb(runs.verify),
        "report": Verb(runs.report),
    },
    "doctor": Verb(doctor.doctor),
    "completion": Verb(completion.completion),
}


def main(argv: Sequence[str] | None = None, typed: Sequence[str] = ()) -> int:
    """Run a command line; returns the exit code (see `morphogen --help`). typed: what the user typed, if not that."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--complete"]:  # asked by a shell, which wants candidates or silence
        for word, meaning in completion.candidates(words[1:], VERBS, _COMMON):
            print(f"{word}\t{meaning}" if meaning else word)
        return OK
    debug, machine = "--debug" in words, "--json" in words
    common = [w for w in words if w in ("--debug", "--json")]
    words = [w for w in words if w not in common]
    try:
        return _dispatch(words, Tell(machine, common), list(typed) or words)
    except BrokenPipeError:  # the reader of a pipe has left: nothing to say to anybody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        try:
            return _fail("Stopped by Ctrl-C.", 128 + signal.SIGINT, debug, machine)
        except KeyboardInterrupt:  # asked twice
            return 128 + signal.SIGINT
    except Exception as error:
        sentence, code = _judge(error, typed or words)
        return _fail(sentence, code, debug, machine, type(error).__name__ == "Elsewhere")


def _fail(sentence: str, code: int, debug: bool, machine: bool, lost: bool = False) -> int:
    if debug:
        traceback.print_exc()
    if "WORLD_SIZE" in os.environ:  # perhaps one of several processes
        from ..parallel import part

        sentence, code = part(sentence, code, lost)
        if not sentence:
            return code
    if machine:
        print(json.dumps({"event": "error", "text": sentence, "exit": code}), flush=True)
    print(sentence, file=sys.stderr, flush=True)
    return code


def _judge(error: Exception, words: Sequence[str]) -> tuple[str, int]:
    """One sentence for an error, and the exit code."""
    kind = type(error).__name__
    if kind == "Stopped":
        return (
            f"The training was {error}; the same command continues it: {_typed(words)}",
            128 + int(getattr(error, "signum", 0)),
        )
    if kind == "Died":
        return f"{error}; the last checkpoint stands, and the same command continues it: {_typed(words)}", UNEXPECTED
    if kind == "Elsewhere":
        return str(error), UNEXPECTED
    if isinstance(error, UserError):
        return str(error), NOT_FINITE if kind == "NotFinite" else MISTAKE
    if out_of_memory(error):
        return "Memory ran out: take a smaller batch, Trainer(micro=…) or a smaller net.", MISTAKE
    if isinstance(error, OSError) and error.errno is not None:
        where = (
            repr(str(error.filename).removesuffix(".partial")) if error.filename else "a file"
        )  # a name for a moment
        what = {
            errno.ENOENT: f"{where} does not exist: check the path.",
            errno.EACCES: f"{where} may not be read or written by you: choose another path or change its permissions.",
            errno.EPERM: f"{where} may not be changed: choose another path.",
            errno.ENOSPC: f"The disk is full at {where}: free some space; the same command continues a training.",
            errno.EROFS: f"{where} is on a disk that cannot be written: choose another path.",
            errno.EISDIR: f"{where} is a folder where a file is needed.",
            errno.ENOTDIR: f"{where} goes through a file as if it were a folder: check the path.",
            errno.EEXIST: f"{where} is in the way: choose another path.",
            errno.ENAMETOOLONG: f"{_short(where)} is too long a name for this disk: choose a shorter path.",
            errno.EMFILE: f"{where} is one too many open files: allow more (`ulimit -n 4096`) and try again.",
            errno.EDQUOT: f"Your quota of the disk is used up at {where}: free some space; the same command continues a"
            " training.",
            errno.EIO: f"Input/output error at {where}: the disk may be failing; choose a path on another one.",
        }
        return what.get(error.errno, f"{where}: {error.strerror}."), MISTAKE
    if own := recipe.own_fault(error):
        return own, MISTAKE
    return (
        f"Unexpected {recipe.said(error)} (in {recipe.place(error)}): run again with --debug for the traceback.",
        UNEXPECTED,
    )


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 4 :]}"


def _typed(words: Sequence[str]) -> str:
    from .receipts import command

    return command(list(words))


def _dispatch(words: list[str], tell: Tell, typed: list[str]) -> int:
    if "--version" in words[:1]:
        tell.answer("version", {"morphogen": __version__}, f"morphogen {__version__}")
        return OK
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return OK
    name, rest = words[0], words[1:]
    if name not in VERBS:
        raise _no_verb(name)
    verb, command = VERBS[name], f"morphogen {name}"
    if isinstance(verb, dict):
        if rest[:1] in (["-h"], ["--help"]):
            print(_group_help(name, verb))
            return OK
        asked = rest.pop(0) if rest and not rest[0].startswith("-") else "list"
        if asked not in verb:
            if "show" in verb and (asked in data_sets() or (Path(asked) / "spec.json").is_file()):
                raise UserError(f"There is no verb of {name} {asked!r}: did you mean `{command} show {asked}`?")
            raise unknown(f"verb of {name}", asked, verb, f"`{command} --help` lists them all.")
        verb, command = verb[asked], f"{command} {asked}"
    flags = flags_of(verb.do, skip=("context",), positional=True)
    if {"-h", "--help"} & set(rest):
        print(_verb_help(verb, flags, command, [w for w in rest if w not in ("-h", "--help")]))
        return OK
    line = scan(rest, flags, command, verb.alias)
    context = Context(tell, typed, command, line.rest, flags)
    if verb.more is None:
        context.options([], command)
    return verb.do(context, **line.values) or OK


_ELSEWHERE = {"generate": "sample", "draw": "sample", "fit": "train", "test": "evaluate", "score": "evaluate"}


def _no_verb(name: str) -> UserError:
    """The error for a word that is no verb: a recipe, a run or a verb's second half may have been meant as one."""
    meant = [f"morphogen {verb} {name}" for verb, group in VERBS.items() if isinstance(group, dict) and name in group]
    if name in recipe_names() or ".py" in name:
        meant = [f"morphogen train {name}"]
    elif (Path(name) / "spec.json").is_file():
        meant = [f"morphogen {verb} {name}" for verb in ("sample", "evaluate", "runs show")]
    elif name in _ELSEWHERE:
        meant = [f"morphogen {_ELSEWHERE[name]}"]
    if meant:
        said = " or ".join(f"`{line}`" for line in meant)
        return UserError(f"There is no verb {name!r}: did you mean {said}? `morphogen --help` lists them all.")
    return unknown("verb", name, [*VERBS, "--version", "--help"], "`morphogen --help` lists them all.")


# ---- help ----------------------------------------------------------------------------------------------------------


def _first(f: Callable[..., Any]) -> str:
    return summary(f).partition("\n")[0]


def _help() -> str:
    from ..recipes import about

    rows = []
    for name, verb in VERBS.items():
        group = verb if isinstance(verb, dict) else {"": verb}
        rows += [(f"{name} {sub}".strip(), _first(v.do)) for sub, v in group.items()]
    return "\n".join(
        [
            "usage: morphogen VERB … [flags]",
            "",
            "Generative AI from one command: train a recipe, then sample from, measure and compare what it left.",
            "",
            "verbs (morphogen VERB --help explains one):",
            table(rows),
            "",
            "recipes (morphogen train RECIPE; your own: morphogen train FILE.py:FUNCTION):",
            table(about().items()),
            "",
            "flags of every verb:",
            table([*_COMMON, ("--version", "print the version")]),
            "",
            "exit codes:",
            table(_CODES),
        ]
    )


def _group_help(name: str, verbs: Mapping[str, Verb]) -> str:
    rows = [(f"morphogen {name} {sub}", _first(v.do)) for sub, v in verbs.items()]
    return "\n".join([f"usage: morphogen {name} VERB … [flags]", "", table(rows, column=32)])


def _verb_help(verb: Verb, flags: Sequence[Flag], command: str, words: Sequence[str]) -> str:
    places = [f for f in flags if f.positional]
    named = [f for f in flags if not f.positional]
    subject = next((w for w in words if not w.startswith("-")), None)
    used = " ".join([command, *(subject or p.spelled for p in places[:1]), *(p.spelled for p in places[1:])])
    parts = [f"usage: {used} [flags]", "", summary(verb.do)]
    if verb.more is not None and subject is not None:
        heading, own = verb.more(scan(words, flags, command, verb.alias).values)
        parts += ["", heading, described(own) if own else "  none"]
    elif places:
        parts += ["", described(places)]
    return "\n".join([*parts, "", f"flags of {command}:", described(named), table(_COMMON)])
