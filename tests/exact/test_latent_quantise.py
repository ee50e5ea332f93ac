"""Quantisers against brute force, closed forms and counting."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from morphogen.core import Noise, keys
from morphogen.errors import UserError
from morphogen.latent import quantise as q
from morphogen.latent.quantise import EMACodeBook, GradientCodeBook, Quantiser, ResidualVQ
from morphogen.latent.scalar import FSQ, LFQ


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise(n: int, seed: int = 7) -> Noise:
    return Noise(keys(torch.arange(n), seed))


def every(codes: int, depth: int | None = None) -> Tensor:
    """All codes, a position each, as a batch of one; of a residual quantiser all combinations."""
    if depth is None:
        return torch.arange(codes)[None]
    return torch.tensor(list(itertools.product(range(codes), repeat=depth))).T[None]


# ---- nearest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (17, 1, 3), (5, 7, 1), (33, 13, 5), (301, 64, 8)])
def test_nearest_is_the_brute_force_argmin(n: int, k: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z, book = normal(n, d, seed=n), normal(k, d, seed=k + 100)
    brute = torch.tensor([[float((a - b).square().sum()) for b in book] for a in z]).argmin(1)
    assert torch.equal(q.nearest(z, book), brute)
    monkeypatch.setattr(q, "PIECE", 3 * k)  # some rows at a time
    assert torch.equal(q.nearest(z, book), brute)


def test_of_equally_near_codes_the_first_is_taken() -> None:
    book = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [-2.0, 0.0]])
    z = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 1.0], [-3.0, 0.0]])
    assert q.nearest(z, book).tolist() == [0, 0, 0, 1, 3]


def test_half_precision_does_not_mistake_near_codes() -> None:
    book = EMACodeBook(64, 4)
    book.book.copy_(1 + 1e-3 * normal(64, 4, seed=3))  # all of them one number in bfloat16
    z = book.book.T[None].clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert book(z).codes.tolist() == [list(range(64))]


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [EMACodeBook, GradientCodeBook])
def test_the_gradient_goes_straight_through(make: type[EMACodeBook]) -> None:
    beta = 0.7
    book = make(6, 3, beta=beta).double()
    z = normal(2, 3, 4, 5).requires_grad_()
    weight = normal(2, 3, 4, 5, seed=1)
    said = book(z)
    assert torch.equal(said.z, book.vectors(said.codes))  # in every bit, though z is in the graph
    (grad,) = torch.autograd.grad((said.z.sin() * weight).sum() + said.loss * z.numel(), z, retain_graph=True)
    downstream = said.z.detach().cos() * weight  # ∂L/∂z_q
    torch.testing.assert_close(grad, downstream + 2 * beta * (z - said.z).detach(), rtol=1e-12, atol=1e-12)


def test_a_trained_book_is_drawn_to_its_vectors_and_no_other_is() -> None:
    book = GradientCodeBook(6, 3).double()
    z = normal(2, 3, 5).requires_grad_()
    said = book(z)
    (grad,) = torch.autograd.grad(said.z.sum() + said.loss, book.book)
    expected = torch.zeros_like(grad)
    for b, p in itertools.product(range(2), range(5)):
        k = int(said.codes[b, p])
        expected[k] += 2 * (book.book[k] - z[b, :, p]).detach() / z.numel()
    torch.testing.assert_close(grad, expected)
    assert not EMACodeBook(6, 3).book.requires_grad


# ---- moving averages -----------------------------------------------------------------------------------------------


def test_two_steps_of_moving_average_are_the_closed_form() -> None:
    decay, k, d = 0.8, 5, 3
    book = EMACodeBook(k, d, decay=decay, restart=0.0).double()
    start = normal(k, d, seed=5)
    book.book.copy_(start)
    n0 = torch.tensor([3.0, 0.5, 1.0, 2.0, 0.25]).double()
    book.used.copy_(n0)
    total, mass = n0.clone(), n0[:, None] * start  # N and m of the paper, A.1
    for step in range(2):
        z = normal(4, d, 7, seed=20 + step)
        codes = book(z).codes
        book.update(z, codes, noise(4))
        rows, flat = z.movedim(1, -1).reshape(-1, d), codes.flatten()
        n = torch.stack([(flat == j).sum() for j in range(k)]).double()
        s = torch.stack([rows[flat == j].sum(0) for j in range(k)])
        total, mass = decay * total + (1 - decay) * n, decay * mass + (1 - decay) * s
        torch.testing.assert_close(book.used, total)
        torch.testing.assert_close(book.book, mass / total[:, None])


def test_a_code_that_is_never_used_stays_where_it_is() -> None:
    book = EMACodeBook(3, 2, decay=0.5, restart=0.0)
    book.book.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0], [9.0, -9.0]]))
    z = 0.1 * normal(4, 2, 6, dtype=torch.float32)
    for _ in range(400):  # its count has long been less than the least number there is
        book.update(z, book(z).codes, noise(4))
    assert book.book[1:].tolist() == [[9.0, 9.0], [9.0, -9.0]]
    torch.testing.assert_close(book.book[0], z.mean((0, 2)))
    assert bool(book.book.isfinite().all())


@pytest.mark.parametrize("make", [EMACodeBook, GradientCodeBook])
def test_dead_codes_begin_anew_at_vectors_of_the_batch(make: type[EMACodeBook]) -> None:
    book = make(5, 2, decay=0.5, restart=0.1)
    with torch.no_grad():
        book.book.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0], [1.0, 0.0], [-50.0, 50.0], [60.0, 0.0]]))
    book.used.copy_(torch.tensor([10.0, 0.01, 10.0, 0.01, 8.0]))
    z = 0.1 * normal(3, 2, 4, dtype=torch.float32)
    before = book.book.detach().clone()
    book.update(z, book(z).codes, noise(3))
    rows = {tuple(r) for r in z.movedim(1, -1).reshape(-1, 2).tolist()}
    assert {tuple(r) for r in book.book[[1, 3]].tolist()} <= rows
    assert len({tuple(r) for r in book.book[[1, 3]].tolist()}) == 2  # each another one
    assert torch.equal(book.book[4], before[4])  # not used in this batch, but not dead yet
    assert torch.allclose(book.used[[1, 3]], book.used[[1, 3]].mean())
    again, other = (make(5, 2, decay=0.5) for _ in range(2))
    for b, seed in ((again, 7), (other, 8)):
        with torch.no_grad():
            b.book.copy_(before)
        b.used.copy_(torch.tensor([10.0, 0.01, 10.0, 0.01, 8.0]))
        b.update(z, b(z).codes, noise(3, seed))
    assert torch.equal(again.book, book.book)  # by the keys alone
    assert not torch.equal(other.book, book.book)


def test_more_dead_codes_than_vectors_are_given_one_each_while_there_are_any() -> None:
    book = EMACodeBook(9, 2, decay=0.0, restart=0.5)
    book.book.copy_(40 + normal(9, 2, dtype=torch.float32))
    book.book[4] = 0.0
    z = 0.1 * normal(2, 2, 2, dtype=torch.float32)
    before = book.book.clone()
    book.update(z, book(z).codes, noise(2))
    moved = [k for k in range(9) if not torch.equal(book.book[k], before[k])]
    assert moved == [0, 1, 2, 3, 4]  # four vectors for eight dead codes, and the used one's own move


def test_a_start_is_k_means_of_the_first_batch() -> None:
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    which = torch.arange(60) % 3
    rows = centres[which] + 0.01 * normal(60, 2, dtype=torch.float32)
    z = rows.view(6, 10, 2).movedim(-1, 1)
    found = []
    for seed in range(20):  # k-means finds a local optimum: the global one from some draws, one of its own from others
        book = EMACodeBook(3, 2)
        book.start(z, noise(6, seed))
        codes = q.nearest(rows, book.book)
        for k in range(3):
            if int((codes == k).sum()):
                torch.testing.assert_close(book.book[k], rows[codes == k].mean(0))
        assert float(book.used.sum()) == 60
        found.append(float((rows - book.book[codes]).square().sum(1).mean()))
    assert min(found) < 1e-3
    few, apart = EMACodeBook(100, 2), normal(6, 2, 10, dtype=torch.float32)
    few.start(apart, noise(6))
    torch.testing.assert_close(few(apart).z, apart)  # a code for every vector


# ---- counting ------------------------------------------------------------------------------------------------------


def test_perplexity_counts_codes() -> None:
    for k in (1, 2, 17):
        torch.testing.assert_close(q.perplexity(torch.full((k,), 3.0)), torch.tensor(float(k)))
        assert q.perplexity(torch.eye(k)[0]) == 1.0
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0]]) * 12
    torch.testing.assert_close(q.perplexity(p), torch.tensor([math.exp(0.5 * math.log(2) + 0.5 * math.log(4))]))


def test_use_is_counted_over_steps() -> None:
    book = FSQ((3, 2), decay=0.5)
    book.update(torch.zeros(2, 2, 3), torch.tensor([[0, 0, 5], [5, 1, 5]]), noise(2))
    assert book.used.tolist() == [0.5 + 1.0, 0.5 + 0.5, 0.5, 0.5, 0.5, 0.5 + 1.5]
    assert torch.equal(book.usage(), book.used[None])


QUANTISERS: dict[str, Quantiser] = {
    "ema": EMACodeBook(7, 3),
    "gradient": GradientCodeBook(7, 3),
    "one code": EMACodeBook(1, 2),
    "fsq": FSQ((8, 5, 2, 3)),
    "fsq of one channel": FSQ((4,)),
    "lfq": LFQ(6),
    "one bit": LFQ(1),
}


@pytest.mark.parametrize("name", QUANTISERS)
def test_codes_and_vectors_answer_one_another(name: str) -> None:
    quantiser = QUANTISERS[name]
    codes = every(quantiser.codes)
    z = quantiser.vectors(codes)
    assert z.shape == (1, quantiser.dim, quantiser.codes)
    assert len({tuple(r) for r in z[0].T.tolist()}) == quantiser.codes  # all different
    said = quantiser(z if not isinstance(quantiser, FSQ) else inverse(quantiser, z))
    assert torch.equal(said.codes, codes)
    assert torch.equal(said.z, z)


def inverse(fsq: FSQ, z: Tensor) -> Tensor:
    """What `bounded` sends to the values z: of the outermost, whose half cell lies beyond it, something near enough."""
    half, edge, offset = (t.double()[:, None] for t in (fsq.count // 2, fsq.edge, fsq.offset))
    inner = ((z.double() * half + offset) / edge).clamp(-1 + 1e-6, 1 - 1e-6)
    return (inner.atanh() - (offset / edge).tan()).float()


@pytest.mark.parametrize("levels", [(2,), (3, 2), (8, 6, 5), (7, 5, 5, 5, 5)])
def test_fsq_has_the_product_of_its_levels_and_reaches_all(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    assert fsq.codes == math.prod(levels)
    line = torch.linspace(-9, 9, 4001)
    said = fsq(line.expand(len(levels), -1)[None])
    for value, n in zip(said.z[0], levels, strict=True):
        assert value.unique().tolist() == pytest.approx([(i - n // 2) / (n // 2) for i in range(n)])
        assert bool((value.diff() >= 0).all())
    assert float(said.loss) == 0
    torch.testing.assert_close(fsq.bounded(torch.zeros(1, len(levels))), torch.zeros(1, len(levels)), atol=0.05, rtol=0)


def test_fsq_of_the_paper_by_its_formula() -> None:
    z = normal(3, 3, 4, 5)
    levels = (8, 6, 5)
    said = FSQ(levels)(z)
    base = 1
    codes = torch.zeros(3, 4, 5, dtype=torch.long)
    for i, n in enumerate(levels):
        half = (n - 1) * (1 + 1e-3) / 2
        shift = 0.5 if n % 2 == 0 else 0.0
        whole = torch.round(torch.tanh(z[:, i] + math.tan(shift / half)) * half - shift)
        torch.testing.assert_close(said.z[:, i], whole / (n // 2))
        codes += base * (whole.long() + n // 2)
        base *= n
    assert torch.equal(said.codes, codes)


def test_fsq_lets_the_gradient_of_its_bound_through() -> None:
    fsq, z = FSQ((5, 4)).double(), normal(2, 2, 3).requires_grad_()
    weight = normal(2, 2, 3, seed=9)
    (grad,) = torch.autograd.grad((fsq(z).z * weight).sum(), z)
    bounded = fsq.bounded(z.movedim(1, -1)).movedim(-1, 1) / torch.tensor([2.0, 2.0]).double()[:, None]
    torch.testing.assert_close(grad, torch.autograd.grad((bounded * weight).sum(), z)[0])


# ---- LFQ -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 3, 5])
def test_lfq_entropies_are_those_of_the_softmax_over_codes(group: int) -> None:
    bits, temperature = 5, 1.7
    lfq = LFQ(bits, entropy=0.3, beta=0.4, temperature=temperature, group=group).double()
    z = normal(3, bits, 7)
    rows = z.movedim(1, -1).reshape(-1, bits)
    codes = lfq.vectors(every(2**bits).reshape(1, -1))[0].T.double()  # (32, bits)
    law = (-(rows[:, None] - codes).square().sum(2) / temperature).softmax(1)  # q(k | z), by the definition
    sure = -(law * law.log()).sum(1).mean()
    mean = law.mean(0)
    spread = torch.zeros(()).double()
    for first in range(0, bits, group):  # the law of each group, by summing over all other bits
        part = codes[:, first : first + group]
        names = [tuple(r) for r in part.tolist()]
        for value in set(names):
            p = mean[torch.tensor([n == value for n in names])].sum()
            spread -= p * p.log()
    torch.testing.assert_close(lfq.penalty(rows), sure - spread)
    said = lfq(z)
    torch.testing.assert_close(said.loss, 0.3 * (sure - spread) + 0.4 * (z - z.sign()).square().mean())
    whole = -(mean * mean.log()).sum()
    assert float(spread) >= float(whole) - 1e-12  # grouped, a bound
    if group == bits:
        torch.testing.assert_close(spread, whole)


def test_lfq_is_signs_and_stays_finite_where_it_is_sure() -> None:
    lfq = LFQ(3)
    z = torch.tensor([[[-0.5, 0.5, 1e4], [0.1, -2.0, -1e4], [3.0, 0.0, 1e4]]]).requires_grad_()
    said = lfq(z)
    assert said.codes.tolist() == [[0 + 2 + 4, 1 + 0 + 0, 1 + 0 + 4]]
    assert said.z.tolist() == [[[-1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [1.0, -1.0, 1.0]]]
    said.loss.backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


# ---- residual ------------------------------------------------------------------------------------------------------


def test_the_error_of_residual_codes_never_rises_with_depth() -> None:
    for seed in range(5):
        vq = ResidualVQ(6, 4, 5).double()
        for book in vq.books:  # books that fit nothing: they would add error, were it not for the origin
            book.book.copy_(3 * normal(6, 4, seed=seed + 50))
        z = normal(2, 4, 3, 3, seed=seed)
        codes = vq(z).codes
        assert codes.shape == (2, 5, 3, 3)
        errors = [(z - vq.vectors(codes[:, : n + 1])).square().sum(1) for n in range(5)]
        for coarse, fine in itertools.pairwise(errors):
            assert bool((fine <= coarse + 1e-12).all())
        assert torch.allclose(vq(z).z, vq.vectors(codes))


def test_residual_books_learn_what_is_left_over() -> None:
    vq = ResidualVQ(8, 3, 3).double()
    z = normal(16, 3, 5, 5)
    vq.start(z, noise(16))
    before = (vq(z).z - z).square().mean()
    books = [b.book.clone() for b in vq.books]
    codes = vq(z).codes
    for k in (0, 1, 2):  # each by hand from the residual of the books before it
        left = z - (vq.vectors(codes[:, :k]) if k else 0)
        alone = EMACodeBook(8, 3, origin=k > 0).double()
        alone.book.copy_(books[k])
        alone.used.copy_(vq.books[k].used)
        alone.update(left, codes[:, k], noise(16))
        books[k] = alone.book
    vq.update(z, codes, noise(16))
    for mine, theirs in zip(vq.books, books, strict=True):
        torch.testing.assert_close(mine.book, theirs)
    for _ in range(200):
        vq.update(z, vq(z).codes, noise(16))
    assert float((vq(z).z - z).square().mean()) < float(before)
    assert vq.usage().shape == (3, 8)
    assert all(bool((b.table[0] == 0).all()) == (k > 0) for k, b in enumerate(vq.books))


def test_residual_codes_and_vectors_answer_one_another() -> None:
    vq = ResidualVQ(3, 2, 2)
    vq.books[0].book.copy_(torch.tensor([[8.0, 0.0], [0.0, 8.0], [-8.0, -8.0]]))
    vq.books[1].book.copy_(torch.tensor([[5.0, 5.0], [1.0, 0.0], [0.0, -1.0]]))
    codes = every(3, 2)
    z = vq.vectors(codes)
    assert torch.equal(vq(z).codes, codes)
    assert len({tuple(r) for r in z[0].T.tolist()}) == 9


def test_residual_gradient_is_straight_through_and_commits_at_every_depth() -> None:
    vq = ResidualVQ(4, 3, 2, beta=0.5).double()
    for seed, book in enumerate(vq.books):
        book.book.copy_(normal(4, 3, seed=seed))
    z = normal(2, 3, 4, seed=8).requires_grad_()
    weight = normal(2, 3, 4, seed=9)
    said = vq(z)
    (grad,) = torch.autograd.grad((said.z * weight).sum() + said.loss * z.numel(), z)
    parts = [vq.vectors(said.codes[:, :n]) for n in (1, 2)]
    torch.testing.assert_close(grad, weight + sum(2 * 0.5 * (z.detach() - p) for p in parts))


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EMACodeBook(0, 3), "0 codes"),
        (lambda: EMACodeBook(4, 0), "0 numbers"),
        (lambda: EMACodeBook(4, 2, decay=1.0), "decay is 1.0"),
        (lambda: GradientCodeBook(4, 2, beta=-1.0), "beta=-1.0"),
        (lambda: EMACodeBook(4, 2, restart=1.0), "restart=1.0"),
        (lambda: FSQ(()), "levels=()"),
        (lambda: FSQ((5, 1)), "2 or more values"),
        (lambda: LFQ(0), "0 bits"),
        (lambda: LFQ(4, temperature=0.0), "temperature=0.0"),
        (lambda: ResidualVQ(4, 2, 0), "depth 0"),
        (lambda: EMACodeBook(4, 2)(torch.zeros(1, 3, 5)), "given 3"),
    ],
)
def test_mistakes_are_told(make: object, said: str) -> None:
    with pytest.raises(UserError) as told:
        make()  # type: ignore[operator]
    assert said in str(told.value)
