"""Rules of decoding by hand; beam search, contrastive search and speculation against brute force (oracle A7)."""

from __future__ import annotations

import itertools
import json
import random
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from morphogen.autoregressive import constrain, decode
from morphogen.autoregressive.beam import beam_search
from morphogen.autoregressive.constrain import Constraint
from morphogen.autoregressive.decode import Seen
from morphogen.autoregressive.expression import automaton
from morphogen.autoregressive.generate import generate, greedy
from morphogen.autoregressive.schema import json_schema
from morphogen.autoregressive.search import accept, contrastive, speculative
from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.nets.causal import CausalSequence, CausalTransformer
from morphogen.nets.masked import MADE
from morphogen.nets.recurrent import GRU
from morphogen.nets.transformer import Design

from .test_autoregressive import everything
from .test_nets import awake

P = torch.log(torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]))


def kept(logits: Tensor) -> int:
    return int((logits > -torch.inf).sum())


def test_published_numbers() -> None:
    assert kept(decode.top_p(P, 0.69)) == 2
    assert kept(decode.top_p(P, 0.71)) == 3
    assert kept(decode.top_k(P, 2)) == 2
    assert kept(decode.min_p(P, 0.3)) == 3
    assert kept(decode.typical(P, 0.5)) == 2
    assert kept(decode.top_k(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), 2)) == 3  # ties stay
    seen = Seen(torch.tensor([[0, 1]]), torch.tensor([2]), torch.tensor([2]), 1)
    said = decode.repetition(torch.tensor([[2.0, -1.0]]), seen, 1.5)
    torch.testing.assert_close(said, torch.tensor([[1.333333, -1.5]]))


def test_a_share_of_nothing_keeps_one_and_of_everything_all() -> None:
    for rule in (decode.top_p, decode.typical):
        assert kept(rule(P, 0.0)) == 1
        assert kept(rule(P, 1.0)) == 5
    assert kept(decode.min_p(P, 0.0)) == 5
    assert kept(decode.min_p(P, 1.0)) == 1
    ruled_out = P.clone()
    ruled_out[0, 1] = -torch.inf  # what another rule took away stays away
    for rule in (decode.top_p, decode.typical, decode.min_p):
        assert rule(ruled_out, 0.9)[0, 1] == -torch.inf
        assert not rule(ruled_out, 0.9).isnan().any()


def test_frequencies_count_what_is_there() -> None:
    seen = Seen(torch.tensor([[1, 1, 2, 0], [3, 3, 3, 3]]), torch.tensor([3, 0]), torch.tensor([1, 0]), 4)
    said = decode.frequency(torch.zeros(2, 4), seen, 0.5, 0.25)
    assert said.tolist() == [[0.0, -1.25, -0.75, 0.0], [0.0] * 4]
    assert seen.left.tolist() == [2, 4]


def test_rules_in_a_row_and_mistakes() -> None:
    seen = Seen(torch.tensor([[0, 1, 0]]), torch.tensor([3]), torch.tensor([3]), 1)
    made = decode.rules(
        repetition_penalty=1.5,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        ngrams=2,
        tau=0.5,
        k=4,
        p=0.9,
        m=0.1,
        mass=0.9,
    )
    assert len(made) == 8
    said = decode.applied(P, seen, made)
    assert said[0, 1] == -torch.inf  # 0, 1 was there
    assert decode.rules() == []
    for bad in (
        partial(decode.top_p, P, 1.5),
        partial(decode.min_p, P, -0.1),
        partial(decode.typical, P, 2.0),
        partial(decode.repetition, P, seen, 0.0),
        partial(decode.no_ngrams, P, seen, 0),
    ):
        with pytest.raises(UserError):
            bad()


# ---- beams ---------------------------------------------------------------------------------------------------------


def small(codes: int = 3, length: int = 8, seed: int = 0, **more: object) -> CausalTransformer:
    torch.manual_seed(seed)
    net = CausalTransformer(codes, (length,), width=16, depth=1, heads=2, **more)
    return awake(net, seed + 4).eval()


def log_probs(net: CausalTransformer, x: Tensor) -> Tensor:
    """Of each symbol (R, T)."""
    return net(x).log_softmax(-1).gather(2, x[..., None])[..., 0]


@pytest.mark.parametrize("end", [None, 1])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_full_width_is_the_best_of_all(end: int | None, penalty: float) -> None:
    """Beams enough for every beginning find the sequence of the best score among all."""
    net, prompt = small(), torch.tensor([[2, 0], [1, 1]])
    found = beam_search(net, prompt, beams=27, steps=4, codes=3, end=end, penalty=penalty, early=None)
    every = everything(3, 4)
    for i in range(2):
        logp = log_probs(net, torch.cat((prompt[i].expand(81, 2), every), 1))[:, 2:]
        best = (-torch.inf, [])
        for x, lp in zip(every.tolist(), logp, strict=True):
            n = x.index(end) + 1 if end in x else 4
            best = max(best, (float(lp[:n].sum()) / n**penalty, x[:n]))
        assert float(found.scores[i, 0]) == pytest.approx(best[0], abs=1e-5)
        assert found.tokens[i, 0, 2 : found.lengths[i, 0]].tolist() == best[1]


def test_beams_in_a_batch_are_as_if_alone() -> None:
    net, prompt, lengths = small(5, 12), torch.randint(5, (4, 3)), torch.tensor([3, 0, 1, 2])
    go = partial(beam_search, net, beams=3, steps=7, codes=5, end=4, rules=decode.rules(ngrams=2), chunk=2)
    together = go(prompt, lengths)
    for i, n in enumerate(lengths.tolist()):
        alone = go(prompt[i : i + 1, :n])
        torch.testing.assert_close(alone.scores[0], together.scores[i], atol=1e-5, rtol=1e-5)
        assert torch.equal(alone.lengths[0], together.lengths[i])
        for j, k in enumerate(alone.lengths[0].tolist()):
            assert torch.equal(alone.tokens[0, j, :k], together.tokens[i, j, :k])


def test_groups_shun_each_others_symbols() -> None:
    """Three groups of one beam: each takes the best symbol at its own beginning, less 1.5 for each taken before it."""
    net, prompt = small(6, 9), torch.tensor([[3]])
    found = beam_search(net, prompt, beams=3, steps=4, codes=6, groups=3, diversity=1.5, penalty=0.0)
    rows, scores = [[3], [3], [3]], [0.0] * 3
    for _ in range(4):
        taken = torch.zeros(6)
        for g in range(3):
            logp = net(torch.tensor([[*rows[g], 0]]))[0, -1].log_softmax(-1) - 1.5 * taken
            best = int(logp.argmax())
            rows[g], scores[g] = [*rows[g], best], scores[g] + float(logp[best])
            taken[best] += 1
    expected = sorted(zip(scores, rows, strict=True), reverse=True)
    assert found.tokens[0].tolist() == [r for _, r in expected]
    torch.testing.assert_close(found.scores[0], torch.tensor([s for s, _ in expected]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("expression", ["a", "a{3}b?", "a*", "(a|b)c?|ab{2}", "(a|b|c){0,3}"])
@pytest.mark.parametrize("groups", [1, 2])
def test_constrained_beams_are_the_best_of_all_that_match(expression: str, groups: int) -> None:
    """Many beams find what enumeration finds, few find matches alone; where fewer match, the rest is none."""
    vocabulary, net = ["", "a", "b", "c"], small(4, 8, seed=1)
    texts = [x for n in range(5) for x in itertools.product(range(1, 4), repeat=n)]
    matching = [x for x in texts if re.fullmatch(expression, "".join(vocabulary[i] for i in x))]
    scores = {x: float(log_probs(net, torch.tensor([[*x, 0]])).sum()) / (len(x) + 1) for x in matching}
    best = sorted(scores, key=scores.__getitem__, reverse=True)
    for beams in (2, 4, 128):
        rules, prompt = [Constraint(expression, vocabulary, end=0)], torch.zeros(2, 0, dtype=torch.long)
        found = beam_search(net, prompt, beams=beams, groups=groups, steps=5, codes=4, end=0, rules=rules, early=None)
        assert torch.equal(found.tokens[0], found.tokens[1])
        there = found.scores[0].isfinite()
        drawn = [tuple(x[: n - 1]) for x, n in zip(found.tokens[0].tolist(), found.lengths[0].tolist(), strict=True)]
        drawn = [x for x, real in zip(drawn, there, strict=True) if real]
        assert drawn
        for x, score in zip(drawn, found.scores[0].tolist(), strict=False):
            assert score == pytest.approx(scores[x], abs=1e-5)
        assert (found.lengths[0][~there] == 0).all()
        if beams == 128:
            assert drawn[::groups] == best
            assert len(drawn) == groups * len(best)


def test_fewer_sequences_than_beams_and_no_prompt_at_all() -> None:
    found = beam_search(small(5), torch.tensor([[1, 2]]), beams=9, steps=1, codes=5)
    assert found.scores[0].isfinite().tolist() == [True] * 5 + [False] * 4
    assert found.lengths[0].tolist() == [3] * 5 + [2] * 4
    none = beam_search(small(5), torch.zeros(0, 2, dtype=torch.long), beams=3, steps=2, codes=5)
    assert none.tokens.shape == (0, 3, 4)
    assert none.scores.shape == (0, 3)


# ---- contrastive search --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_contrastive_search_is_its_formula(alpha: float) -> None:
    net = small(5, 12)
    prompt, lengths = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])
    made = contrastive(net, prompt, lengths, k=3, alpha=alpha, steps=6, codes=5, end=0)
    for i, n in enumerate(lengths.tolist()):
        x = prompt[i, :n].tolist()
        for _ in range(6):
            hidden = net.hidden(torch.tensor([[*x, 0]]))[0]  # of what begins, and of each symbol
            probs = net.last(hidden[-1]).softmax(-1)
            scores = {}
            for v in probs.topk(3).indices.tolist():
                h = net.hidden(torch.tensor([[*x, v, 0]]))[0, -1]
                near = float(torch.cosine_similarity(h[None], hidden).max())
                scores[v] = (1 - alpha) * float(probs[v]) - alpha * near
            x.append(max(scores, key=scores.__getitem__))
            if x[-1] == 0:
                break
        assert made.tokens[i, : made.lengths[i]].tolist() == x
    if alpha == 0:
        plain = generate(net, prompt, lengths, steps=6, choose=greedy, codes=5, end=0)
        assert torch.equal(plain.tokens, made.tokens)


def test_contrastive_search_over_a_recurrence_and_mistakes() -> None:
    torch.manual_seed(0)
    net = awake(CausalSequence(4, GRU(5, 6)))
    assert contrastive(net, torch.tensor([[1]]), k=2, alpha=0.5, steps=3, codes=4).tokens.shape == (1, 4)
    with pytest.raises(UserError, match="from 1 to 4"):
        contrastive(net, torch.tensor([[1]]), k=9, alpha=0.5, steps=3, codes=4)
    with pytest.raises(UserError, match="shows no vectors"):
        contrastive(MADE(3, 4), torch.tensor([[1]]), k=2, alpha=0.5, steps=3, codes=4)


# ---- speculation ---------------------------------------------------------------------------------------------------


def test_acceptance_by_hand() -> None:
    """p = (.5, .3, .2), q = (.2, .5, .3): 0.7 are accepted, and what is left is (1, 0, 0)."""
    p, q = torch.tensor([[[0.5, 0.3, 0.2]] * 2]), torch.tensor([[[0.2, 0.5, 0.3]]])
    shares = []
    for x in range(3):
        taken, rest = accept(p, q, torch.tensor([[x]]), torch.tensor([[0.9999]]))
        if not taken:
            torch.testing.assert_close(rest, torch.tensor([[1.0, 0.0, 0.0]]))
        shares.append(min(1.0, float(p[0, 0, x] / q[0, 0, x])))
    assert sum(s * float(q[0, 0, x]) for x, s in enumerate(shares)) == pytest.approx(0.7)
    u = torch.tensor([[0.59], [0.61]])  # symbol 1 is accepted with 0.6
    taken, _ = accept(p.expand(2, 2, 3), q.expand(2, 1, 3), torch.tensor([[1], [1]]), u)
    assert taken.tolist() == [1, 0]


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("ahead", [1, 3])
def test_the_law_of_speculation_is_the_targets(end: int | None, ahead: int) -> None:
    """chi-square of 20,000 over the sequences of 4 symbols: above the bound once in 10^4."""
    net, draft, n = small(3, 4), small(3, 4, seed=1), 20_000
    rules = decode.rules(tau=0.8)
    drawn = speculative(
        net, draft, torch.zeros(n, 0, dtype=torch.long), steps=4, noise=Noise.seeded(7, n), codes=3, ahead=ahead,
        rules=rules, end=end,
    )  # fmt: skip
    with torch.no_grad():
        x = everything(3, 4)
        logp = (net(x) / 0.8).log_softmax(-1).gather(2, x[..., None])[..., 0].double()
        if end is not None:
            over = (x == end).cumsum(1) - (x == end).long() > 0
            alike = (x == end) | ~over  # those that hold nothing but ends after the end
            logp = logp.masked_fill(over, 0.0)
            x, logp = x[alike.all(1)], logp[alike.all(1)]
    expected = logp.sum(1).exp() * n
    code = torch.tensor([27, 9, 3, 1])
    counts = (drawn.tokens @ code).bincount(minlength=81)[x @ code]
    assert counts.sum() == n
    bound = {81: 132.0, 31: 66.7}[len(x)]  # chi2(80).isf(1e-4) = 131.6, chi2(30).isf(1e-4) = 66.6
    assert float(((counts - expected).square() / expected).sum()) < bound
    assert 0.05 < drawn.accepted / drawn.offered < 1


@pytest.mark.parametrize("design", [Design(), Design(window=3, kv_heads=1)])
def test_speculation_is_greedy_where_the_target_is(design: Design) -> None:
    net, draft = small(5, 20, rotary=50.0, design=design), small(5, 20, seed=3)
    prompt, lengths = torch.randint(5, (4, 5)), torch.tensor([5, 1, 3, 0])
    plain = generate(net, prompt, lengths, steps=14, choose=greedy, codes=5, end=4)
    for ahead in (1, 4):
        go = partial(speculative, net, draft, steps=14, codes=5, ahead=ahead, rules=decode.rules(tau=0.0), end=4)
        fast = go(prompt, lengths, noise=Noise.seeded(0, 4), chunk=2)
        assert torch.equal(fast.tokens, plain.tokens)
        assert torch.equal(fast.lengths, plain.lengths)
    itself = speculative(net, net, prompt, lengths, steps=14, codes=5, noise=Noise.seeded(0, 4), end=4)
    assert itself.accepted == itself.offered  # a draft that is the target is always right


def test_a_speculated_row_does_not_depend_on_the_others() -> None:
    net, draft = small(5, 20), small(5, 20, seed=3)
    prompt, lengths, noise = torch.randint(5, (3, 4)), torch.tensor([4, 2, 0]), Noise.seeded(2, 3)
    together = speculative(net, draft, prompt, lengths, steps=9, codes=5, noise=noise, end=1)
    for i, n in enumerate(lengths.tolist()):
        alone = speculative(
            net, draft, prompt[i : i + 1, :n], steps=9, codes=5, noise=Noise(noise.key[i : i + 1]), end=1
        )
        k = int(alone.lengths[0])
        assert together.lengths[i] == k
        assert torch.equal(alone.tokens[0, :k], together.tokens[i, :k])


def test_a_memory_that_cannot_go_back_is_said() -> None:
    net = CausalSequence(4, GRU(5, 6))
    with pytest.raises(UserError, match="cannot go back"):
        speculative(net, net, torch.tensor([[1]]), steps=3, noise=Noise.seeded(0, 1), codes=4)


# ---- constraints ---------------------------------------------------------------------------------------------------

LETTERS = ["", *"abcdefghijklmnopqrstuvwxyz0123456789-.,:{}[]\"'\\ \n+E_é", "ab", "tru", '":', "12", "null", None]
EXPRESSIONS = [
    r"a(b|c)*d",
    r"\d{3}-\d{2,4}",
    r"[a-c]+x?|y{2,}",
    r"(?:ab){1,3}[^a-y0-9]",
    r"-?(0|[1-9]\d*)(\.\d+)?",
    r"\w+\s\w{0,2}",
    r"",
    r"\u0061\x62.\.",
    r"(a|ab)(c|bcd)(d*)",
    r"[\d_-]{2}é",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_drawn_matches_and_nothing_that_matches_is_lost(expression: str) -> None:
    rule = Constraint(expression, LETTERS, end=0)
    n = 60
    x = torch.zeros(n, 0, dtype=torch.long)
    noise, live = Noise.seeded(1, n), torch.ones(n, dtype=torch.bool)
    for t in range(14):
        own = torch.full((n,), t)
        logits = rule(torch.zeros(n, len(LETTERS)), Seen(x, own, torch.zeros(n, dtype=torch.long), 14))
        x = torch.cat((x, noise.categorical(logits)[:, None]), 1)
        live &= x[:, -1] != 0
    assert not live.any()
    texts = ["".join(LETTERS[i] or "" for i in row) for row in x.tolist()]
    assert all(re.fullmatch(expression, t) for t in texts)
    if expression:
        assert len(set(texts)) > 3
    # symbol by symbol: allowed where some continuation matches, by trying all of two more
    alphabet = [i for i, t in enumerate(LETTERS) if t and t in "abcdxy0123-."]
    rule = Constraint(expression, LETTERS, end=0)
    zero = torch.zeros(1, dtype=torch.long)
    first = rule(torch.zeros(1, len(LETTERS)), Seen(x[:1, :0], zero, zero, 20))[0]
    for i in alphabet:
        after = [
            LETTERS[i],
            *(f"{LETTERS[i]}{LETTERS[a]}{LETTERS[b] if b else ''}" for a in alphabet for b in [0, *alphabet]),
        ]
        if any(re.fullmatch(expression, t) for t in after):
            assert first[i] == 0
    assert (first[0] == 0) == bool(re.fullmatch(expression, ""))


def test_a_match_fits_into_what_is_left() -> None:
    rule = Constraint(r"a*b{4}", LETTERS, end=0)
    net = small(len(LETTERS), 12)
    for steps in (5, 6, 9):
        made = generate(
            net, torch.zeros(8, 0, dtype=torch.long), steps=steps, choose=Noise.seeded(steps, 8).categorical,
            codes=len(LETTERS), rules=[rule], end=0,
        )  # fmt: skip
        for row, n in zip(made.tokens.tolist(), made.lengths.tolist(), strict=True):
            assert row[n - 1] == 0
            assert re.fullmatch("a*b{4}", "".join(LETTERS[i] or "" for i in row))
    with pytest.raises(UserError, match="needs 5 more"):
        generate(
            net, torch.zeros(1, 0, dtype=torch.long), steps=3, choose=greedy, codes=len(LETTERS), rules=[rule], end=0
        )


@pytest.mark.parametrize(
    ("expression", "words"),
    [("(a", "not closed"), ("a)", "closes nothing"), ("*a", "nothing stands before"), ("[a", "stops too early"),
     ("a{2,1}", "was expected"), (r"\q", "is not known"), ("(?=a)", "only"), ("^a", "no place"),
     ("Z", "lacks characters"), (r"[a-\d]", "a range goes"), ("[b-a]", "a range goes"), (r"\x+4", "hexadecimal"),
     (r"\x4", "hexadecimal"), ("(" * 5000, "nested too deeply"), ("a{999999}", "was expected"),
     ("(a{999}){999}", "repeat less"), ("(a|b)*a(a|b){20}", "repeat less")],
)  # fmt: skip
def test_expressions_that_cannot_be_followed(expression: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Constraint(expression, LETTERS, end=0)


def test_constraints_of_other_alphabets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="none of the 2 symbols"):
        Constraint("a", ["", "a"], end=2)
    zero = torch.zeros(1, dtype=torch.long)
    with pytest.raises(UserError, match="logits are of 5"):
        Constraint("a", ["", "a"], end=0)(torch.zeros(1, 5), Seen(zero[:, None], zero, zero, 3))
    monkeypatch.setattr(constrain, "_ROOM", 50)
    with pytest.raises(UserError, match="would not fit into memory"):
        Constraint("a{40,}", ["", "a"], end=0)


def test_what_others_call_a_space_or_a_digit_is_none_of_what_is_no_such_thing() -> None:
    vocabulary = ["", *map(chr, range(0x250)), *map(chr, range(0x1680, 0x3001)), "\ufeff"]
    zero = torch.zeros(1, dtype=torch.long)
    for expression in (r"\S", r"[^\s]", r"\s", r"\D", r"[^\d]", r"\W", r"[^\w]", r"\w"):
        rule = Constraint(expression, vocabulary, end=0)
        said = rule(torch.zeros(1, len(vocabulary)), Seen(zero[:, None][:, :0], zero, zero, 3))[0]
        allowed = [t for t, l in zip(vocabulary, said.tolist(), strict=True) if l == 0]
        assert all(re.fullmatch(expression, t) for t in allowed)
        assert len(allowed) > (5 if expression in (r"\s", r"\w") else 500)


class Counts:
    """A table that counts how often single places of it are read."""

    def __init__(self, table: Any) -> None:
        self.table, self.shape, self.read = table, table.shape, 0

    def __getitem__(self, at: Any) -> Any:
        self.read += isinstance(at, tuple)
        return self.table[at]


def test_each_symbol_is_walked_over_once_and_rows_may_change_places() -> None:
    """Rows that grow, change places as beams do, and go back as drafts do: the answer is that of a fresh rule."""
    expression = "(a|b)*c{0,3}"
    rule: Any = Constraint(expression, LETTERS, end=0)
    rule.after = Counts(rule.after)
    torch.manual_seed(0)
    given, letters = [2, 1, 0, 2], [LETTERS.index(t) for t in ("a", "b", "ab")]
    said: list[list[int]] = [[] for _ in given]
    walked = 0
    for step in range(120):
        parents = torch.randint(4, (4,)).tolist() if step % 3 == 0 else range(4)
        said = [said[p][: -3 if step % 10 == 0 else None] for p in parents]
        said = [[*row, letters[int(torch.randint(3, ()))]] for row in said]
        walked += len(said)
        rows = [torch.tensor([5] * g + row) for g, row in zip(given, said, strict=True)]
        n = torch.tensor([len(r) for r in rows])
        seen = Seen(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), n, torch.tensor(given), 400)
        found = rule(torch.zeros(4, len(LETTERS)), seen)
        if step % 20 == 0:
            assert torch.equal(found, Constraint(expression, LETTERS, end=0)(torch.zeros(4, len(LETTERS)), seen))
    assert rule.after.read <= walked


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 4},
        "kind": {"enum": ["a", "b c", 3, None]},
        "size": {"$ref": "#/$defs/size"},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "integer"}, "maxItems": 2}]},
        "code": {"type": "string", "pattern": "^x[0-9]{2}$"},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
    "$defs": {"size": {"type": ["integer", "number"]}},
}


def test_texts_of_a_schema_are_valid() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    characters = sorted(set(map(chr, range(32, 127))))
    vocabulary = ["", *characters, '{"', '":', "true", "false", "null", ", "]
    rule = Constraint(json_schema(SCHEMA), vocabulary, end=0)
    net, n = small(len(vocabulary), 160), 24
    made = generate(
        net, torch.zeros(n, 0, dtype=torch.long), steps=150, choose=Noise.seeded(0, n).categorical,
        codes=len(vocabulary), rules=[rule], end=0,
    )  # fmt: skip
    texts = ["".join(vocabulary[i] for i in row) for row in made.tokens.tolist()]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    keys = set(itertools.chain.from_iterable(json.loads(t) for t in texts))
    assert len(keys) > 3  # optional ones come and go
    assert len({tuple(json.loads(t)) for t in texts}) > 3


# (schema, texts that are valid and spelled, texts that are not to be let through)
SCHEMAS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "string", "pattern": '"+'}, [r'"\""', r'"\"\""'], ['"""', '""']),
    ({"type": "string", "pattern": "[^a]"}, ['"b"', r'"\n"', r'"\""', r'"\\"'], ['"a"', '"""', '"\n"', '"\\"']),
    ({"type": "string", "pattern": "^.$"}, ['"b"', r'"\t"', r'"\u0001"'], [r'"\n"', '"\u2028"', '"""']),
    ({"type": "string", "pattern": r"\s\\"}, [r'" \\"', r'"\t\\"'], ['" \\"', r'"a\\"']),
    ({"type": "string", "pattern": r"a\$"}, ['"a$"'], ['"a"', r'"a\$"']),
    ({"type": "string", "pattern": r"a\\$"}, [r'"a\\"'], ['"a$"', '"a"']),
    ({"type": "string", "pattern": "(a|b){2}c*"}, ['"ab"', '"bbcc"'], ['"a"', '"abc"c']),
    ({"type": "string", "pattern": r"[\x00-\x22\u005b-\u005d]"}, ['"["', r'"\\"', r'"\u0000"'],
     ['"a"', '"\x00"', '"""']),
    ({"type": "string", "enum": [1, "a", None]}, ['"a"'], ["1", "null"]),
    ({"type": ["integer", "null"], "enum": [1, 1.5, 2.0, None, True]}, ["1", "2.0", "null"], ["1.5", "true"]),
    ({"const": 'q"\\'}, [r'"q\"\\"'], []),
    ({"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, ["12", '"a"'], ["1.5", '"ab"']),
    ({"oneOf": [{"const": 1}, {"enum": [True, "1", 2]}]}, ["1", "true", '"1"'], ["3"]),
    ({"type": "integer", "minLength": 3}, ["1"], ["1.0", '"abc"']),
    ({"type": "array", "items": {"const": 1}, "minItems": 2.0}, ["[1, 1]", "[1,1,1]"], ["[1]", "[]"]),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, ["null"], ["true"]),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]},
     ['{"b": 2}', '{"a": 1,"b": 2}', '{"b":2, "c": 3}', '{"a": 1, "b": 2, "c": 3}'],
     ["{}", '{"a": 1}', '{"a": 1 "b": 2}']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "wrong"), SCHEMAS)
def test_texts_of_small_schemas(schema: dict[str, Any], valid: list[str], wrong: list[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    expression = json_schema(schema)
    machine = automaton(expression, {*map(chr, range(0x100)), "\u2028"})

    def accepts(text: str) -> bool:
        state = 0
        for c in text:
            state = machine.after[state, machine.kinds[c]]
        found = bool(machine.accepts[state])
        assert found == bool(re.fullmatch(expression, text))
        return found

    for text in valid:
        assert accepts(text)
        jsonschema.validate(json.loads(text), schema)
    assert not any(map(accepts, [*wrong, "", " ", "nul"]))


def any_schema(r: random.Random, depth: int = 0) -> dict[str, Any]:
    """Keywords put together at random, some of which no value or no reader can follow."""
    values = [0, 1, 1.0, 2.5, -3, "a", 'q"\\', "", None, True, False, [1], {"a": 1}]
    inner = (
        [any_schema(r, depth + 1) for _ in range(3)]
        if depth < 2
        else [{"type": "null"}, {"const": 1}, {"enum": [2, "a"]}]
    )
    keys: dict[str, Any] = {
        "type": r.choice(["string", "integer", "number", "boolean", "null", "array", "object", ["integer", "string"]]),
        "enum": r.sample(values, 3),
        "const": r.choice(values),
        "anyOf": inner[:2],
        "oneOf": inner[:2],
        "items": inner[0],
        "minItems": r.randrange(3),
        "maxItems": r.randrange(4),
        "properties": dict(zip(["a", 'b"', "c"], inner, strict=True)),
        "required": r.sample(["a", 'b"', "c"], r.randrange(3)),
        "minLength": r.randrange(3),
        "maxLength": r.randrange(4),
        "pattern": r.choice(['"+', "[^a-z]x?", "^.a$", r"\\|\s", '(ab|"){1,2}', r"[\x00-\x7f]", r"\S\W\D", "a$"]),
    }
    if r.random() < 0.5:  # what belongs together
        of = {"array": ("items", "minItems", "maxItems"), "object": ("properties", "required")}
        of["string"] = r.choice([("minLength", "maxLength"), ("pattern",)])
        kind = r.choice([*of, "enum", "oneOf", "anyOf"])
        return {"type": kind} | {k: keys[k] for k in of[kind] if r.random() < 0.8} if kind in of else {kind: keys[kind]}
    return {k: keys[k] for k in r.sample(list(keys), r.randrange(1, 4))}


def test_no_text_of_any_schema_is_against_it() -> None:
    """Schemas drawn at random: each is refused in a sentence, or all texts that are drawn of it are valid."""
    jsonschema = pytest.importorskip("jsonschema")
    followed, r = 0, random.Random(0)
    for _ in range(120):
        schema = any_schema(r)
        try:
            expression = json_schema(schema)
        except UserError:
            continue
        machine = automaton(expression, {*map(chr, range(128)), "é", "\u2028"})
        live = machine.accepts.copy()
        for _ in range(len(live)):
            live |= live[machine.after].any(1)
        if not live[0]:
            continue
        followed += 1
        for _ in range(6):
            state, text = 0, ""
            while not (machine.accepts[state] and (len(text) > 60 or not live[machine.after[state]].any())):
                go = [c for c, k in machine.kinds.items() if live[machine.after[state, k]]]
                if machine.accepts[state] and r.random() < 0.3:
                    break
                c = r.choice(go)
                state, text = machine.after[state, machine.kinds[c]], text + c
            jsonschema.validate(json.loads(text), schema)
    assert followed > 30


def test_schemas_that_cannot_be_followed() -> None:
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        nested = {"type": "array", "items": nested}
    laughs = {f"l{i}": {"anyOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 9} for i in range(9)} | {"l9": {"type": "null"}}
    text, some = {"type": "string"}, {"type": "object", "properties": {"a": {"type": "null"}}}
    schema: Any
    for schema, words in (
        ({"type": "object", "properties": {}, "minProperties": 2}, "keyword"),
        ({"type": "strin"}, "did you mean 'string'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}, "refers to itself"),
        ({"$ref": "#/nothing"}, "not in it"),
        ({"$ref": "#"}, "not in it"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "none of its properties"),
        ({"type": "object", "additionalProperties": True}, "allows any name"),
        ({"enum": [float("nan")]}, "which JSON has not"),
        ({"const": {"a": [float("inf")]}}, "which JSON has not"),
        ({"const": {1, 2}}, "which JSON has not"),
        ({"enum": [1, 2], "minLength": 2}, "'enum' beside 'minLength'"),
        ({"enum": [1], "const": 2}, "'enum' beside 'const'"),
        ({"anyOf": [text], **some}, "'anyOf' beside 'properties'"),
        ({"oneOf": [text], "type": "string"}, "'oneOf' beside 'type'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": text}, "minLength": 3}, "'[$]ref' beside 'minLength'"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "two at once"),
        ({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}, "two at once"),
        ({"oneOf": [text, {"type": ["null", "string"]}]}, "two at once"),
        ({"oneOf": [some, {}]}, "two at once"),
        ({"oneOf": [text, {"properties": {}}]}, "two at once"),  # of which any string is one
        ({"enum": []}, "allows no value"),
        ({"enum": [1], "type": "string"}, "allows no value"),
        ({"enum": 3}, "a list of values"),
        ({"anyOf": []}, "a list of schemas"),
        ({"type": []}, "empty list of types"),
        ({}, "says no type"),
        ({"type": {}}, "no type"),
        ({"type": "object", "properties": [1]}, "'properties' of"),
        ({"type": "object", "properties": {"a": 3}}, "is an object"),
        ({"type": "object", "required": "ab"}, "'required' of"),
        ({"type": "array", "maxItems": 0, "minItems": 1}, "allows nothing"),
        ({"type": "string", "maxLength": 1, "minLength": 2}, "allows nothing"),
        ({"type": "string", "minLength": "2"}, "a whole number"),
        ({"type": "string", "minLength": float("nan")}, "a whole number"),
        ({"type": "array", "minItems": -1}, "a whole number"),
        ({"type": "array", "minItems": True}, "a whole number"),
        ({"type": "string", "pattern": "a", "maxLength": 2}, "'pattern' beside 'maxLength'"),
        ({"type": "string", "pattern": "a|^b"}, "no place"),
        ({"type": "string", "pattern": "a$b"}, "no place"),
        ({"type": "string", "pattern": "a)(b"}, "closes nothing"),
        ({"type": "string", "pattern": "(a"}, "not closed"),
        ({"type": "string", "pattern": "[]a]"}, "in two ways"),
        ({"type": "string", "pattern": "(?=a)"}, "nothing stands before"),
        ({"type": "string", "pattern": 3}, "as a string"),
        (nested, "nested too deeply"),
        ({"$ref": "#/$defs/l0", "$defs": laughs}, "more than 10,000"),
        ({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(2000)}}, "too many properties"),
    ):
        with pytest.raises(UserError, match=words):
            json_schema(schema)
    assert re.fullmatch(json_schema({"type": "array", "maxItems": 0}), "[]")
