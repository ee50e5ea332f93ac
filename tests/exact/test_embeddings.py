"""Word vectors: gradients beside autograd, optima that are known in closed form, planted analogies all found."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from morphogen.core import Noise, Update, keys
from morphogen.data.near import cooccurrences
from morphogen.errors import UserError
from morphogen.language.glove import GloVe, weight
from morphogen.language.vectors import Vectors, read_pairs, read_questions, spearman
from morphogen.language.word2vec import (
    CBOW,
    HierarchicalSoftmax,
    NegativeSampling,
    Output,
    Predictor,
    SkipGram,
    Window,
    Word2Vec,
    huffman,
)
from morphogen.spec import Asset, build, spec

WAYS = [(p, o) for p in (SkipGram(), CBOW()) for o in (NegativeSampling(5, block=8), HierarchicalSoftmax())]


def batch(x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    return {"x": x, "key": keys(torch.arange(len(x)), seed)}


def pairs_of(model: Word2Vec, window: Window) -> list[tuple[list[int], int]]:
    """By brute force, what a window says: of each word the words that it sees."""
    found = []
    for centre, around, near in zip(window.centre, window.around, window.near, strict=True):
        for i, word in enumerate(centre.tolist()):
            seen = around[near[i] > 0].tolist()
            if seen:
                found.append((seen, word))
    return found


def loss_by_hand(model: Word2Vec, found: list[tuple[list[int], int]], inner: Tensor, outer: Tensor) -> Tensor:
    """−log-likelihood of hierarchical softmax over the pairs, as in the paper."""
    total = inner.new_zeros(())
    for seen, word in found:
        hs = [inner[seen].mean(0)] if isinstance(model.predictor, CBOW) else [inner[j] for j in seen]
        for h in hs:
            for node, side in zip(model.path[word].tolist(), model.side[word].tolist(), strict=True):
                if node >= 0:
                    total = total - F.logsigmoid((1 - 2 * side) * (h @ outer[node]))
    return total


@pytest.mark.parametrize("predictor", [SkipGram(), CBOW()])
def test_a_step_is_the_gradient_of_hierarchical_softmax(predictor: Predictor) -> None:
    torch.manual_seed(0)
    model = Word2Vec(
        [5, 3, 9, 1, 2], 10, 4, predictor=predictor, output=HierarchicalSoftmax(), window=2, subsample=None, cap=1e9
    ).double()
    model.outer.normal_()
    x = torch.randint(0, 5, (3, 9))
    found = pairs_of(model, model._windows(x, None, Noise(batch(x)["key"])))
    inner, outer = model.inner.clone().requires_grad_(), model.outer.clone().requires_grad_()
    loss_by_hand(model, found, inner, outer).backward()
    before = model.inner.clone(), model.outer.clone()
    said = model.learn(batch(x))
    assert torch.allclose(model.inner - before[0], -model.alpha * inner.grad, atol=1e-12)
    assert torch.allclose(model.outer - before[1], -model.alpha * outer.grad, atol=1e-12)
    n = sum(len(s) if isinstance(predictor, SkipGram) else 1 for s, _ in found)
    assert float(said.value) == pytest.approx(float(loss_by_hand(model, found, *before)) / n, abs=1e-9)


@pytest.mark.parametrize("predictor", [SkipGram(), CBOW()])
def test_a_step_of_negative_sampling_is_its_gradient(predictor: Predictor) -> None:
    """With one negative only that can be drawn, the loss is a sum without chance."""
    torch.manual_seed(1)
    model = Word2Vec(
        [1, 10**12, 1, 1],
        10,
        3,
        predictor=predictor,
        output=NegativeSampling(5, power=1.0, block=4),
        window=2,
        subsample=None,
        cap=1e9,
    ).double()
    model.outer.normal_()
    x = torch.tensor([[0, 2, 3, 0, 2, 2, 3]])
    found = pairs_of(model, model._windows(x, None, Noise(batch(x)["key"])))
    inner, outer = model.inner.clone().requires_grad_(), model.outer.clone().requires_grad_()
    total = inner.new_zeros(())
    for seen, word in found:
        for h in [inner[seen].mean(0)] if isinstance(predictor, CBOW) else [inner[j] for j in seen]:
            total = total - F.logsigmoid(h @ outer[word]) - 5 * F.logsigmoid(-h @ outer[1])
    total.backward()
    before = model.inner.clone(), model.outer.clone()
    model.learn(batch(x))
    assert torch.allclose(model.inner - before[0], -model.alpha * inner.grad, atol=1e-12)
    assert torch.allclose(model.outer - before[1], -model.alpha * outer.grad, atol=1e-12)


def test_windows_are_those_of_the_text_that_is_left() -> None:
    counts = [1000, 10, 10, 10, 10, 10]
    model = Word2Vec(counts, 10, 2, window=3, subsample=0.05, output=NegativeSampling(block=4))
    x = torch.tensor([[1, 0, 2, 0, 3, 0, 4, 5, 0, 1, 2], [5] * 11])
    noise = Noise(batch(x, 3)["key"])
    window = model._windows(x, torch.tensor([11, 6]), noise)
    again = Noise(batch(x, 3)["key"])
    kept = again.uniform(11, dtype=torch.float64) < model.keep[x]
    size = again.integers(3, 11) + 1
    wanted = set()
    for row, n in ((0, 11), (1, 6)):
        left = x[row, :n][kept[row, :n]].tolist()
        for i, word in enumerate(left):
            seen = [left[j] for j in range(len(left)) if j != i and abs(i - j) <= size[row, i]]
            if seen:
                wanted.add((tuple(seen), word, row, i))
    assert sorted((s, w) for s, w, *_ in wanted) == sorted((tuple(s), w) for s, w in pairs_of(model, window))
    assert 0 < kept[0].sum() < 11


@pytest.mark.parametrize(("predictor", "output"), WAYS)
def test_a_word_that_counts_for_nothing_is_out_of_the_text(predictor: Predictor, output: Output) -> None:
    """What stands for unknown words is taken out before windows are cut: all is as in the text without it."""
    torch.manual_seed(0)
    model = Word2Vec([0, 40, 30, 20, 10], 10, 4, predictor=predictor, output=output, window=2, subsample=None)
    x, left = torch.tensor([[1, 0, 2, 0, 0, 3, 4, 2, 0, 1, 2, 3]]), [1, 2, 3, 4, 2, 1, 2, 3]
    found = pairs_of(model, model._windows(x, None, Noise.seeded(0, 1)))
    again = Noise.seeded(0, 1)
    again.uniform(12, dtype=torch.float64)
    size = (again.integers(2, 12) + 1)[0].tolist()
    wanted = [([left[j] for j in range(8) if j != i and abs(i - j) <= size[i]], left[i]) for i in range(8)]
    assert sorted(found) == sorted(wanted)
    before = model.inner.clone()
    for step in range(20):
        model.learn(batch(x, step))
    assert not model.inner[0].any()
    assert (model.inner[1:] != before[1:]).all()
    if isinstance(output, NegativeSampling):
        assert not model.outer[0].any()
        one = torch.ones(500, 1, 1)
        drawn = output.columns({"law": model.law}, one[..., 0].long(), one, Noise.seeded(1, 500))
        assert set(drawn.rows[:, 1:].flatten().tolist()) == {1, 2, 3, 4}


def test_subsampling_and_negatives_follow_their_laws() -> None:
    counts = [5000, 1000, 200, 40, 8]
    model = Word2Vec(counts, 10, 2, subsample=0.02)
    f = np.array(counts) / sum(counts)
    wanted = np.minimum(1, np.sqrt(0.02 / f) + 0.02 / f)
    assert np.allclose(model.keep, wanted)
    target, near = torch.zeros(4000, 1, dtype=torch.long), torch.ones(4000, 2, 1)
    columns = NegativeSampling(5).columns({"law": model.law}, target, near, Noise.seeded(0, 1000))
    drawn = np.bincount(columns.rows[:, 1:].flatten(), minlength=5)
    law = np.array(counts) ** 0.75 / (np.array(counts) ** 0.75).sum()
    assert stats.chisquare(drawn, law * drawn.sum()).pvalue > 1e-3
    assert columns.weight[:, :, 1:].sum() == pytest.approx(4000 * 2 * 5)


def test_huffman_is_shortest_and_prefix_free() -> None:
    for counts in ([1, 1], [45, 13, 12, 16, 9, 5], [2**i for i in range(12)], [7] * 8):
        path, side = huffman(counts)
        codes = [
            "".join(str(int(s)) for n, s in zip(p, t, strict=True) if n >= 0)[::-1]
            for p, t in zip(path, side, strict=True)
        ]
        assert not any(a != b and b.startswith(a) for a, b in itertools.permutations(codes, 2))
        assert sum(2.0 ** -len(c) for c in codes) == 1
        p = np.array(counts) / sum(counts)
        mean, entropy = float((p * [len(c) for c in codes]).sum()), float(-(p * np.log2(p)).sum())
        assert entropy - 1e-12 <= mean < entropy + 1
        held = HierarchicalSoftmax().table(torch.tensor(counts))
        h, outer = torch.randn(3), torch.randn(len(counts), 3)
        total = sum(
            math.prod(float(torch.sigmoid((1 - 2 * s) * (h @ outer[n]))) for n, s in zip(a, b, strict=True) if n >= 0)
            for a, b in zip(held["path"], held["side"], strict=True)
        )
        assert total == pytest.approx(1, abs=1e-6)
    cormen = [len([n for n in p if n >= 0]) for p in huffman([45, 13, 12, 16, 9, 5])[0]]
    assert cormen == [1, 3, 3, 3, 4, 4]


def test_the_optimum_of_skip_gram_is_shifted_pmi() -> None:
    """Levy & Goldberg 2014: with enough dimensions u·v = log P(j, i) / (P(j) P_n(i)) − log k. Learned from a text in
    which two words are near each other with known probabilities.
    """
    torch.manual_seed(0)
    joint = torch.tensor([[4.0, 1, 2], [1, 3, 1], [2, 1, 5]], dtype=torch.float64)
    joint /= joint.sum()
    flat = torch.multinomial(joint.flatten(), 60_000, True)
    x = torch.stack((flat // 3, flat % 3), 1)  # items of two words: each sees the other
    counts = torch.bincount(x.flatten(), minlength=3)
    law = (counts / counts.sum()) ** 0.75
    law /= law.sum()
    both = torch.zeros(3, 3, dtype=torch.float64).index_put_((x[:, 0], x[:, 1]), torch.ones(len(x)).double(), True)
    both = (both + both.T) / (2 * len(x))
    for k in (1, 5):
        model = Word2Vec(
            counts.tolist(), 350, 4, output=NegativeSampling(k, block=2, shared=8), window=1, subsample=None, alpha=0.2
        )
        for model.step in range(350):
            index = torch.randint(0, len(x), (600,))
            model.learn({"x": x[index], "key": keys(index, model.step)})
        wanted = (both / (both.sum(1, keepdim=True) * law)).log() - math.log(k)
        assert (model.inner @ model.outer.T - wanted).abs().max() < 0.1


def planted(seed: int, n: int) -> tuple[list[str], np.ndarray, list[tuple[str, ...]]]:
    """A text in which a word (country, role) is met with its country's words and its role's, and its analogies."""
    rng = np.random.default_rng(seed)
    countries, roles = 6, 4
    named = [f"c{c}r{r}" for c in range(countries) for r in range(roles)]
    words = (
        named
        + [f"country{c}.{i}" for c in range(countries) for i in range(6)]
        + [f"role{r}.{i}" for r in range(roles) for i in range(6)]
    )
    number, rows = {w: i for i, w in enumerate(words)}, []
    for _ in range(n):
        c, r = rng.integers(countries), rng.integers(roles)
        near = [f"country{c}.{rng.integers(6)}" for _ in range(3)] + [f"role{r}.{rng.integers(6)}" for _ in range(3)]
        rng.shuffle(near)
        rows.append([number[w] for w in [*near[:3], f"c{c}r{r}", *near[3:]]])
    asked = [
        (f"c{a}r{i}", f"c{a}r{j}", f"c{b}r{i}", f"c{b}r{j}")
        for a, b in itertools.permutations(range(countries), 2)
        for i, j in itertools.permutations(range(roles), 2)
    ]
    return words, np.array(rows), asked


@pytest.mark.parametrize(("predictor", "output"), WAYS)
def test_planted_analogies_are_all_found(predictor: Predictor, output: Output) -> None:
    words, rows, asked = planted(0, 4000)
    torch.manual_seed(0)
    counts = np.bincount(rows.flatten(), minlength=len(words))
    x, steps = torch.from_numpy(rows), 60
    model = Word2Vec(counts.tolist(), steps, 24, predictor=predictor, output=output, subsample=None, alpha=0.1)
    for model.step in range(steps):
        index = torch.randint(0, len(x), (150,))
        model.learn({"x": x[index], "key": keys(index, model.step)})
    vectors = Vectors(words, model.inner)
    found = vectors.analogies(asked)
    assert (found.asked, found.of) == (360, 360)
    assert found.value == 1.0
    near = [w for w, _ in vectors.nearest("country0.0", 5)]
    assert all(w.startswith("country0.") for w in near)
    a, b, c, d = asked[7]
    assert vectors.analogy(a, b, c)[0][0] == d


def test_neighbours_are_those_of_the_counts() -> None:
    """Words of a planted cluster are nearest to each other, as gensim's are: overlap of at least 0.8."""
    words, rows, _ = planted(1, 3000)
    torch.manual_seed(0)
    counts = np.bincount(rows.flatten(), minlength=len(words))
    model, x = Word2Vec(counts.tolist(), 80, 24, subsample=None, alpha=0.1), torch.from_numpy(rows)
    for model.step in range(80):
        index = torch.randint(0, len(x), (200,))
        model.learn({"x": x[index], "key": keys(index, model.step)})
    vectors, clusters = Vectors(words, model.inner), [w for w in words if "." in w]
    overlap = [
        len({w for w, _ in vectors.nearest(word, 5)} & {w for w in words if w.split(".")[0] == word.split(".")[0]}) / 5
        for word in clusters
    ]
    assert np.mean(overlap) >= 0.8


# ---- GloVe ---------------------------------------------------------------------------------------------------------


def test_the_weight_of_a_count() -> None:
    assert weight(torch.tensor([10.0, 100, 1e6], dtype=torch.float64)).tolist() == pytest.approx([0.1778279410, 1, 1])


@pytest.mark.parametrize("piece", [1, 3, 7, 1000])
def test_cooccurrences_are_counted_once_each_way(piece: int) -> None:
    rng = np.random.default_rng(piece)
    tokens = rng.integers(0, 5, 50).astype(np.uint16)
    wanted = np.zeros((5, 5))
    for i in range(50):
        for j in range(max(0, i - 4), i):
            wanted[tokens[i], tokens[j]] += 1 / (i - j)
            wanted[tokens[j], tokens[i]] += 1 / (i - j)
    i, j, value = cooccurrences(tokens, 5, window=4, piece=piece)
    found = np.zeros((5, 5))
    found[i, j] = value
    assert np.allclose(found, wanted)
    assert np.allclose(found, found.T)
    with pytest.raises(UserError, match="sees nothing"):
        cooccurrences(tokens, 5, window=0)


def test_a_step_of_glove_is_adagrad_on_the_loss() -> None:
    torch.manual_seed(0)
    model = GloVe(4, 3, x_max=5).double()
    x, count = torch.tensor([[0, 1], [2, 1], [0, 1], [3, 3]]), torch.tensor([1.0, 7.0, 2.0, 4.0], dtype=torch.float64)
    table = model.table.clone().requires_grad_()
    squares, total = torch.ones_like(table), torch.zeros_like(table)
    for (i, j), n in zip(x.tolist(), count.tolist(), strict=True):
        off = table[i, :-1] @ table[4 + j, :-1] + table[i, -1] + table[4 + j, -1] - math.log(n)
        (slope,) = torch.autograd.grad(0.5 * min(1, (n / 5) ** 0.75) * off**2, table)
        squares += slope**2
        total += slope
    model.learn({"x": x, "count": count})
    assert torch.allclose(model.table, (table - 0.05 * total / squares.sqrt()).detach(), atol=1e-12)


def test_a_planted_matrix_of_rank_4_is_found() -> None:
    """log X = W W̃' + b + b̃ of rank 4: R² above 0.99, of pairs that were met and of some that were not."""
    torch.manual_seed(0)
    v, d = 40, 4
    w, u, b, c = torch.randn(v, d), torch.randn(v, d), torch.randn(v, 1) + 2, torch.randn(1, v) + 1
    log = 0.5 * w @ u.T + b + c
    pairs = torch.cartesian_prod(torch.arange(v), torch.arange(v))
    seen = torch.rand(len(pairs)) < 0.85
    model = GloVe(v, d, x_max=10.0, lr=0.2)
    known = pairs[seen]
    for _ in range(1500):
        index = torch.randint(0, len(known), (256,))
        at = known[index]
        model.learn({"x": at, "count": log[at[:, 0], at[:, 1]].exp()})
    for part in (known, pairs[~seen]):
        truth = log[part[:, 0], part[:, 1]]
        off = model.log_count(part) - truth
        assert 1 - float(off.square().sum() / (truth - truth.mean()).square().sum()) > 0.99


# ---- what vectors say ----------------------------------------------------------------------------------------------


def test_ranks_are_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = rng.integers(0, 8, 30), rng.standard_normal(30)
        assert spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_words_without_vectors_are_counted_and_named(tmp_path: Path) -> None:
    vectors = Vectors(["a", "b", "c", "d"], torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]]))
    assert vectors.nearest("a", 3) == [
        (w, pytest.approx(s)) for w, s in (("c", 0.995037), ("d", 0.0995037), ("b", 0.0))
    ]
    pairs = [("a", "c", 9.0), ("a", "b", 1.0), ("a", "d", 3.0), ("a", "zebra", 2.0)]
    assert vectors.similarity(pairs) == (pytest.approx(1.0), 3, 4)
    assert vectors.analogies([("a", "b", "c", "d"), ("a", "b", "c", "z")]) == (1.0, 1, 2)
    assert math.isnan(vectors.similarity([]).value)
    with pytest.raises(UserError, match="no word with a vector"):
        vectors["zebra"]
    with pytest.raises(UserError, match="others"):
        vectors.nearest("a", 4)
    with pytest.raises(UserError, match="do not belong"):
        Vectors(["a"], torch.zeros(2, 2))
    for wrong in ("x y", "x y z", "x y nan", "x y 1 2"):
        (tmp_path / "p").write_text(f"tiger\tCat 7.35\n\n{wrong}\n")
        with pytest.raises(UserError, match=r"Line 3 of .* is no pair"):
            read_pairs(tmp_path / "p")
    for read in (read_pairs, read_questions):
        (tmp_path / "b").write_bytes(b"a\xff")
        with pytest.raises(UserError, match=r"no text in UTF-8 \(byte 1\)"):
            read(tmp_path / "b")
        for there in (tmp_path / "none", tmp_path):
            with pytest.raises(UserError, match="cannot be read"):
                read(there)
    (tmp_path / "m").write_bytes("a B 2.5\r\n".encode("utf-8-sig"))
    assert read_pairs(tmp_path / "m") == [("a", "b", 2.5)]
    for questions in ([("a", "b", "c")], ["abcd"], [("a", "b", "c", "d"), ()]):
        with pytest.raises(UserError, match="four words"):
            vectors.analogies(questions)
    with pytest.raises(UserError, match="score a number"):
        vectors.similarity([("a", "b", math.nan)])
    (tmp_path / "q").write_text(": s\nA b c d\n: t\na b c\n")
    with pytest.raises(UserError, match="Line 4"):
        read_questions(tmp_path / "q")


def test_published_lists_are_read(data_root: Path) -> None:
    folder = data_root / "word_similarity"
    assert {f.name: len(read_pairs(f)) for f in folder.glob("EN-*.txt")}["EN-WS-353-ALL.txt"] == 353
    questions = read_questions(folder / "questions-words.txt")
    assert (len(questions), sum(map(len, questions.values()))) == (14, 19_544)


def test_they_are_remembered_and_refuse_nonsense(tmp_path: Path) -> None:
    for predictor, output in WAYS:
        model: Any = Word2Vec([3, 2, 1], 5, 4, predictor=predictor, output=output)
        assert spec(build(spec(model))) == spec(model)
        assert all(isinstance(p, Update) for p in model.phases())
    for wrong in ({"window": 0}, {"alpha": 0.0}, {"cap": 0.0}, {"subsample": -1.0}):
        with pytest.raises(UserError, match="Word2Vec needs"):
            Word2Vec([1, 2], 5, **wrong)
    bad: Any
    for bad in ([3], [1, 0], [3, 2, -1], []):
        with pytest.raises(UserError, match=r"counts of 2 words or more"):
            Word2Vec(bad, 5)
    file = tmp_path / "counts.npy"
    for content in (
        b"",
        b"no array",
        np.array([1.0, 2.0]),
        np.array(["a", "b"]),
        np.array(3),
        np.array([True, True]),
        np.eye(2, dtype=int),
    ):
        file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
        with pytest.raises(UserError, match=r"holds no counts|counts of 2 words"):
            Word2Vec(Asset(file), 5)
    np.savez(tmp_path / "counts.npz", a=np.array([1, 2]))
    with pytest.raises(UserError, match="counts of 2 words"):
        Word2Vec(Asset(tmp_path / "counts.npz"), 5)
    np.save(file, np.array([3, 1], np.uint16))
    assert len(Word2Vec(Asset(file), 5).inner) == 2
    with pytest.raises(UserError, match="NegativeSampling has"):
        NegativeSampling(0)
    with pytest.raises(UserError, match="GloVe needs"):
        GloVe(1)
    glove, x = GloVe(3, 2), torch.tensor([[0, 1], [1, 2]])
    before = glove.table.clone()
    for pairs, count in ((x, [1.0, 0.0]), (x, [2.0, -1.0]), (x[:0], [])):
        with pytest.raises(UserError, match="pairs that were met"):
            glove.learn({"x": pairs, "count": torch.tensor(count)})
    assert torch.equal(glove.table, before)
    with pytest.raises(UserError, match="no row"):
        Word2Vec([2, 1], 5).learn(batch(torch.zeros(0, 4, dtype=torch.long)))
