"""The tools of the latent space against their formulas, on codecs that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.latent.anomaly import served, strangeness
from morphogen.latent.damage import DAMAGES, blur, grain, masked, missing, scratches
from morphogen.latent.directions import direction, walk
from morphogen.latent.interpolate import WAYS, interpolate, linear, spherical
from morphogen.latent.pca import explaining, principal, share
from morphogen.latent.quantise import EMACodeBook
from morphogen.latent.reconstruct import reconstruct
from morphogen.latent.restore import fitted, projected
from morphogen.latent.vectors import Vectors
from morphogen.latent.vq import VQVAE
from morphogen.metrics.rank import auroc

from .linear_codec import Bare, Book, Labelled, Linear, Tall


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- between two things


@pytest.mark.parametrize("d", [2, 3, 64, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_is_shoemakes_and_keeps_the_norm(d: int, dtype: torch.dtype) -> None:
    a, b = torch.nn.functional.normalize(normal(d, 2, 7, d, dtype=dtype), dim=-1)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    made = spherical(a, b, t)
    angle = torch.arccos((a.double() * b.double()).sum(1))[:, None, None]
    s = t[None, :, None]
    shoemake = (((1 - s) * angle).sin() * a[:, None] + (s * angle).sin() * b[:, None]) / angle.sin()
    tight = 1e-6 if dtype == torch.float32 else 1e-12
    sure = angle.sin()[:, 0, 0] > 0.05  # where the formula itself has digits left
    assert (made.double() - shoemake)[sure].abs().max() < tight / 0.05
    assert sure.sum() >= 5
    assert (made.norm(dim=-1) - 1).abs().max() < tight
    between = (made[:, 1:] * made[:, :-1]).sum(-1).clamp(-1, 1).arccos()  # equal steps of the angle
    assert (between - angle[:, :, 0].to(dtype) / 10).abs().max() < 2e-3
    scaled = spherical(3 * a, 3 * b, t)
    assert (scaled.norm(dim=-1) - 3).abs().max() < 3 * tight
    unequal = spherical(a, 4 * b, t)
    assert (unequal.norm(dim=-1) - (1 + 3 * t.to(dtype))).abs().max() < 10 * tight


@pytest.mark.parametrize("way", WAYS)
def test_ends_are_exact(way: str) -> None:
    a, b = normal(1, 2, 5, 9, dtype=torch.float32)
    a[1], b[2] = 0.0, -a[2]
    b[3], b[4] = a[3], 2 * a[4]
    made = WAYS[way](a, b, torch.tensor([0.0, 0.3, 1.0]))
    assert torch.equal(made[:, 0], a)
    assert torch.equal(made[:, 2], b)
    assert made.isfinite().all()


def test_linear_is_its_formula() -> None:
    a, b = normal(2, 2, 3, 4)
    t = torch.tensor([0.25, 0.5])
    assert torch.allclose(linear(a, b, t), torch.stack((0.75 * a + 0.25 * b, 0.5 * a + 0.5 * b), 1))


def test_slerp_where_there_is_no_one_circle() -> None:
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    a = normal(3, 4, 6)
    opposite = spherical(a, -a, t)
    assert torch.allclose(opposite.norm(dim=-1), a.norm(dim=1, keepdim=True).expand(-1, 5))
    assert (opposite[:, 2] * a).sum(1).abs().max() < 1e-9  # a right angle half-way
    assert torch.allclose(spherical(a, a, t), a[:, None].expand(-1, 5, -1))
    assert torch.allclose(spherical(a, 3 * a, t), linear(a, 3 * a, t))
    assert torch.allclose(spherical(0 * a, a, t), linear(0 * a, a, t))
    line = a[:, :1]
    assert torch.allclose(spherical(line, -2 * line, t), linear(line, -2 * line, t))
    near = a + 1e-9 * normal(4, 4, 6)
    assert torch.allclose(spherical(a, near, t), a[:, None].expand(-1, 5, -1), atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 4, 4)])
@pytest.mark.parametrize("kind", [Linear, Tall])
def test_interpolation_through_a_linear_codec_is_that_of_the_data(kind: type, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    codec = kind(shape, size if size % 2 == 0 else size + 1)
    a, b = normal(5, 2, 3, *shape)
    made = interpolate(codec, a, b, 5)
    assert made.shape == (3, 5, *shape)
    t = torch.linspace(0, 1, 5, dtype=torch.float64).reshape(1, 5, 1, 1, 1)
    assert torch.allclose(made, (1 - t) * a[:, None] + t * b[:, None])
    alone = interpolate(codec, a[:1], b[:1], 5, way=spherical)
    assert torch.allclose(alone[:, -1], b[:1])


def test_conditions_of_the_nearer_end_hold() -> None:
    codec = Labelled((1, 2, 3), 6)
    a, b = normal(6, 2, 2, 1, 2, 3)
    of = [{"label": torch.tensor(k)} for k in ([0, 1], [2, 3])]
    made = interpolate(codec, a, b, 4, cond_a=of[0], cond_b=of[1])
    for row in range(2):
        ends = [x[row] - 10 * c["label"][row] for x, c in zip((a, b), of, strict=True)]
        for i, t in enumerate((0, 1 / 3, 2 / 3, 1)):
            label = of[0]["label"][row] if t <= 0.5 else of[1]["label"][row]
            assert torch.allclose(made[row, i], (1 - t) * ends[0] + t * ends[1] + 10 * label)
    same = interpolate(codec, a, b, 3, cond_a=of[0])
    assert same.shape == (2, 3, 1, 2, 3)


def test_codes_are_mixed_as_vectors_or_not_at_all() -> None:
    a, b = torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 1.0)
    made = interpolate(Book(), a, b, 5)
    assert made[0, :, 0, 0, 0].tolist() == pytest.approx([-1, -0.5, 0, 0.5, 1])
    with pytest.raises(UserError, match="indices, and those cannot be mixed"):
        interpolate(Bare(), a, b, 5)
    with pytest.raises(UserError, match="2 or more"):
        interpolate(Book(), a, b, 1)
    with pytest.raises(UserError, match="has no latent space"):
        interpolate(torch.nn.Identity(), a, b, 5)


def test_the_ways_between_codes_of_a_code_book() -> None:
    """Of a VQ-VAE, and of whatever is built on it, the vectors of the codes are mixed; its ends are reconstructions."""
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Conv2d(1, 3, 2, 2), torch.nn.ConvTranspose2d(3, 1, 2, 2)
    codec = VQVAE(encoder, decoder, EMACodeBook(5, 3), (1, 4, 4))
    a, b = normal(31, 2, 2, 1, 4, 4, dtype=torch.float32)
    made = interpolate(codec, a, b, 3)
    with torch.no_grad():
        ends = [codec.decode(codec.encode(x)) for x in (a, b)]
        middle = codec.decode_vectors(sum(codec.quantised(codec.encode(x)) for x in (a, b)) / 2)
    for found, expected in zip(made.unbind(1), (ends[0], middle, ends[1]), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    damaged = missing(a, noise(2))
    assert fitted(codec, damaged, steps=2).shape == a.shape


def test_vectors_in_pieces_are_those_of_all() -> None:
    codec = Labelled((2, 3, 3), 7)
    x, cond = normal(7, 11, 2, 3, 3), {"label": torch.arange(11) % 4}
    whole, pieces = Vectors(codec), Vectors(codec, chunk=4)
    assert torch.allclose(whole.encode(x, cond), pieces.encode(x, cond), rtol=1e-12)
    z = whole.encode(x, cond)
    assert torch.allclose(whole.decode(z, cond), pieces.decode(z, cond), rtol=1e-12)
    assert z.requires_grad
    with pytest.raises(UserError, match="encode something first"):
        Vectors(codec).decode(z)
    with pytest.raises(UserError, match="at least one item"):
        whole.encode(x[:0])


# ---- directions


def test_the_direction_of_an_attribute_is_the_difference_of_class_means() -> None:
    z, has = normal(8, 40, 5), torch.arange(40) % 3 == 0
    expected = z[has].mean(0) - z[~has].mean(0)
    assert torch.allclose(direction(z, has), expected)
    assert torch.allclose(direction(z, has.long() * 4), expected / 4)  # per unit
    assert torch.allclose(direction(z.float(), has), expected.float(), atol=1e-6)


def test_the_direction_of_a_number_is_its_regressions_slope() -> None:
    z, v = normal(9, 50, 3), normal(10, 50)
    design = np.stack([np.ones(50), v.numpy()], 1)
    expected = np.linalg.lstsq(design, z.numpy(), rcond=None)[0][1]
    assert np.allclose(direction(z, v), expected)
    planted = torch.tensor([1.0, -2.0, 0.5]).double()
    assert torch.allclose(direction(v[:, None] * planted + 7, v), planted)


def test_within_classes_the_classes_are_no_part_of_it() -> None:
    """Dummy regression, and a planted confounder: without `given` the direction is mostly the classes'."""
    label = torch.arange(60) % 3
    v = normal(11, 60) + 4 * label
    planted = torch.tensor([1.0, 0.0]).double()
    z = (v - 4 * label)[:, None] * planted + torch.tensor([0.0, 9.0]).double() * label[:, None]
    found = direction(z, v, label)
    dummies = np.concatenate([v[:, None].numpy(), np.eye(3)[label.numpy()]], 1)
    assert np.allclose(found, np.linalg.lstsq(dummies, z.numpy(), rcond=None)[0][0])
    assert torch.allclose(found, planted)
    assert direction(z, v)[1] > 1
    with pytest.raises(UserError, match="same for all items"):
        direction(z, label, label)
    with pytest.raises(UserError, match="same for all items"):
        direction(z[:1], v[:1])


def test_a_walk_passes_where_it_starts() -> None:
    z, along = normal(12, 4, 6), normal(13, 6)
    made = walk(z, along, torch.tensor([-2.0, 0.0, 0.5]))
    assert torch.equal(made[:, 1], z)
    assert torch.allclose(made[:, 0], z - 2 * along)
    assert torch.allclose(made[:, 2], z + 0.5 * along)


# ---- principal components


@pytest.mark.parametrize(("n", "shape", "rank"), [(50, (6,), 3), (12, (1, 4, 5), 5), (9, (3,), 3), (40, (2, 2), 1)])
def test_components_are_scikit_learns_up_to_sign(n: int, shape: tuple[int, ...], rank: int) -> None:
    x = normal(n, n, *shape) * torch.linspace(1, 3, shape[-1]) + 5
    ours, flat = principal(x, rank), x.flatten(1).numpy()
    theirs = PCA(rank).fit(flat)
    sign = np.sign((ours.axes.numpy() * theirs.components_).sum(1))
    assert np.allclose(ours.axes, sign[:, None] * theirs.components_)
    assert np.allclose(ours.encode(x), theirs.transform(flat) * sign)
    assert np.allclose(ours.decode(ours.encode(x)).flatten(1), theirs.inverse_transform(theirs.transform(flat)))
    assert np.allclose(ours.variance, theirs.explained_variance_)
    assert np.allclose(share(ours), theirs.explained_variance_ratio_)
    if rank < min(n - 1, math.prod(shape)) and n > math.prod(shape):
        assert np.allclose(ours.log_prob(x), theirs.score_samples(flat))
    assert ours.encode(x[:1].float()).dtype == torch.float32


def test_as_few_components_as_keep_the_variance() -> None:
    x = normal(30, 500, 4) * torch.tensor([10.0, 3.0, 1.0, 0.1])
    kept = share(principal(x, 4)).cumsum(0)
    for wanted in (0.5, 0.95, 0.995, 1.0):
        rank = len(explaining(x, wanted).axes)
        assert rank == 4 or kept[rank - 1] >= wanted
        assert rank == 1 or kept[rank - 2] < wanted
    assert len(explaining(x[:2]).axes) == 1
    with pytest.raises(UserError, match="up to 1"):
        explaining(x, 1.5)


def test_components_that_cannot_be() -> None:
    for rank in (0, 4, 10):
        with pytest.raises(UserError, match="take 1 to 3"):
            principal(normal(1, 4, 10), rank)
    with pytest.raises(UserError, match="no density"):
        principal(normal(1, 9, 3), 3).log_prob(normal(2, 4, 3))


# ---- reconstruction and anomalies


def test_reconstruction_and_its_error() -> None:
    codec, x = Linear((1, 3, 3), 4), normal(14, 7, 1, 3, 3)
    found = reconstruct(codec, x)
    projector = codec.up.detach() @ codec.down.detach()
    expected = (x.flatten(1) @ projector.T).reshape(x.shape)
    assert torch.allclose(found.made, expected)
    assert torch.allclose(found.error, (x - expected).square().mean((1, 2, 3)))
    assert torch.allclose(reconstruct(Linear((1, 3, 3), 9), x).error, torch.zeros(7).double(), atol=1e-20)
    right = {"label": torch.arange(7)}
    labelled = Labelled((1, 3, 3), 9)
    assert reconstruct(labelled, x, right).error.max() < 1e-20
    book = reconstruct(Book(), torch.tensor([-0.9, 0.1]).reshape(2, 1, 1, 1).expand(-1, -1, 2, 2))
    assert book.error.tolist() == pytest.approx([0.01, 0.01])
    with pytest.raises(UserError, match="gives back the shape"):
        reconstruct(Bare(), torch.zeros(3, 1, 4, 4))


def test_a_plane_separates_what_lies_off_it() -> None:
    basis = torch.linalg.qr(normal(15, 10, 3)).Q
    on, off = normal(16, 200, 3) @ basis.T, normal(17, 100, 10)
    components = principal(on + 1e-3 * normal(18, 200, 10), 3)
    x, strange = torch.cat((on, off)), torch.arange(300) >= 200
    for by in ("error", "log_prob"):
        assert auroc(strangeness(components, x, by=by, chunk=77), strange).value == 1
    assert served(components) == ["error", "log_prob"]
    assert torch.allclose(strangeness(components, x, by="error"), reconstruct(components, x).error)
    assert torch.allclose(strangeness(components, x, by="log_prob"), -components.log_prob(x))
    with pytest.raises(UserError, match="by 'error' or 'log_prob'"):
        strangeness(components, x, by="elbo")
    with pytest.raises(UserError, match="neither a codec"):
        strangeness(torch.nn.Identity(), x)
    assert strangeness(components, x[:0]).shape == (0,)


# ---- damage and its undoing


def noise(n: int, seed: int = 0) -> Noise:
    return Noise.seeded(seed, n)


@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 4, 12), (1, 1, 1)])
def test_operators_are_linear_where_they_say_so(shape: tuple[int, ...]) -> None:
    x, y = normal(20, 2, 4, *shape)
    for damaged in (missing(x, noise(4)), scratches(x, noise(4), value=0.0), blur(x, noise(4))):
        f = damaged.forward
        assert torch.equal(damaged.y, f(x))
        assert torch.allclose(f(2 * x - 3 * y), 2 * f(x) - 3 * f(y))
    filled = scratches(x, noise(4), width=30.0, value=0.7)
    assert (filled.y == 0.7).any()
    assert torch.equal(filled.forward(filled.y), filled.y)


def test_blur_keeps_constants_and_the_mean_of_a_point() -> None:
    for size in (5, 30):
        assert torch.allclose(
            blur(torch.ones(1, 3, size, size).double(), noise(1)).y, torch.ones(1, 3, size, size).double()
        )
    point = torch.zeros(1, 1, 41, 41).double()
    point[..., 20, 20] = 1
    made = blur(point, noise(1), sigma=2.0).y[0, 0]
    axis = torch.arange(41).double() - 20
    assert float((made.sum(0) * axis.square()).sum()) == pytest.approx(4.0, rel=0.03)  # cut off at 3σ
    assert torch.allclose(made, made.T)
    assert torch.equal(blur(point, noise(1), sigma=0.0).y, point)


def test_damage_belongs_to_the_item() -> None:
    """The same item is damaged alike in any batch, all colours of a pixel together."""
    x = normal(21, 5, 3, 12, 10)
    for name, damage in DAMAGES.items():
        whole, alone = damage(x, noise(5)).y, damage(x[3:4], Noise(noise(5).key[3:4])).y
        assert torch.allclose(whole[3:4], alone), name
        assert (whole != x).any(), name
    lost = missing(x, noise(5), share=0.4, value=9.0).y == 9
    assert torch.equal(lost[:, 0], lost[:, 2])
    assert 0.25 < lost.double().mean() < 0.55
    assert torch.equal(missing(x, noise(5), share=0.0).y, x)
    assert torch.equal(missing(x, noise(5), share=1.0).y, torch.zeros_like(x))
    assert torch.equal(scratches(x, noise(5), count=0).y, x)
    sd = (grain(x, noise(5), sigma=0.3).y - x).std()
    assert float(sd) == pytest.approx(0.3, rel=0.1)
    for bad in (lambda: missing(x, noise(5), share=1.2), lambda: blur(x, noise(5), sigma=-1.0),
                lambda: grain(x, noise(5), sigma=-1.0), lambda: scratches(x, noise(5), width=0.0)):  # fmt: skip
        with pytest.raises(UserError, match="take"):
            bad()


def plane(n: int, shape: tuple[int, ...], rank: int) -> tuple[Linear, Tensor]:
    codec = Linear(shape, rank, seed=3)
    with torch.no_grad():
        return codec, codec.decode(normal(22, n, rank))


@pytest.mark.parametrize("name", ["missing", "scratches", "blur"])
def test_a_fit_finds_what_lies_on_the_plane(name: str) -> None:
    """Data that the decoder can make exactly come back, though much of them is lost: A∘decode is still injective."""
    codec, x = plane(3, (1, 8, 9), 4)
    damaged = DAMAGES[name](x, noise(3))
    made = fitted(codec, damaged, steps=400, rate=0.3)
    apart = (damaged.y - x).square().mean()
    assert (made - x).square().mean() < 1e-4 * apart
    if name != "blur":
        assert (projected(codec, damaged) - x).square().mean() > 1e-3 * apart  # which does not know what was lost
    assert all(p.requires_grad for p in codec.parameters())
    assert all(p.grad is None for p in codec.parameters())


def test_a_fit_with_a_weight_is_ridge_regression() -> None:
    codec, x = plane(2, (1, 5, 5), 3)
    damaged = missing(x + 0.1 * normal(23, 2, 1, 5, 5), noise(2), share=0.3)
    made = fitted(codec, damaged, steps=2000, rate=0.1, weight=0.05)
    up = codec.up.detach()
    for y, intact, z in zip(damaged.y, damaged.intact, made, strict=True):  # type: ignore[arg-type]
        a = up * intact.reshape(-1, 1)
        best = torch.linalg.solve(a.T @ a + 0.05 * torch.eye(3).double(), a.T @ y.flatten())
        expected = torch.where(intact > 0, y, (up @ best).reshape(1, 5, 5))
        assert torch.allclose(z, expected, atol=1e-4)


def test_intact_pixels_stay_and_noise_is_projected_away() -> None:
    codec, x = plane(20, (1, 8, 8), 5)
    damaged = masked(x + 1, (normal(24, 20, 1, 8, 8) > 0).double(), value=-1.0)
    for made in (projected(codec, damaged), fitted(codec, damaged, steps=3)):
        there = damaged.intact.expand_as(x) > 0  # type: ignore[union-attr]
        assert torch.equal(made[there], damaged.y[there])
    noisy = grain(x, noise(20), sigma=0.5)
    left = (projected(codec, noisy) - x).square().sum() / (noisy.y - x).square().sum()
    assert float(left) == pytest.approx(5 / 64, rel=0.5)  # what of white noise lies in a plane of 5 of 64 dimensions
    assert torch.allclose(fitted(codec, noisy, steps=0), projected(codec, noisy))


def test_rows_of_a_fit_are_independent() -> None:
    codec, x = plane(4, (1, 6, 6), 3)
    damaged = missing(x, noise(4))
    whole = fitted(codec, damaged, steps=20)
    alone = fitted(codec, missing(x[2:3], Noise(noise(4).key[2:3])), steps=20)
    assert torch.allclose(whole[2:3], alone)
    labelled, cond = Labelled((1, 6, 6), 36), {"label": torch.arange(4)}
    assert torch.allclose(projected(labelled, blur(x, noise(4), sigma=0.0), cond), x)
    with pytest.raises(UserError, match="goes nowhere"):
        fitted(codec, damaged, steps=-1)
