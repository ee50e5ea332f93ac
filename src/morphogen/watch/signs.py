"""The signs that a watch looks for. Each is an object that is called with a `Look` and answers None or an `Alarm`.

A critic is a phase that logs "real" and "fake", the means of its scores, and "right", the share of scores on the right
side (of pairs in the right order, in games of differences). Losses and gradient norms are in the log for every phase.

Thresholds were chosen on runs of other seeds than those that the tests hold them against; docs/adversarial.md says how
near to them healthy trainings come.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

from ..adversarial.losses import Game
from ..alarms import Alarm
from ..metrics.memorisation import memorised, nearest
from ..spec import Remembers
from .look import Look, deviation
from .series import turn


@runtime_checkable
class Sign(Protocol):
    """Something that may be wrong with a training."""

    def __call__(self, look: Look) -> Alarm | None: ...


class Dead(Remembers):
    """No gradient reaches a part, or samples do not depend on the noise.

    gradient: norm since the last look, over the largest so far, at or below which it counts as none. spread: likewise
    the deviation of samples of one condition, over that of held-out items.
    """

    def __init__(self, gradient: float = 1e-6, spread: float = 1e-3) -> None:
        self.gradient, self.spread = gradient, spread

    def __call__(self, look: Look) -> Alarm | None:
        """Look at gradients and samples."""
        playing = [phase for phase in look.phases("grad_norm") if phase not in look.idle]
        for name in ("grad_norm", *(f"{phase}.grad_norm" for phase in playing)):
            norm, most = look.mean(name), max(look.series(name), default=0.0)
            if norm is not None and norm <= max(self.gradient * most, 1e-12):
                part = name.removesuffix(".grad_norm") if "." in name else "the loss"
                return Alarm(
                    "dead gradients",
                    f"the gradient of {part} has a norm of {norm:.2g} since the last look; at most it was {most:.2g}",
                    "units that are saturated or switched off for every input, or a loss that is flat here",
                    "a smaller learning rate, activations that do not die (SiLU, leaky ReLU), no clamp in the loss",
                )
        if look.spread is not None and look.spread <= self.spread:
            return Alarm(
                "dead gradients",
                f"samples of different noise are the same: they deviate by {look.spread:.2g} of what held-out items do",
                "no way from the noise to the output is open, so that no gradient can teach the net to use it",
                "look at what the noise meets first (dead units, a gain of 0); a smaller learning rate, new weights",
            )
        return None


class WeakCritic(Remembers):
    """The critic does not learn, or not fast enough to keep its scores of real items above those of made ones.

    lines: the share of log lines since the last look in which made items score higher, while no more than `right` of
    the scores are right.
    """

    def __init__(self, lines: float = 0.9, right: float = 0.4) -> None:
        self.lines, self.right = lines, right

    def __call__(self, look: Look) -> Alarm | None:
        """Look at the critic's weights and scores."""
        before = look.looks[-1].get("norms", {}) if look.looks else {}
        for name, norm in look.weights.items():
            if norm == before.get(name):
                return Alarm(
                    "critic does not learn",
                    f"not one weight of {name} has changed since the last look",
                    f"no phase trains {name}, or one does with a learning rate of 0 or a loss that it has no part in",
                    f"a phase that trains ({name!r},), an optimiser for it, a learning rate above 0",
                )
        for phase in look.phases("real"):
            pairs = zip(look.values(f"{phase}.real"), look.values(f"{phase}.fake"), strict=False)
            gaps = [real - fake for real, fake in pairs]
            wrong = sum(gap < 0 for gap in gaps)
            right = look.mean(f"{phase}.right")
            if len(gaps) >= 3 and wrong >= self.lines * len(gaps) and right is not None and right <= self.right:
                return Alarm(
                    "critic does not learn",
                    f"made items score higher than real ones in {wrong} of {len(gaps)} lines of the log, by"
                    f" {-sum(gaps) / len(gaps):.3g} on average",
                    "the critic does not keep up with the generator",
                    "a larger learning rate or more steps for the critic, a larger critic, weaker penalties",
                )
        return None


class StrongCritic(Remembers):
    """The critic is so sure that its gradients lead nowhere, and samples get no better.

    Either its scores, as logits, lie `gap` apart, `sure` of them on the right side, while samples cover less than
    `coverage` of what two draws of one law do; or `right` of them are on the right side, whatever they are, and no more
    than `precision` of the samples are near to a real item. gain: the rise of coverage since the last look from which
    on samples get better. A Wasserstein critic cannot be too strong, and is left alone.
    """

    def __init__(
        self,
        gap: float = 8.0,
        sure: float = 0.8,
        coverage: float = 0.5,
        right: float = 0.98,
        precision: float = 0.1,
        gain: float = 0.05,
    ) -> None:
        self.gap, self.sure, self.coverage = gap, sure, coverage
        self.right, self.precision, self.gain = right, precision, gain

    def __call__(self, look: Look) -> Alarm | None:
        """Look at scores and samples."""
        game = look.model.game if isinstance(look.model, Plays) else None
        if look.near is None or look.gained(self.gain) or (game is not None and not (game.border or game.compares)):
            return None
        covered, near = look.near.coverage.value, look.near.precision.value
        for phase in look.phases("right"):
            right, real, fake = (look.mean(f"{phase}.{k}") or 0.0 for k in ("right", "real", "fake"))
            sure = right >= self.sure and real - fake >= self.gap and covered < self.coverage * look.expected
            if sure or (right >= self.right and near <= self.precision):
                return Alarm(
                    "critic too strong",
                    f"{right:.0%} of its scores are right, real items at {real:.3g} and made ones at {fake:.3g} on"
                    f" average, while samples cover {covered:.0%} of held-out items and get no better",
                    "it learns so much faster than the generator that it is sure of everything, and its gradients lead"
                    " nowhere",
                    "a smaller learning rate or fewer steps of the critic, a gradient penalty (R1), a Wasserstein game",
                )
        return None


@runtime_checkable
class Plays(Protocol):
    """A model that plays a game which it names."""

    game: Game


class Oscillation(Remembers):
    """Scores or losses go round without coming to rest: the players chase each other.

    window: the newest lines of the log that are looked at. correlation: of the series with itself, a whole turn later
    and, negative, half a turn later. lasting: deviation of its newer half over that of the older. A turn must take six
    lines of the log or more, and go into the window twice.
    """

    def __init__(self, window: int = 100, correlation: float = 0.6, lasting: float = 0.7) -> None:
        self.window, self.correlation, self.lasting = window, correlation, lasting

    def __call__(self, look: Look) -> Alarm | None:
        """Look at the scores and losses of games."""
        names = [f"{p}.{k}" for p in look.phases("real") for k in ("real", "fake")]
        for name in (*names, *(f"{p}.loss" for p in look.phases("loss"))):
            found = turn(look.series(name)[-self.window :])
            if found is None or min(-found.half, found.whole) < self.correlation or found.kept < self.lasting:
                continue
            steps = found.length * (look.trained[-1]["step"] - look.trained[-2]["step"])
            return Alarm(
                "oscillation",
                f"{name} goes round in about {steps} steps (its correlation with itself is {found.half:.2f} half a turn"
                f" later and {found.whole:.2f} a whole one) and keeps {found.kept:.0%} of its swing",
                "the players answer each other in turn and too late, as gradients do in a game without friction",
                "a gradient penalty (R1), smaller learning rates, less momentum (betas[0] of 0), averaged weights",
            )
        return None


class Leak(Remembers):
    """Conditions give the answer away in training, and are worth nothing on held-out items.

    A condition's worth is by how much a loss rises when conditions are exchanged among items. What a model has learned
    of a condition is worth it on items that it never saw, too; what only tells which training item this is (its number,
    a mark in it, a label made of the answer) is not.

    kept: the least share of its worth that a condition has on held-out items where all is well. errors: how many
    standard errors both differences must be apart from 0.
    """

    def __init__(self, kept: float = 0.25, errors: float = 2.0) -> None:
        self.kept, self.errors = kept, errors

    def __call__(self, look: Look) -> Alarm | None:
        """Look at what conditions are worth."""
        for phase, (there, here) in look.worth.items():
            short, error = self.kept * there.value - here.value, math.hypot(self.kept * there.error, here.error)
            if there.value > max(0.0, self.errors * there.error) and short > self.errors * error:
                return Alarm(
                    "label leak",
                    f"when conditions are exchanged, {phase} rises by {there.value:.3g} on training items and by"
                    f" {here.value:.3g} on held-out ones",
                    "the condition says which training item this is, or a mark gives it away, so that nothing of the"
                    " data themselves has to be learned",
                    "look at what the condition is made of (a number of the item, the answer itself); use conditions"
                    " that many items share, and drop them now and then",
                )
        return None


class Unheard(Remembers):
    """Samples look real, but not like what was asked for. Needs a judge.

    agreement: the share of samples read as the class asked for, over the share of held-out items read as what they are.
    precision: of samples, from which on they look real.
    """

    def __init__(self, agreement: float = 0.4, precision: float = 0.5) -> None:
        self.agreement, self.precision = agreement, precision

    def __call__(self, look: Look) -> Alarm | None:
        """Look at classes asked for and classes read."""
        if look.asked is None or look.near is None or look.near.precision.value < self.precision or not look.hears:
            return None
        right, most = look.asked
        if right > self.agreement * most:
            return None
        return Alarm(
            "label ignored",
            f"{right:.0%} of the samples are read as the class asked for, of held-out items {most:.0%}",
            "the net is told the label where it can do without, or training pairs labels with the wrong items",
            "check the labels against the items; tell the critic the label too (projection, auxiliary classifier), or"
            " guide the samples",
        )


class Memorisation(Remembers):
    """Samples are copies of training items.

    share: of samples that are nearer to a training item than 99 % of held-out items are. excess: the share of samples
    whose nearest item is one of training and not held out, on its way from chance (0) to all (1).
    """

    def __init__(self, share: float = 0.2, excess: float = 0.5) -> None:
        self.share, self.excess = share, excess

    def __call__(self, look: Look) -> Alarm | None:
        """Look at the samples' nearest items."""
        if look.recorded is None or look.drawn is None or look.test is None:
            return None
        train, test = look.recorded, look.test[0]
        copied = memorised(look.drawn, train, test)
        side = float((nearest(look.drawn, train)[0] < nearest(look.drawn, test)[0]).double().mean())
        chance = len(train) / (len(train) + len(test))
        excess = (side - chance) / (1 - chance)
        look.numbers |= {"memorised": round(copied.value, 4), "nearer": round(excess, 4)}
        if copied.low < self.share or excess < self.excess:
            return None
        return Alarm(
            "memorisation",
            f"{copied.value:.0%} of the samples are nearer to a training item than 99 % of held-out items are, and"
            f" {side:.1%} nearer to one than to any held-out item, where chance has {chance:.1%}",
            "the model has room for every training item, and was trained until it had them",
            "the best held-out checkpoint, more data or augmentation, a smaller net, dropout",
        )


class Collapse(Remembers):
    """Samples show few of the kinds that held-out items have, and that gets no better; or the training items do.

    coverage: of held-out items by samples (by training items), over what two draws of one law have. precision: of
    samples, from which on they look real, so that it is kinds that they lack. spread: their deviation over that of
    held-out items, at or below which they are all alike, real or not. missing: the share of held-out items whose
    classes have less than `rare` of their share among samples, where there is a judge. gain: the rise of coverage since
    the last look from which on it gets better.
    """

    def __init__(
        self,
        coverage: float = 0.4,
        precision: float = 0.5,
        spread: float = 0.3,
        missing: float = 0.1,
        rare: float = 0.2,
        gain: float = 0.05,
    ) -> None:
        self.coverage, self.precision, self.spread = coverage, precision, spread
        self.missing, self.rare, self.gain = missing, rare, gain

    def __call__(self, look: Look) -> Alarm | None:
        """Look at training items and samples beside held-out ones."""
        return self._of_data(look) or self._of_samples(look)

    def _of_data(self, look: Look) -> Alarm | None:
        if look.floor is None or look.test is None or look.train is None:
            return None
        had, expected = look.floor.coverage.value, look.expected
        if had >= self.coverage * expected:
            return None
        return Alarm(
            "mode collapse of the data",
            f"training items cover {had:.0%} of held-out items, where two draws of one law have {expected:.0%}",
            "the training data lack kinds that the held-out data have",
            "look at how the two parts were split, sorted or filtered; train on all kinds",
        )

    def _of_samples(self, look: Look) -> Alarm | None:
        near = look.near
        if near is None or look.test is None or look.drawn is None:
            return None
        x, _ = look.test
        covered, real, expected = near.coverage.value, near.precision.value, look.expected
        wide = float(deviation(look.drawn) / deviation(x).clamp(min=1e-12))
        lost = look.lost(self.rare)
        look.numbers |= {"deviation": round(wide, 4), **({} if lost is None else {"missing": round(lost, 4)})}
        if look.gained(self.gain):
            return None
        if covered < self.coverage * expected and real >= self.precision:
            seen = f"samples look real ({real:.0%} near to a held-out item) but cover {covered:.0%} of held-out items"
        elif lost is not None and lost >= self.missing and real >= self.precision:
            seen = f"samples look real ({real:.0%} near to a held-out item) but lack the classes of {lost:.0%} of them"
        elif wide <= self.spread:
            seen = f"samples are all alike: they deviate by {wide:.2g} of what held-out items do"
        else:
            return None
        return Alarm(
            "mode collapse",
            seen,
            "the generator has settled on what passes, and nothing rewards it for variety",
            "penalties on the critic (R1, R2) and a relativistic game, a slower generator, larger batches",
        )


SIGNS: tuple[Sign, ...] = (
    Dead(),
    WeakCritic(),
    StrongCritic(),
    Oscillation(),
    Leak(),
    Unheard(),
    Memorisation(),
    Collapse(),
)
