"""Going on from prompts: rows of any lengths, ends, chunks, streams, and the law of what is drawn (oracles A5, A7)."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from morphogen.autoregressive import Autoregressive, decode
from morphogen.autoregressive.beam import beam_search
from morphogen.autoregressive.generate import Generated, Passes, generate, greedy, started, stream
from morphogen.autoregressive.search import speculative
from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.nets.causal import Causal, CausalSequence, CausalTransformer
from morphogen.nets.dilated import WaveNet
from morphogen.nets.masked import MADE
from morphogen.nets.recurrent import LSTM
from morphogen.nets.transformer import Design

from .test_autoregressive import everything
from .test_nets import awake

NETS = {
    "transformer": lambda: CausalTransformer(5, (16,), width=16, depth=2, heads=2),
    "window": lambda: CausalTransformer(
        5, (16,), width=16, depth=2, heads=2, rotary=50.0, design=Design(window=3, kv_heads=1)
    ),
    "lstm": lambda: CausalSequence(5, LSTM(6, 8)),
    "wavenet": lambda: CausalSequence(5, WaveNet(6, 8, largest=4)),
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> Causal:
    torch.manual_seed(0)
    return awake(NETS[request.param](), 4)


def slowly(net: Causal, prompt: list[int], steps: int, end: int | None) -> list[int]:
    """Greedy, by a whole pass for each symbol."""
    x = list(prompt)
    for _ in range(steps):
        logits = net(torch.tensor([[*x, 0]]))[0, -1]
        x.append(int(logits.argmax()))
        if x[-1] == end:
            break
    return x


@pytest.mark.parametrize("end", [None, 3])
@pytest.mark.parametrize("chunk", [None, 2])
def test_ragged_prompts_in_one_batch_are_as_if_alone(net: Causal, end: int | None, chunk: int | None) -> None:
    prompts = [[1, 2, 0, 4, 1], [2], [], [0, 1, 4]]
    x = torch.tensor([p + [0] * (5 - len(p)) for p in prompts])
    lengths = torch.tensor([len(p) for p in prompts])
    made = generate(net, x, lengths, steps=8, choose=greedy, codes=5, end=end, chunk=chunk)
    for i, prompt in enumerate(prompts):
        expected = slowly(net, prompt, 8, end)
        assert made.tokens[i, : made.lengths[i]].tolist() == expected
        assert (made.tokens[i, made.lengths[i] :] == (0 if end is None else end)).all()
        alone = generate(net, torch.tensor([prompt], dtype=torch.long), steps=8, choose=greedy, codes=5, end=end)
        assert alone.tokens[0, : alone.lengths[0]].tolist() == expected


def test_a_stream_says_each_symbol_when_it_is_there(net: Causal) -> None:
    prompt, lengths = torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    said: list[list[int]] = [[], []]
    last: Generated | None = None
    for x, was, so_far in stream(net, prompt, lengths, steps=7, choose=greedy, codes=5, end=4):
        last = so_far
        for i in range(2):
            said[i] += [int(x[i])] if was[i] else []
    whole = generate(net, prompt, lengths, steps=7, choose=greedy, codes=5, end=4)
    for i, n in enumerate(lengths):
        assert said[i] == whole.tokens[i, n : whole.lengths[i]].tolist()
    assert last is not None
    assert torch.equal(last.tokens, whole.tokens)


def test_what_is_drawn_does_not_depend_on_the_batch(net: Causal) -> None:
    model = Autoregressive(net, (9,), 5, end=2)
    prompt, lengths = torch.tensor([[1, 0, 3]] * 4), torch.tensor([3, 1, 0, 2])
    rules = decode.rules(tau=1.3, p=0.95, repetition_penalty=1.2)
    noise = Noise.seeded(1, 4)
    together = model.generate(prompt, lengths, rules=rules, noise=noise)
    for i in range(4):
        alone = model.generate(prompt[i : i + 1], lengths[i : i + 1], rules=rules, noise=Noise(noise.key[i : i + 1]))
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert alone.lengths[0] == together.lengths[i]


def test_sequences_that_end_sum_to_one() -> None:
    """Over all that end within 4 symbols and all of 4 that do not, the probabilities are a law (1e-6)."""
    torch.manual_seed(0)
    net = awake(CausalTransformer(3, (4,), width=16, depth=1, heads=2), 4)
    model = Autoregressive(net, (4,), 3, end=1).double()
    total, found = 0.0, 0
    for n in range(1, 5):
        for body in itertools.product([0, 2], repeat=n - 1):
            for last in [1] if n < 4 else [0, 1, 2]:
                x = torch.tensor([[*body, last] + [1] * (4 - n)])
                total += float(model.log_prob(x).exp())
                other = torch.tensor([[*body, last] + [0] * (4 - n)])  # what follows counts for nothing
                assert torch.allclose(model.log_prob(other), model.log_prob(x)) == (last == 1 or n == 4)
                found += 1
    assert found == 1 + 2 + 4 + 3 * 8
    assert total == pytest.approx(1, abs=1e-6)


def test_lengths_are_read_from_the_ends() -> None:
    model = Autoregressive(MADE(4, 3, (8,)), (4,), 3, end=2)
    x = torch.tensor([[0, 2, 2, 2], [0, 1, 0, 1], [2, 0, 0, 2], [1, 1, 1, 2]])
    assert model.lengths(x).tolist() == [2, 4, 1, 4]


def test_samples_with_an_end_follow_their_law() -> None:
    """chi-square of 30,000 samples over the 31 sequences above: beyond the bound once in 10^4."""
    torch.manual_seed(0)
    net = awake(CausalTransformer(3, (4,), width=16, depth=1, heads=2), 2)
    model, n = Autoregressive(net, (4,), 3, end=1), 30_000
    with torch.no_grad():
        x = everything(3, 4)
        x = x[[bool((row[int(k) :] == 1).all()) for row, k in zip(x, model.lengths(x), strict=True)]]
        assert len(x) == 31
        expected = model.log_prob(x).double().exp() * n
        drawn = model.sample(n, noise=Noise.seeded(3, n))
    code = torch.tensor([27, 9, 3, 1])
    counts = (drawn @ code).bincount(minlength=81)[x @ code]
    assert counts.sum() == n
    assert float(((counts - expected).square() / expected).sum()) < 67.0  # chi2(30).isf(1e-4) = 66.6


def test_the_loss_is_over_the_symbols_that_are_there() -> None:
    torch.manual_seed(0)
    model = Autoregressive(awake(CausalTransformer(4, (6,), width=16, depth=1, heads=2)), (6,), 4)
    x, lengths = torch.randint(4, (5, 6)), torch.tensor([6, 1, 3, 2, 5])
    batch = {"x": x, "lengths": lengths, "key": torch.arange(5)}
    said = model.loss(batch)
    each = [float(model.log_prob(x[i : i + 1, :n]).detach()) for i, n in enumerate(lengths.tolist())]
    assert model.counts(batch) == {"": 17.0}
    assert float(said.value.detach()) == pytest.approx(-sum(each) / 17, abs=1e-6)
    torch.testing.assert_close(said.seen["nll"], -torch.tensor(each))
    torch.testing.assert_close(model.log_prob(x, lengths=lengths).detach(), torch.tensor(each))
    other = torch.where(torch.arange(6) < lengths[:, None], x, (x + 1) % 4)  # padding may hold anything
    torch.testing.assert_close(model.loss({**batch, "x": other}).value, said.value)
    scored = torch.rand(5, 6) > 0.4
    first = model.loss({**batch, "scored": scored})
    assert model.counts({**batch, "scored": scored}) == {
        "": float((scored & (torch.arange(6) < lengths[:, None])).sum())
    }
    halves = [{k: v[i] for k, v in {**batch, "scored": scored}.items()} for i in (slice(0, 2), slice(2, 5))]
    whole = sum(float(model.loss(h).value) * model.counts(h)[""] for h in halves)
    assert float(first.value) == pytest.approx(whole / model.counts({**batch, "scored": scored})[""], abs=1e-6)


def test_lengths_say_what_counts_and_without_them_the_ends_do() -> None:
    """A row may be a window of documents that follow one another: then all of it is learnt and measured."""
    torch.manual_seed(0)
    model = Autoregressive(awake(CausalTransformer(4, (6,), width=16, depth=1, heads=2)), (6,), 4, end=3)
    x = torch.tensor([[0, 1, 3, 2, 3, 1], [2, 3, 0, 0, 1, 1]])
    terms = model.net(x).log_softmax(-1).gather(2, x[..., None])[..., 0].detach()
    for lengths, sums in ((None, [(0, 3), (1, 2)]), (torch.tensor([6, 5]), [(0, 6), (1, 5)])):
        each = torch.stack([terms[i, :n].sum() for i, n in sums])
        torch.testing.assert_close(model.log_prob(x, lengths=lengths).detach(), each)
        batch = {"x": x, "key": torch.arange(2)} | ({} if lengths is None else {"lengths": lengths})
        assert model.counts(batch) == {"": float(sum(n for _, n in sums))}
        torch.testing.assert_close(-model.loss(batch).seen["nll"], each)
    for wrong in ([7, 1], [-1, 2], [3], [[3, 3]], [1.0, 2.0]):
        with pytest.raises(UserError, match="from 0 to T"):
            model.loss({"x": x, "key": torch.arange(2), "lengths": torch.tensor(wrong)})
    with pytest.raises(UserError, match="of each symbol"):
        model.loss({"x": x, "key": torch.arange(2), "scored": torch.ones(2, 1, dtype=torch.bool)})
    for strange in (x[0], x.float()):
        for ask in (model.loss, model.counts, lambda batch: model.log_prob(batch["x"])):
            with pytest.raises(UserError, match="of shape"):
                ask({"x": strange, "key": torch.arange(2)})
    pictures = Autoregressive(MADE(4, 3, (8,)), (2, 2), 3)
    with pytest.raises(UserError, match="from 0 to T"):
        pictures.log_prob(torch.zeros(2, 2, 2, dtype=torch.long), lengths=torch.tensor([2, 2]))


def test_an_end_may_come_before_there_is_no_room() -> None:
    """`steps` is the most that may come, and not what must have a place."""
    net = CausalTransformer(5, (8,), width=16, depth=1, heads=2)
    torch.nn.init.zeros_(net.last.weight)
    torch.nn.init.zeros_(net.last.bias)
    with torch.no_grad():
        net.last.bias[1] = 1.0  # the end, at once
    prompt = torch.zeros(2, 3, dtype=torch.long)
    assert generate(net, prompt, steps=50, choose=greedy, codes=5, end=1).lengths.tolist() == [4, 4]
    assert beam_search(net, prompt, steps=50, codes=5, end=1, beams=2).lengths[:, 0].tolist() == [4, 4]


def test_nothing_is_drawn_beyond_what_a_net_reads() -> None:
    """As many symbols as the whole pass takes can be drawn, by every way, and not one more."""
    torch.manual_seed(0)
    full = CausalTransformer(5, (8,), width=16, depth=1, heads=2)
    window = CausalTransformer(5, (8,), width=16, depth=1, heads=2, design=Design(window=3))
    draft, pieces = CausalTransformer(5, (8,), width=8, depth=1, heads=2), Passes(full, (8,))
    some = partial(generate, choose=greedy, codes=5)
    ways = {
        "full": partial(some, full),
        "window": partial(some, window),
        "speculative": partial(speculative, full, draft, codes=5, noise=Noise.seeded(0, 1)),
        "beams": partial(beam_search, full, codes=5, beams=2),
        "passes": partial(some, pieces),
    }
    for name, way in ways.items():
        for p, begin in ((0, True), (3, True), (3, False)):
            more = 1 if not begin and name != "passes" else 0  # nothing begins it: there is a place more
            prompt = torch.zeros(1, p, dtype=torch.long)
            assert way(prompt, steps=8 - p + more, begin=begin).tokens.shape[-1] == 8 + more
            with pytest.raises(UserError, match=r"at most 8 symbols|has 8 symbols|room for 8 symbols"):
                way(prompt, steps=9 - p + more, begin=begin)


class Slow(MADE):
    """A net that cannot go on."""


def test_a_net_that_cannot_go_on_is_prompted_too() -> None:
    torch.manual_seed(0)
    model = Autoregressive(awake(Slow(5, 3, (9,))), (5,), 3, end=2)
    prompt, lengths = torch.tensor([[0, 1, 1], [1, 0, 0]]), torch.tensor([3, 1])
    rule = partial(decode.rules, tau=0.0)
    made = model.generate(prompt, lengths, rules=rule(), chunk=2)
    for i, n in enumerate(lengths.tolist()):
        x = prompt[i, :n].tolist()
        while len(x) < 5 and 2 not in x[n:]:
            logits = model.net(torch.tensor([x + [0] * (5 - len(x))]))[0, len(x)]
            x.append(int(logits.argmax()))
        wide = x[: n + 2]  # both rows may have 2 more: the room that the longer prompt leaves
        assert made.tokens[i, : made.lengths[i]].tolist() == wide
    assert torch.equal(model.generate(prompt, lengths, rules=rule(), begin=False).tokens, made.tokens)


def test_guided_prompts() -> None:
    torch.manual_seed(0)
    net = awake(CausalTransformer(4, (6,), width=16, depth=1, heads=2, classes=2), 4)
    model = Autoregressive(net, (6,), 4)
    prompt, label = torch.tensor([[1, 2], [3, 0]]), torch.tensor([0, 1])
    made = model.generate(prompt, cond={"label": label}, rules=decode.rules(tau=0.0), guidance=2.5)
    x = prompt
    for _ in range(4):
        more = torch.cat((x, x[:, :1]), 1)
        given, without = net(more, {"label": label})[:, -1], net(more)[:, -1]
        x = torch.cat((x, (without + 2.5 * (given - without)).argmax(-1, keepdim=True)), 1)
    assert torch.equal(made.tokens, x)


def test_mistakes_are_said(net: Causal) -> None:
    go = partial(generate, net, steps=2, choose=greedy, codes=5)
    nothing = torch.zeros(1, 0, dtype=torch.long)
    for x, more, words in (
        (torch.tensor([[5]]), {}, "alphabet is 0 to 4"),
        (torch.tensor([[1]]), {"lengths": torch.tensor([2])}, "between 0 and 1"),
        (nothing, {"begin": False}, "nothing to go on from"),
        (torch.tensor([[1]]), {"lengths": torch.tensor([0]), "begin": False}, "prompt is empty"),
        (torch.tensor([[1]]), {"end": 7}, "none of the alphabet"),
        (torch.tensor([[1]]), {"rules": [lambda l, s: l - torch.inf]}, "leave no symbol"),
    ):
        with pytest.raises(UserError, match=words):
            go(x, **more)
    for x, lengths, words in (
        (torch.tensor([1, 2]), None, r"of shape \(2,\)"),
        (torch.tensor([[1.0]]), None, "float32 of shape"),
        (torch.tensor([[1], [2]]), torch.tensor([1]), "2 prompts"),
    ):
        with pytest.raises(UserError, match=words):
            started(x, lengths, 2, True, 5, None)
    assert go(nothing[:0], steps=3).tokens.shape == (0, 3)
    assert torch.equal(generate(net, torch.tensor([[1]]), steps=0, choose=greedy, codes=5).tokens, torch.tensor([[1]]))


def enumerated(model: Autoregressive, *shape: int) -> Tensor:
    return model.log_prob(everything(model.codes, *shape))


def test_recurrences_and_convolutions_are_laws_too() -> None:
    torch.manual_seed(0)
    for body in (LSTM(4, 5), WaveNet(4, 5, largest=2)):
        model = Autoregressive(awake(CausalSequence(3, body), 4), (4,), 3).double()
        logp = enumerated(model, 4).detach()
        assert float(logp.exp().sum()) == pytest.approx(1, abs=1e-6)
        assert float(logp.std()) > 0.1
