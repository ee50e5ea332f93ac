"""Variational autoencoders held against closed forms: pPCA, conjugate Gaussians, quadrature, torch.distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, distributions, nn

from morphogen import UserError
from morphogen.core import NONE, Infers, Net, Noise, can, keys
from morphogen.hooks import ActiveUnits, HasUnits
from morphogen.latent.bound import active, dreg, free_bits, iwae, mmd, rising, standard_kl
from morphogen.latent.hierarchical import Ladder, Rung, product
from morphogen.latent.likelihood import Bernoulli, Gaussian
from morphogen.latent.objective import ELBO, IWAE, InfoVAE
from morphogen.latent.posterior import Diagonal, Flowed
from morphogen.latent.vae import VAE
from morphogen.laws import normal_kl, normal_log_prob
from morphogen.nets.mlp import MLP

LOG_P = -1.5155121235  # of x = 1 under z ~ N(0, 1), x | z ~ N(z, 1)


class Linear(Net):
    """A linear map with bias that takes conditions and reads none."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, outputs, bias)

    def forward(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        return self.map(x.flatten(1))


class Fixed(Net):
    """Says the same of every x: `said` (d,), which is trained."""

    def __init__(self, *said: float) -> None:
        super().__init__()
        self.said = nn.Parameter(torch.tensor(said, dtype=torch.float64))

    def forward(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        return self.said.expand(len(x), -1)


class Same(Net):
    """The decoder x̂ = z, which counts the rows that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, z: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        self.rows.append(len(z))
        return z


def conjugate(mean: float = 0.0, log_var: float = 0.0, **more) -> VAE:
    return VAE(Diagonal(Fixed(mean, log_var), 1), Same(), Gaussian((1,)), **more).double()


def nodes(k: int, points: int = 60) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes eps (k, N) and weights (N,) of k independent standard normals."""
    x, w = np.polynomial.hermite_e.hermegauss(points)
    grids = np.meshgrid(*[x] * k, indexing="ij")
    weights = np.prod(np.meshgrid(*[w / w.sum()] * k, indexing="ij"), axis=0)
    return torch.tensor(np.stack([g.ravel() for g in grids])), torch.tensor(weights.ravel())


def log_weights(eps: Tensor, mean: Tensor, log_var: Tensor, stopped: bool = False) -> tuple[Tensor, Tensor]:
    """log w of the conjugate model at x = 1, and the draws z."""
    z = mean + (0.5 * log_var).exp() * eps
    m, v = (mean.detach(), log_var.detach()) if stopped else (mean, log_var)
    zero = torch.zeros((), dtype=torch.float64)
    return normal_log_prob(torch.ones(()), z, zero) + normal_log_prob(z, 0.0, zero) - normal_log_prob(z, m, v), z


# ---- divergences ---------------------------------------------------------------------------------------------------


def test_the_divergences_of_normals():
    one = torch.tensor(1.0, dtype=torch.float64)
    assert standard_kl(one, (4 * one).log()).item() == pytest.approx(1.3068528194, abs=1e-10)
    g = torch.Generator().manual_seed(0)
    m, p = torch.randn(2, 50, generator=g, dtype=torch.float64) * 3
    v, u = torch.randn(2, 50, generator=g, dtype=torch.float64) * 2
    q, r = (distributions.Normal(a, (b / 2).exp()) for a, b in ((m, v), (p, u)))
    torch.testing.assert_close(normal_kl(m, v, p, u), distributions.kl_divergence(q, r))
    unit = distributions.Normal(torch.zeros_like(m), torch.ones_like(m))
    torch.testing.assert_close(standard_kl(m, v), distributions.kl_divergence(q, unit))


def test_mmd_of_two_normals():
    n = 4000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = distributions.Normal(0.0, 1.0).icdf(grid)[:, None]  # the law itself, to 1/n
    exact = 2 * (3**-0.5 - 3**-0.5 * math.exp(-1 / 6))
    assert exact == pytest.approx(0.1772676350, abs=1e-10)
    assert mmd(x, x + 1).item() == pytest.approx(exact, abs=1e-3)
    # without bias: the mean over many small samples, of one law and of two
    g = torch.Generator().manual_seed(1)
    for shift, truth in ((0.0, 0.0), (1.0, exact)):
        draws = torch.stack(
            [mmd(*torch.randn(2, 5, 1, generator=g, dtype=torch.float64) + torch.tensor([[[0.0]], [[shift]]]))
             for _ in range(300)]
        )  # fmt: skip
        assert abs(draws.mean().item() - truth) < 4 * draws.std().item() / 300**0.5
    # in two dimensions of another bandwidth, by hand
    a, b = torch.randn(2, 3, 2, generator=g, dtype=torch.float64)
    k = lambda s, t: math.exp(-float((s - t).square().sum()) / (2 * 1.7**2))  # noqa: E731
    pairs = [(i, j) for i in range(3) for j in range(3)]
    by_hand = sum((k(a[i], a[j]) + k(b[i], b[j])) / 6 for i, j in pairs if i != j) - sum(
        2 * k(a[i], b[j]) / 9 for i, j in pairs
    )
    assert mmd(a, b, 1.7).item() == pytest.approx(by_hand, abs=1e-12)
    assert mmd(a[:1], b[:1]).item() == mmd(a, b[:1]).item() == 0  # one says nothing of a law


def test_free_bits_pull_at_no_dimension_that_has_few():
    kl = torch.tensor([[0.1, 2.0, 0.0], [0.3, 4.0, 0.5]], requires_grad=True)
    counted = free_bits(kl, 0.5)  # the means are 0.2, 3 and 0.25
    assert counted.item() == pytest.approx(0.5 + 3 + 0.5)
    counted.backward()
    assert kl.grad.tolist() == [[0, 0.5, 0], [0, 0.5, 0]]
    model = VAE(Diagonal(Fixed(0.3, 1.5, 0.0, -1.0), 2), Linear(2, 1), Gaussian((1,)), ELBO(free=0.2)).double()
    batch = {"x": torch.randn(6, 1, dtype=torch.float64), "key": keys(torch.arange(6), 0)}
    assert model.counts(batch) == {}
    own = standard_kl(torch.tensor([0.3, 1.5]), torch.tensor([0.0, -1.0]))
    said = model.loss(batch)
    plain = VAE(model.posterior, model.decoder, model.law, ELBO()).loss(batch)
    assert own[0] < 0.2 < own[1]
    assert (said.value - plain.value).item() == pytest.approx(0.2 - own[0].item(), abs=1e-6)


def test_warm_up_and_beta_scale_the_divergence():
    assert [rising(s, 4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rising(0, 0) == 1
    batch = {"x": torch.randn(5, 1, dtype=torch.float64), "key": keys(torch.arange(5), 3)}
    values = []
    for step in (0, 4, 9, 50):
        model = conjugate(1.0, 0.5, objective=ELBO(2.0, warmup=10))
        model.step = step
        values.append(model.loss(batch).value.item())
    said = conjugate(1.0, 0.5).loss(batch)
    kl, distortion = said.logs["kl"].item(), (said.value - said.logs["kl"]).item()
    assert values == pytest.approx([distortion + 2 * f * kl for f in (0.1, 0.5, 1, 1)], rel=1e-12)
    assert said.logs["elbo"].item() == pytest.approx(-said.value.item(), rel=1e-12)


# ---- the linear VAE is pPCA ----------------------------------------------------------------------------------------


def ppca_data(n: int = 500) -> tuple[Tensor, Tensor]:
    """x (n, 5) whose mean is 0 and whose covariance is exactly Σ = R diag(5, 3, 1.5, 1, .5) Rᵀ; and R."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=g, dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / n)).T
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64))[0]
    return x * torch.tensor([5, 3, 1.5, 1, 0.5], dtype=torch.float64).sqrt() @ turn.T, turn


def test_the_linear_vae_reaches_the_likelihood_of_ppca():
    torch.manual_seed(0)
    x, _ = ppca_data()
    model = VAE(Diagonal(Linear(5, 4), 2), Linear(2, 5), Gaussian((5,), learned=True)).double()
    optim = torch.optim.Adam(model.parameters(), 0.03, betas=(0.9, 0.99))
    steps = 1200
    for step in range(steps):
        for group in optim.param_groups:
            group["lr"] = 0.03 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optim.zero_grad()
        model.loss({"x": x, "key": keys(torch.arange(len(x)), step)}).value.backward()
        optim.step()
    with torch.no_grad():
        W, sigma2 = model.decoder.map.weight, model.law.log_var.exp()
        marginal = distributions.MultivariateNormal(
            model.decoder.map.bias, W @ W.T + sigma2 * torch.eye(5, dtype=torch.float64)
        )
        reached = marginal.log_prob(x).mean().item()
        optimum = -8.4487177666
        assert optimum - 0.02 < reached <= optimum + 1e-9
        assert sigma2.item() == pytest.approx(1.0, abs=0.05)
        # tight (Lucas et al. 2019): the bound of many draws is the likelihood itself
        bound = torch.stack([model.elbo(x, noise=Noise.seeded(s, len(x))) for s in range(100)]).mean().item()
        assert bound == pytest.approx(reached, abs=0.02)
        # the optimal posterior has the variances σ²/λ along the principal axes, here (.2, .3333)
        encoder = model.posterior.encoder.map
        assert encoder.weight[2:].abs().max() < 0.05  # the same for all x
        inverse = torch.linalg.eigvalsh(W.T @ W / sigma2 + torch.eye(2, dtype=torch.float64)).reciprocal()
        assert inverse.flip(0).flip(0).sort().values.tolist() == pytest.approx([0.2, 1 / 3], abs=0.02)
        # q is diagonal, so what it reaches is the diagonal of the precision
        precision = (W.T @ W / sigma2 + torch.eye(2, dtype=torch.float64)).diagonal()
        assert encoder.bias[2:].exp().tolist() == pytest.approx(precision.reciprocal().tolist(), abs=0.02)


# ---- importance weights --------------------------------------------------------------------------------------------


def test_the_bound_of_k_samples_is_that_of_quadrature():
    values = []
    for k in (1, 2, 3):
        eps, weight = nodes(k)
        log_w, _ = log_weights(eps, torch.zeros(()), torch.zeros(()))
        values.append((weight @ iwae(log_w)).item())
    assert values[0] == pytest.approx(-1.9189385332, abs=1e-9)
    assert values[1] == pytest.approx(-1.6534737866, abs=1e-6)
    assert values[0] < values[1] < values[2] < LOG_P


@pytest.mark.parametrize(("k", "truth"), [(1, -1.9189385332), (2, -1.6534737866), (8, -1.5413), (64, -1.5185)])
def test_the_bound_rises_with_k_to_the_likelihood(k: int, truth: float):
    n = 20_000
    model, x = conjugate(), torch.ones(n, 1, dtype=torch.float64)
    bound = model.importance(x, k=k, noise=Noise.seeded(k, n))
    assert abs(bound.mean().item() - truth) < 4 * bound.std().item() / n**0.5 + 5e-5


def test_importance_weights_go_through_in_pieces():
    model, x = conjugate(), torch.ones(7, 1, dtype=torch.float64)
    found = model.importance(x, k=100_000)
    assert found.tolist() == pytest.approx([LOG_P] * 7, abs=0.03)
    assert max(model.decoder.rows) <= 2048
    assert sum(model.decoder.rows) == 700_000
    torch.testing.assert_close(found, model.importance(x, k=100_000))  # a function of x alone
    assert not torch.equal(found, model.importance(x, k=100_000, noise=Noise.seeded(1, 7)))
    assert model.importance(x[:0], k=3).shape == (0,)
    with pytest.raises(UserError, match="k=0"):
        model.importance(x, k=0)


def test_with_the_exact_posterior_every_draw_weighs_the_same():
    model = conjugate(0.5, math.log(0.5))  # the posterior of x = 1
    x = torch.ones(9, 1, dtype=torch.float64)
    for k in (1, 3):
        assert model.importance(x, k=k).tolist() == pytest.approx([LOG_P] * 9, abs=1e-10)
    # and its doubly reparameterised gradient is zero in every draw, as the plain one is not
    for doubly in (True, False):
        model = conjugate(0.5, math.log(0.5), objective=IWAE(4, doubly=doubly))
        model.loss({"x": x, "key": keys(torch.arange(9), 0)}).value.backward()
        gradient = model.posterior.encoder.said.grad.abs().max().item()
        assert (gradient < 1e-12) == doubly


@pytest.mark.parametrize("k", [1, 2])
def test_doubly_reparameterised_gradients_have_the_mean_of_the_true_one(k: int):
    eps, weight = nodes(k, 80)
    mean, log_var = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, -0.4))
    true = torch.autograd.grad(weight @ iwae(log_weights(eps, mean, log_var)[0]), (mean, log_var))
    log_w, z = log_weights(eps, mean, log_var, stopped=True)
    # one objective a node: the mean over nodes of the estimator's gradient
    shares = log_w.detach().softmax(0)
    (slope,) = torch.autograd.grad(log_w.sum(), z, retain_graph=True)
    by_formula = torch.autograd.grad(z, (mean, log_var), grad_outputs=shares.square() * slope * weight)
    assert [g.item() for g in by_formula] == pytest.approx([g.item() for g in true], abs=1e-6)
    # the library's own, through its hook on flat draws
    flat = (mean + (0.5 * log_var).exp() * eps).flatten()[:, None]
    seen = flat.view(k, -1)
    zero = torch.zeros((), dtype=torch.float64)
    again = (
        normal_log_prob(torch.ones(()), seen, zero)
        + normal_log_prob(seen, 0.0, zero)
        - normal_log_prob(seen, mean.detach(), log_var.detach())
    )
    bound = dreg(again, flat)
    torch.testing.assert_close(bound, iwae(again))
    found = torch.autograd.grad(weight @ bound, (mean, log_var))
    assert [g.item() for g in found] == pytest.approx([g.item() for g in true], abs=1e-6)


def test_the_model_s_doubly_reparameterised_gradient_is_that_of_the_bound():
    """In the model, with draws: encoder by the mean of many, decoder equal to the plain estimator's draw by draw."""
    n, k = 40_000, 3
    batch = {"x": torch.ones(n, 1, dtype=torch.float64), "key": keys(torch.arange(n), 5)}
    found = {}
    for doubly in (True, False):
        model = VAE(Diagonal(Fixed(-0.4, 0.3), 1), Linear(1, 1), Gaussian((1,)), IWAE(k, doubly=doubly)).double()
        with torch.no_grad():
            model.decoder.map.weight.fill_(0.8)
            model.decoder.map.bias.fill_(0.1)
        model.loss(batch).value.backward()
        found[doubly] = model
    for a, b in zip(found[True].decoder.parameters(), found[False].decoder.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    ours, plain = (found[d].posterior.encoder.said.grad for d in (True, False))
    assert ours.tolist() == pytest.approx(plain.tolist(), abs=0.02)
    assert ours[0].abs() > 0.2


def test_what_cannot_be_doubly_reparameterised_says_so():
    with pytest.raises(UserError, match="doubly=False"):
        VAE(Flowed(Fixed(0.0, 0.0), Shear(), 1), Same(), Gaussian((1,)), IWAE(3))
    with pytest.raises(UserError, match="k=0"):
        IWAE(0)
    with pytest.raises(UserError, match="below 0"):
        ELBO(-1.0)
    with pytest.raises(UserError, match="at least 1"):
        InfoVAE(0.2, 0.3)


# ---- posteriors ----------------------------------------------------------------------------------------------------


class Shear(Net):
    """z' = e^a z + b, by what it is told: cond["context"] (a, b), or (0.7, -0.3)."""

    def forward(self, z: Tensor, cond: Mapping[str, Tensor] = NONE) -> tuple[Tensor, Tensor]:
        told = cond.get("context", torch.tensor([[0.7, -0.3]], dtype=z.dtype).expand(len(z), -1))
        return z * told[:, :1].exp() + told[:, 1:], told[:, 0] * z.shape[1]


@pytest.mark.parametrize("context", [0, 2])
def test_a_flowed_posterior_has_the_density_of_what_it_draws(context: int):
    """An affine flow of a Gaussian is a Gaussian, so both models are one."""
    a, b = (0.7, -0.3) if not context else (-0.2, 0.9)
    said = (0.4, -0.6, 0.5, -1.0) + ((a, b) if context else ())
    flowed = VAE(Flowed(Fixed(*said), Shear(), 2, context), Linear(2, 3), Gaussian((3,))).double()
    mean = [math.exp(a) * m + b for m in said[:2]]
    plain = VAE(Diagonal(Fixed(*mean, said[2] + 2 * a, said[3] + 2 * a), 2), flowed.decoder, flowed.law).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    noise = lambda: Noise.seeded(0, 4)  # noqa: E731
    torch.testing.assert_close(flowed.importance(x, k=5, noise=noise()), plain.importance(x, k=5, noise=noise()))
    torch.testing.assert_close(flowed.encode(x), plain.encode(x))
    one = plain.importance(x, k=1, noise=Noise.seeded(3, 4))
    torch.testing.assert_close(flowed.elbo(x, noise=Noise.seeded(3, 4)), one)  # by its draw, not in closed form


def ladder(**more) -> VAE:
    rungs = Rung(Linear(3, 6), 6, 2, Linear(1, 4)), Rung(Linear(6, 5), 5, 1)
    return VAE(Ladder(*rungs), Linear(2, 3), Gaussian((3,), 0.8), **more).double()


def test_a_product_of_gaussians():
    g = torch.Generator().manual_seed(0)
    m, v, p, u = torch.randn(4, 30, generator=g, dtype=torch.float64)
    mean, log_var = product(m, v, p, u)
    precision = (-v).exp() + (-u).exp()
    torch.testing.assert_close(log_var, -precision.log())
    torch.testing.assert_close(mean, (m * (-v).exp() + p * (-u).exp()) / precision)
    far = product(m, v + 2000, p, u)  # what says nothing changes nothing
    torch.testing.assert_close(far[0], p)
    torch.testing.assert_close(far[1], u)


def test_a_ladder_s_likelihood_is_that_of_the_joint_gaussian():
    """Linear all the way and with constant variances the model is Gaussian: log p(x) has a closed form."""
    torch.manual_seed(1)
    model = ladder()
    one, two = model.posterior.rungs
    with torch.no_grad():
        for net, rows in ((one.down.map, 2), (one.head, 2), (two.head, 1)):
            net.weight[rows:].zero_()  # log-variances by their biases alone
            net.bias[rows:].uniform_(-0.5, 0.5)
        for head in (one.head, two.head):  # a posterior broad enough that its weights have a variance
            head.weight.mul_(0.3)
            head.bias.add_(0.5)
        A, a = one.down.map.weight[:2], one.down.map.bias[:2]
        W, b = model.decoder.map.weight, model.decoder.map.bias
        spread = A @ A.T + torch.diag(one.down.map.bias[2:].exp())
        cov = W @ spread @ W.T + 0.64 * torch.eye(3, dtype=torch.float64)
        law = distributions.MultivariateNormal(W @ a + b, cov)
        x = law.sample((6,))
        found = model.importance(x, k=60_000)
        torch.testing.assert_close(found, law.log_prob(x), atol=0.05, rtol=0)
        # and every one of its bounds is below it
        bounds = torch.stack([model.elbo(x, noise=Noise.seeded(s, 6)) for s in range(400)])
        assert (bounds.mean(0) < law.log_prob(x) + 4 * bounds.std(0) / 20).all()
        # the mean of the bound is that of one weight: both estimate the same number
        single = model.importance(x.repeat(4000, 1), k=1, noise=Noise.seeded(9, 24_000)).view(4000, 6)
        apart = bounds.mean(0) - single.mean(0)
        assert (apart.abs() < 4 * (bounds.var(0) / 400 + single.var(0) / 4000).sqrt()).all()
        # samples have the law's mean and covariance
        drawn = model.sample(60_000, noise=Noise.seeded(2, 60_000))
        torch.testing.assert_close(drawn.mean(0), law.mean, atol=0.03, rtol=0)
        torch.testing.assert_close(drawn.T.cov(), cov, atol=0.05, rtol=0)


def test_a_ladder_of_one_rung_is_a_plain_vae():
    torch.manual_seed(0)
    rung = Rung(Linear(3, 6), 6, 2)
    one = VAE(Ladder(rung), Linear(2, 3), Gaussian((3,))).double()

    class Both(Net):
        def forward(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
            return rung.head(rung.up(x, cond))

    plain = VAE(Diagonal(Both(), 2), one.decoder, one.law).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    for f in (lambda m: m.elbo(x), lambda m: m.importance(x, k=4), lambda m: m.encode(x), lambda m: m.units(x)):
        torch.testing.assert_close(f(one), f(plain))
    model = ladder()
    assert model.units(x).shape == (5, 3)
    torch.testing.assert_close(model.units(x)[:, :2], model.encode(x))
    with pytest.raises(UserError, match="from x upwards"):
        Ladder(Rung(Linear(3, 6), 6, 2), Rung(Linear(6, 5), 5, 1))


def test_an_empty_batch_of_anything():
    x = torch.zeros(0, 3, dtype=torch.float64)
    for model in (ladder(), VAE(Diagonal(Linear(3, 4), 2), Linear(2, 3), Gaussian((3,))).double()):
        assert model.elbo(x).shape == (0,)
        assert model.encode(x).shape == (0, 2)
        assert model.decode(torch.zeros(0, 2, dtype=torch.float64)).shape == (0, 3)
        assert model.sample(0).shape == (0, 3)


def test_wrong_sizes_are_told():
    x = torch.zeros(2, 3)
    with pytest.raises(UserError, match=r"6 numbers a sample.*has 4"):
        VAE(Diagonal(Linear(3, 6), 2), Linear(2, 3), Gaussian((3,))).elbo(x)
    with pytest.raises(UserError, match=r"says 5 numbers.*reads 3"):
        VAE(Diagonal(Linear(3, 4), 2), Linear(2, 5), Gaussian((3,))).elbo(x)
    with pytest.raises(UserError, match="likelihood is of"):
        VAE(Diagonal(Linear(3, 4), 2), Linear(2, 3), Gaussian((3,))).elbo(torch.zeros(2, 4))
    with pytest.raises(UserError, match="binarise"):
        VAE(Diagonal(Linear(3, 4), 2), Linear(2, 3), Bernoulli((3,))).elbo(torch.full((2, 3), 0.2))


# ---- conditions and collapse ---------------------------------------------------------------------------------------


def test_a_conditional_vae_hears_its_label():
    torch.manual_seed(0)
    model = VAE(Diagonal(MLP(3, 4, 8, 1, classes=4), 2), MLP(2, 3, 8, 1, classes=4), Gaussian((3,)))
    x, label = torch.randn(6, 3), torch.arange(6) % 4
    whole = model.importance(x, {"label": label}, k=7, noise=Noise.seeded(0, 6))
    for i in range(6):  # each draw of each sample is decoded with its own label
        own = model.importance(
            x[i : i + 1], {"label": label[i : i + 1]}, k=7, noise=Noise(keys(torch.arange(i, i + 1), 0))
        )
        torch.testing.assert_close(own, whole[i : i + 1], atol=1e-5, rtol=0)
    other = model.importance(x, {"label": label.flip(0)}, k=7, noise=Noise.seeded(0, 6))
    assert not torch.allclose(whole, other)
    drawn = [model.sample(4, {"label": torch.full((4,), c)}, noise=Noise.seeded(0, 4), mean=True) for c in (0, 1)]
    assert not torch.allclose(*drawn)


def test_active_units_are_those_whose_mean_moves():
    means = torch.randn(1000, 4) * torch.tensor([1.0, 0.0, 0.2, 0.05])
    assert active(means).tolist() == [True, False, True, False]


class _Seen:
    """What a hook sees of a training."""

    def __init__(self, model, test) -> None:
        self.model, self.step, self.device = model, 7, torch.device("cpu")
        self.data = type("Data", (), {"test": test})
        self.lines, self.told = [], []
        self.log = type("Log", (), {"write": staticmethod(self.lines.append)})
        self.voice = type("Voice", (), {"say": staticmethod(self.told.append)})


def test_collapsed_dimensions_are_named_in_the_log():
    from morphogen.data.items import Tensors

    model = VAE(Diagonal(Linear(3, 8), 4), Linear(4, 3), Gaussian((3,)))
    with torch.no_grad():
        model.posterior.encoder.map.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.posterior.encoder.map.weight[[1, 3]] = 0.0
    seen = _Seen(model, Tensors(torch.randn(40, 3)))
    ActiveUnits(1)(seen)
    assert seen.lines == [{"step": 7, "active": 2, "collapsed": [1, 3]}]
    assert seen.told == ["step 7: 2 of 4 latent dimensions have collapsed and say nothing of the data: 1, 3"]
    assert isinstance(model, HasUnits)
    with pytest.raises(UserError, match="no latent dimensions"):
        ActiveUnits(1)(_Seen(nn.Linear(1, 1), None))


def test_info_vae_trades_the_divergence_for_a_distance():
    batch = {"x": torch.randn(8, 1, dtype=torch.float64), "key": keys(torch.arange(8), 3)}
    plain, mixed = conjugate(1.0, 0.5), conjugate(1.0, 0.5, objective=InfoVAE(0.3, 4.0))
    said, other = plain.loss(batch), mixed.loss(batch)
    kl, distortion = said.logs["kl"], said.value - said.logs["kl"]
    torch.testing.assert_close(other.value, distortion + 0.7 * kl + 3.3 * other.logs["mmd"])
    assert mixed.counts(batch) == {}
    torch.testing.assert_close(conjugate(1.0, 0.5, objective=InfoVAE(0.0, 1.0)).loss(batch).value, said.value)


def test_what_a_draw_knows_without_the_prior():
    """log p(x|z) − log q(z|x): with the model's own prior the weight of one draw; a hierarchy has no such law of z."""
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64)
    flowed = VAE(Flowed(Fixed(0.4, -0.6, 0.5, -1.0), Shear(), 2), Linear(2, 3), Gaussian((3,))).double()
    for model in (VAE(Diagonal(Linear(3, 4), 2), Linear(2, 3), Gaussian((3,))).double(), flowed):
        assert can(model, Infers)
        z, log_q = model.infer(x, noise=Noise.seeded(0, 5))
        known = model.log_likelihood(x, z) - log_q
        own = distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        torch.testing.assert_close(known + own, model.importance(x, k=1, noise=Noise.seeded(0, 5)))
    assert not can(ladder(), Infers)
