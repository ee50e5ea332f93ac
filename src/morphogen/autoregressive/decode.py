"""Decoding: functions from logits (B, codes) to logits, before one symbol is drawn. They compose.

    temperature   l / τ                         τ → 0 takes the likeliest
    top k         l where among the k largest, else −∞
    top p         l of the likeliest symbols until their probabilities reach p
    min p         l where the probability is at least m times the largest
    typical       l of the symbols whose −log p is nearest to the entropy, until their probabilities reach p
    repetition    l / r where positive, l r where negative, of symbols that were there
    frequency     l − f · (times that it was there) − g · (whether it was there)
    n-grams       −∞ where an n-gram would come again
    guided        l_∅ + w (l_c − l_∅)           up to a constant p(x | c)^w p(x)^(1 − w); w = 1 is none

Fan, Lewis & Dauphin 2018, "Hierarchical neural story generation", arXiv:1805.04833 (top k); Holtzman et al. 2020, "The
curious case of neural text degeneration", arXiv:1904.09751 (top p); Nguyen et al. 2025, "Turning up the heat",
arXiv:2407.01082 (min p); Meister et al. 2023, "Locally typical sampling", arXiv:2202.00666; Keskar et al. 2019, "CTRL",
arXiv:1909.05858 (repetition); Paulus, Xiong & Socher 2018, arXiv:1705.04304 (n-grams); Sanchez et al. 2023, "Stay on
topic with classifier-free guidance", arXiv:2306.17806.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError

Logits = Float[Tensor, "b codes"]


class Seen(NamedTuple):
    """What a rule may look at: the symbols of each row, how many there are, and were given; the most that may come."""

    tokens: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    given: Int[Tensor, " b"]
    steps: int

    @property
    def left(self) -> Tensor:
        """How many may yet come (B,)."""
        return self.given + self.steps - self.lengths

    @property
    def there(self) -> Tensor:
        """Which of the symbols are there (B, T)."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


Rule = Callable[[Logits, Seen], Logits]
Rules = Sequence[Rule]


def temperature(logits: Logits, tau: float) -> Logits:
    """Logits at the temperature τ; 0 leaves only the likeliest symbol. Raises UserError for a negative one."""
    if not tau >= 0:
        raise UserError(
            f"A temperature of {tau} is none: use 1 for the model's own law, less to be surer, 0 for the best."
        )
    return top_k(logits, 1) if tau == 0 else logits / tau


def top_k(logits: Logits, k: int) -> Logits:
    """The k largest logits, and what is as large as the last of them. Raises UserError for k below 1."""
    if k < 1:
        raise UserError(f"Of the top {k} symbols none can be drawn: use 1 or more.")
    least = logits.topk(min(k, logits.shape[-1]), -1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Logits, p: float) -> Logits:
    """The likeliest symbols until their probabilities reach p, at least one. Raises UserError for p outside 0 to 1."""
    _share("top_p", p)
    order = logits.sort(dim=-1, descending=True, stable=True)
    probs = order.values.softmax(-1)
    late = probs.cumsum(-1) - probs >= p  # those before it reach p already
    late[..., 0] = False
    return logits.masked_fill(late.scatter(-1, order.indices, late), -torch.inf)


def min_p(logits: Logits, m: float) -> Logits:
    """Symbols at least m times as likely as the likeliest. Raises UserError for m outside 0 to 1."""
    _share("min_p", m)
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < m * probs.amax(-1, keepdim=True), -torch.inf)


def typical(logits: Logits, p: float) -> Logits:
    """The symbols whose surprise is nearest to the entropy, until their probabilities reach p, at least one.

    Raises UserError for p outside 0 to 1.
    """
    _share("typical", p)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).nan_to_num(0.0).sum(-1, keepdim=True)
    away = (-logp - entropy).abs()
    order = away.sort(dim=-1, stable=True)
    reached = logp.gather(-1, order.indices).exp().cumsum(-1)
    last = (reached < p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(away > order.values.gather(-1, last), -torch.inf)


def repetition(logits: Logits, seen: Seen, penalty: float) -> Logits:
    """Symbols that were there made less likely (penalty above 1), or likelier. Raises UserError for 0 and below."""
    if not penalty > 0:
        raise UserError(
            f"A repetition penalty of {penalty} is none: use 1 for none, such as 1.2 for fewer repetitions."
        )
    weaker = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(counted(logits, seen) > 0, weaker, logits)


def frequency(logits: Logits, seen: Seen, often: float, once: float = 0.0) -> Logits:
    """`often` less for each time that a symbol was there, and `once` less where it was there at all."""
    times = counted(logits, seen)
    return logits - often * times - once * (times > 0)


def no_ngrams(logits: Logits, seen: Seen, n: int) -> Logits:
    """Never the same n symbols in a row twice. Raises UserError for n below 1."""
    if n < 1:
        raise UserError(f"There is no {n}-gram: use 1 or more.")
    x, b, t = seen.tokens, *seen.tokens.shape
    if t < n:
        return logits
    grams = x.unfold(1, n, 1)  # (B, T − n + 1, n)
    last = seen.lengths[:, None] - torch.arange(n - 1, 0, -1, device=x.device)  # places of the last n − 1
    same = (grams[..., :-1] == x.gather(1, last.clamp(min=0))[:, None]).all(-1)
    whole = torch.arange(n - 1, t, device=x.device) < seen.lengths[:, None]
    again = same & whole & (seen.lengths >= n - 1)[:, None]
    banned = torch.zeros(b, logits.shape[-1], device=x.device).scatter_add_(1, grams[..., -1], again.float())
    return logits.masked_fill(banned > 0, -torch.inf)


def guided(without: Logits, given: Logits, w: float) -> Logits:
    """Classifier-free guidance of weight w on logits without and given the conditions."""
    return torch.lerp(without, given, w)


def merged(logits: Logits, symbols: Sequence[int]) -> Logits:
    """The first of these symbols with the probability of them all, the others with none: ways to end."""
    both = logits[:, list(symbols)].logsumexp(-1)
    others = logits.index_fill(1, torch.tensor(symbols, device=logits.device), -torch.inf)
    return others.index_copy(1, torch.tensor(symbols[:1], device=logits.device), both[:, None])


def counted(logits: Logits, seen: Seen) -> Logits:
    """How often each symbol was there, (B, codes)."""
    return torch.zeros_like(logits).scatter_add_(1, seen.tokens, seen.there.to(logits.dtype))


def rules(
    *,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    ngrams: int | None = None,
    tau: float = 1.0,
    k: int | None = None,
    p: float | None = None,
    m: float | None = None,
    mass: float | None = None,
) -> list[Rule]:
    """The usual rules in the usual order: penalties, temperature, top k, top p, min p, typical."""
    made: list[Rule] = []
    if repetition_penalty != 1:
        made.append(partial(repetition, penalty=repetition_penalty))
    if frequency_penalty or presence_penalty:
        made.append(partial(frequency, often=frequency_penalty, once=presence_penalty))
    if ngrams is not None:
        made.append(partial(no_ngrams, n=ngrams))
    if tau != 1:
        made.append(lambda logits, seen: temperature(logits, tau))
    for rule, value in ((top_k, k), (top_p, p), (min_p, m), (typical, mass)):
        if value is not None:
            made.append(lambda logits, seen, rule=rule, value=value: rule(logits, value))  # type: ignore[misc]
    return made


def applied(logits: Logits, seen: Seen, rules: Rules) -> Logits:
    """The logits after every rule. Raises UserError where nothing is left of a row."""
    for rule in rules:
        logits = rule(logits, seen)
    if rules and bool((logits == -torch.inf).all(-1).any()):
        raise UserError("The rules of decoding leave no symbol that may come next: loosen one of them.")
    return logits


def _share(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise UserError(f"{name} is a share, not {p}: use 0 to 1.")
