"""The hook that looks, and tells each alarm once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..alarms import told
from ..errors import UserError
from ..metrics.judge import Judge
from ..spec import Remembers
from .look import Look
from .signs import SIGNS, Sign

if TYPE_CHECKING:
    from ..train import Training


class Watch(Remembers):
    """Looks at a training every so many steps and says in words what goes wrong: what was seen, its likely cause, and
    what to change. It changes nothing and stops nothing.

    signs: what it looks for, causes before what follows from them (None: all of `SIGNS`). n: how many samples, held-out
    and training items are compared. judge: a classifier whose features compare them and whose classes are counted, such
    as `frozen(RUN)`; without one, their leading principal components do. patience: looks in a row at which a sign must
    be seen to be told. after: no looks before this step. options: the model's own sampling keywords.

    An alarm is told once, by the run's voice and as a line "alarm" of its log, and again only after it was over, or
    where its cause is another one; what is over is told too. Each look leaves a line "watch" with its numbers. What a
    watch knows of earlier looks it reads from the log, so that a run that is resumed tells what the straight one tells.
    """

    def __init__(
        self,
        every: int = 500,
        signs: Sequence[Sign] | None = None,
        n: int = 500,
        judge: Judge | None = None,
        *,
        patience: int = 2,
        after: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if n < 20 or patience < 1:
            raise UserError(f"A Watch has n={n}, patience={patience}: give an n of 20 or more and a patience above 0.")
        self.every, self.n, self.judge = every, n, judge
        self.signs = SIGNS if signs is None else tuple(signs)
        self.patience, self.after, self.options = patience, after, options

    def __call__(self, training: Training) -> None:
        """Look, and tell what is new."""
        if training.step < self.after:
            return
        look = Look(training, self.n, self.judge, self.options)
        found = [alarm for sign in self.signs if (alarm := sign(look)) is not None]
        if training.rank:  # weights in pieces: all ranks look, one speaks
            return
        earlier = [line["signs"] for line in look.lines if "watch" in line]
        lately = earlier[len(earlier) - (self.patience - 1) :]
        lasting = len(earlier) >= self.patience - 1
        training.log.write({"step": look.step, "watch": look.numbers, "signs": [alarm.sign for alarm in found]})
        standing = {t.alarm.sign: t.alarm.cause for t in told(look.lines) if t.over is None}
        for alarm in found:
            if lasting and all(alarm.sign in signs for signs in lately) and standing.get(alarm.sign) != alarm.cause:
                training.log.write({"step": look.step, "alarm": alarm._asdict()})
                training.voice.alarm(look.step, alarm._asdict(), str(alarm))
        for sign in standing:
            if sign not in {alarm.sign for alarm in found}:
                training.log.write({"step": look.step, "over": sign})
                training.voice.say(f"step {look.step}: {sign} is over")
