"""Rules of decoding and beam search against transformers' own (oracle A7)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from morphogen.autoregressive import decode
from morphogen.autoregressive.beam import beam_search
from morphogen.autoregressive.decode import Seen
from morphogen.autoregressive.generate import generate, greedy
from morphogen.nets.causal import CausalTransformer

from ..exact.test_nets import awake

transformers = pytest.importorskip("transformers")
from transformers.generation import logits_process as theirs  # noqa: E402


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "name", "options"),
    [
        (lambda l: decode.temperature(l, 0.7), "TemperatureLogitsWarper", {"temperature": 0.7}),
        (lambda l: decode.top_k(l, 5), "TopKLogitsWarper", {"top_k": 5}),
        (lambda l: decode.top_p(l, 0.6), "TopPLogitsWarper", {"top_p": 0.6}),
        (lambda l: decode.min_p(l, 0.2), "MinPLogitsWarper", {"min_p": 0.2}),
        (lambda l: decode.typical(l, 0.7), "TypicalLogitsWarper", {"mass": 0.7}),
    ],
)
def test_rules_of_the_logits_alone(ours: object, name: str, options: dict[str, float], seed: int) -> None:
    torch.manual_seed(seed)
    logits = 2 * torch.randn(6, 23)
    expected = getattr(theirs, name)(**options)(torch.zeros(6, 1, dtype=torch.long), logits.clone())
    torch.testing.assert_close(ours(logits), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("t", [1, 2, 7, 30])
def test_rules_of_what_was_there(t: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, x = torch.randn(5, 6), torch.randint(6, (5, t))
    lengths = torch.randint(0, t + 1, (5,))
    lengths[0] = t
    seen = Seen(x, lengths, lengths, 3)
    rules = [
        (lambda l, s: decode.repetition(l, s, 1.3), theirs.RepetitionPenaltyLogitsProcessor(1.3)),
        (lambda l, s: decode.no_ngrams(l, s, 2), theirs.NoRepeatNGramLogitsProcessor(2)),
        (lambda l, s: decode.no_ngrams(l, s, 3), theirs.NoRepeatNGramLogitsProcessor(3)),
    ]
    for ours, their in rules:
        said = ours(logits, seen)
        for i, n in enumerate(lengths.tolist()):
            if n:
                expected = their(x[i : i + 1, :n], logits[i : i + 1].clone())
                torch.testing.assert_close(said[i : i + 1], expected)
    guided = theirs.ClassifierFreeGuidanceLogitsProcessor(2.5)(x, torch.cat((logits, logits.flip(1))))
    ours = decode.guided(logits.flip(1).log_softmax(-1), logits.log_softmax(-1), 2.5)
    torch.testing.assert_close(ours.log_softmax(-1), guided.log_softmax(-1), atol=1e-5, rtol=1e-5)


CODES, END = 7, 6


def pair(seed: int) -> tuple[CausalTransformer, object]:
    """A GPT-2 of theirs, awake, and ours with its weights."""
    from morphogen.interop import gpt2

    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=CODES, n_positions=32, n_embd=12, n_layer=2, n_head=3, bos_token_id=END, eos_token_id=END
    )
    model = awake(transformers.GPT2LMHeadModel(config).eval(), seed)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(3)
    ours = gpt2.net_of(config.to_dict())
    ours.load_state_dict(gpt2.ours(model.state_dict(), ours), strict=False)  # but for the tied table's second name
    return ours.eval(), model


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prompts at the left with their lengths, and at the right with their mask, as transformers wants them."""
    n = max(map(len, prompts))
    left = torch.tensor([[0] * (n - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (n - len(p)) + [1] * len(p) for p in prompts])
    return torch.tensor([p + [0] * (n - len(p)) for p in prompts]), torch.tensor([len(p) for p in prompts]), left, mask


PROMPTS = [[1, 2, 3, 4], [0, 5], [3]]


@pytest.mark.parametrize("seed", range(3))
def test_greedy_generation(seed: int) -> None:
    ours, model = pair(seed)
    x, lengths, left, mask = padded(PROMPTS)
    made = generate(ours, x, lengths, steps=9, choose=greedy, codes=CODES, end=END, begin=False)
    expected = model.generate(
        input_ids=left, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=END, eos_token_id=END
    )
    for i, n in enumerate(lengths.tolist()):
        after = expected[i, left.shape[1] :]
        assert torch.equal(made.tokens[i, n : made.lengths[i]], after[: made.lengths[i] - n])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beams", [1, 3, 4])
@pytest.mark.parametrize(("penalty", "early"), [(1.0, False), (0.0, False), (2.0, None), (1.0, True), (-1.0, False)])
@pytest.mark.parametrize("ngrams", [None, 2])
def test_beam_search(seed: int, beams: int, penalty: float, early: bool | None, ngrams: int | None) -> None:
    ours, model = pair(seed)
    x, lengths, _, _ = padded(PROMPTS)
    found = beam_search(
        ours, x, lengths, beams=beams, steps=8, codes=CODES, end=END, penalty=penalty, early=early, begin=False,
        rules=decode.rules(ngrams=ngrams),
    )  # fmt: skip
    for i, n in enumerate(lengths.tolist()):  # theirs one by one: their n-grams count padding
        if beams == 1 and early is not False:
            return
        expected = model.generate(
            input_ids=x[i : i + 1, :n], attention_mask=torch.ones(1, n, dtype=torch.long), max_new_tokens=8,
            num_beams=beams, num_return_sequences=beams, do_sample=False, length_penalty=penalty, pad_token_id=END,
            early_stopping="never" if early is None else early, eos_token_id=END, output_scores=True,
            return_dict_in_generate=True, no_repeat_ngram_size=ngrams or 0,
        )  # fmt: skip
        if beams == 1:
            best = expected.sequences[0]
            assert found.tokens[i, 0, : found.lengths[i, 0]].tolist() == best[: found.lengths[i, 0]].tolist()
            continue
        torch.testing.assert_close(found.scores[i], expected.sequences_scores, atol=1e-4, rtol=1e-4)
        for j in range(beams):
            k = int(found.lengths[i, j])
            assert found.tokens[i, j, :k].tolist() == expected.sequences[j, :k].tolist()
