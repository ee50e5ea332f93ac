"""Games held against theory: optimal critics and what they reach, f-divergences, two-parameter dynamics.

Closed forms: Goodfellow et al. 2014, theorem 1; Mao et al. 2017, section 3.2; Nowozin et al. 2016, tables 1 and 2;
Mescheder et al. 2018, sections 3 and 4; Lim & Ye 2017; scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.stats import norm, wasserstein_distance
from torch import Tensor

from morphogen.adversarial import losses
from morphogen.adversarial.losses import (
    CHI_SQUARE,
    DIVERGENCES,
    GAMES,
    HINGE,
    LEAST_SQUARES,
    MINIMAX,
    NON_SATURATING,
    RELATIVISTIC,
    RELATIVISTIC_AVERAGE,
    WASSERSTEIN,
    FGame,
    Game,
)
from morphogen.errors import UserError
from morphogen.spec import build, spec

# Jensen-Shannon divergence of N(0, 1) and N(m, 1), and V(D*) = -ln 4 + 2 JSD
JSD = {1: 0.1114214822, 2: 0.3368308203, 3: 0.5267773065}
VALUE = {1: -1.1634513968, 2: -0.7126327204, 3: -0.3327397481}


def scores(n: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    real, fake = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()
    return 3 * real, 3 * fake


def expectation(f: Callable[[float], float], mean: float) -> float:
    return float(quad(lambda x: f(x) * norm.pdf(x, mean), mean - 12, mean + 12, limit=400)[0])


# ---- formulas ------------------------------------------------------------------------------------------------------


def chance(s: float) -> float:
    return 1 / (1 + math.exp(-s))


def of(values: Tensor, f: Callable[[float], float]) -> float:
    return sum(f(float(v)) for v in values.flatten()) / values.numel()


FORMULAS: dict[str, tuple[Callable[[Tensor, Tensor], float], Callable[[Tensor, Tensor], float]]] = {
    "non-saturating": (
        lambda r, f: -of(r, lambda s: math.log(chance(s))) - of(f, lambda s: math.log(1 - chance(s))),
        lambda r, f: -of(f, lambda s: math.log(chance(s))),
    ),
    "minimax": (
        lambda r, f: -of(r, lambda s: math.log(chance(s))) - of(f, lambda s: math.log(1 - chance(s))),
        lambda r, f: of(f, lambda s: math.log(1 - chance(s))),
    ),
    "least-squares": (
        lambda r, f: of(r, lambda s: (s - 1) ** 2 / 2) + of(f, lambda s: (s + 1) ** 2 / 2),
        lambda r, f: of(f, lambda s: (s - 1) ** 2 / 2),
    ),
    "chi-square": (
        lambda r, f: of(r, lambda s: (s - 1) ** 2 / 2) + of(f, lambda s: (s + 1) ** 2 / 2),
        lambda r, f: of(f, lambda s: s**2 / 2),
    ),
    "hinge": (
        lambda r, f: of(r, lambda s: max(0.0, 1 - s)) + of(f, lambda s: max(0.0, 1 + s)),
        lambda r, f: -of(f, lambda s: s),
    ),
    "wasserstein": (lambda r, f: of(f, lambda s: s) - of(r, lambda s: s), lambda r, f: -of(f, lambda s: s)),
    "relativistic": (
        lambda r, f: -of(r - f, lambda s: math.log(chance(s))),
        lambda r, f: -of(f - r, lambda s: math.log(chance(s))),
    ),
    "relativistic-average": (
        lambda r, f: (
            -of(r - f.mean(), lambda s: math.log(chance(s))) - of(f - r.mean(), lambda s: math.log(1 - chance(s)))
        ),
        lambda r, f: (
            -of(f - r.mean(), lambda s: math.log(chance(s))) - of(r - f.mean(), lambda s: math.log(1 - chance(s)))
        ),
    ),
}


@pytest.mark.parametrize("name", [n for n in GAMES if n not in DIVERGENCES])
@pytest.mark.parametrize("shape", [(7,), (1,), (3, 1, 2, 2)])
def test_losses_are_their_formulas(name: str, shape: tuple[int, ...]) -> None:
    real, fake = (s.view(shape) for s in scores(math.prod(shape), seed=len(shape)))
    critic, generator = FORMULAS[name]
    assert float(GAMES[name].critic(real, fake)) == pytest.approx(critic(real, fake))
    assert float(GAMES[name].generator(real, fake)) == pytest.approx(generator(real, fake))


@pytest.mark.parametrize("name", GAMES)
def test_only_a_game_that_compares_reads_the_real_scores_in_the_generators_turn(name: str) -> None:
    game, (real, fake) = GAMES[name], scores()
    changed = bool(game.generator(real, fake) != game.generator(real + 1, fake))
    assert changed == game.compares
    fake.requires_grad_()
    (pull,) = torch.autograd.grad(game.generator(real, fake), fake)
    falling = name in ("least-squares", "chi-square", "pearson")  # squares, beyond their aim
    assert falling or bool((pull <= 0).all())  # a higher score is what the generator wants


@pytest.mark.parametrize("name", GAMES)
def test_scores_shifted_together_change_nothing_where_there_is_no_border(name: str) -> None:
    game, (real, fake) = GAMES[name], scores()
    still = torch.isclose(game.critic(real, fake), game.critic(real + 0.7, fake + 0.7))
    assert bool(still) != game.border
    assert float(game.right(real, fake)) == pytest.approx(
        float((real > fake).double().mean())
        if not game.border
        else 0.5 * float((real > 0).double().mean() + (fake < 0).double().mean())
    )


@pytest.mark.parametrize("name", ["non-saturating", "minimax", "relativistic", "relativistic-average", "hinge", "js"])
def test_scores_far_out_stay_finite(name: str) -> None:
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    for side in (GAMES[name].critic, GAMES[name].generator):
        value = side(far, far.flip(0))
        (g,) = torch.autograd.grad(value, far, allow_unused=True)
        assert bool(value.isfinite())
        assert g is None or bool(g.isfinite().all())


def test_a_game_is_written_down_and_made_again() -> None:
    for name, game in GAMES.items():
        again = build(spec(game))
        assert type(again) is type(game)
        for side in ("critic", "generator"):
            assert getattr(again, side)(*scores()) == getattr(game, side)(*scores()), name
    with pytest.raises(UserError, match="hellinger"):
        FGame("helinger")


# ---- what optimal critics reach ------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_best_critic_reaches_the_jensen_shannon_divergence(m: int) -> None:
    """By quadrature: with D* = log p/q, minus the critic's loss is -ln 4 + 2 JSD."""
    best = lambda x: torch.tensor(0.5 * (x - m) ** 2 - 0.5 * x**2, dtype=torch.float64)  # noqa: E731  log p/q
    far = torch.tensor(700.0, dtype=torch.float64)
    real = expectation(lambda x: -float(losses.non_saturating(best(x), -far)), 0)
    fake = expectation(lambda x: -float(losses.non_saturating(far, best(x))), m)
    assert real + fake == pytest.approx(VALUE[m], abs=1e-8)
    assert real + fake == pytest.approx(-math.log(4) + 2 * JSD[m], abs=1e-8)


def trained(game: Game, m: float, features: Callable[[Tensor], Tensor], steps: int = 60) -> tuple[Tensor, Tensor]:
    """Scores of stratified x of N(0, 1) and N(m, 1) by a critic linear in `features`, trained by the game's loss."""
    q = (torch.arange(4001, dtype=torch.float64) + 0.5) / 4001
    x = torch.special.ndtri(q)
    real, fake = features(x), features(x + m)
    w = torch.zeros(real.shape[1], dtype=torch.float64, requires_grad=True)
    optim = torch.optim.LBFGS([w], 1.0, steps, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optim.zero_grad()
        value = game.critic(real @ w, fake @ w)
        value.backward()
        return value

    optim.step(closure)  # type: ignore[arg-type]
    return (real @ w).detach(), (fake @ w).detach()


def powers(x: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x, x**2, x**3], 1)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_trained_critic_reaches_the_value(m: int) -> None:
    real, fake = trained(NON_SATURATING, m, powers)
    assert -float(NON_SATURATING.critic(real, fake)) == pytest.approx(VALUE[m], abs=0.01)
    assert -float(NON_SATURATING.critic(real, 0 * fake)) != pytest.approx(VALUE[m], abs=0.1)  # it can fail
    assert float(MINIMAX.critic(real, fake)) == float(NON_SATURATING.critic(real, fake))


DIVERGENCE = {  # D_f(N(0, 1) || N(m, 1)) in closed form
    "kl": lambda m: m**2 / 2,
    "reverse-kl": lambda m: m**2 / 2,
    "pearson": lambda m: math.exp(m**2) - 1,
    "hellinger": lambda m: 2 - 2 * math.exp(-(m**2) / 8),
    "total-variation": lambda m: 2 * norm.cdf(m / 2) - 1,
    "js": lambda m: 2 * JSD[m],
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_an_f_divergence_is_its_closed_form_and_its_dual_its_conjugate(name: str) -> None:
    f, activation, dual = DIVERGENCES[name]

    def ratio(x: float, m: float) -> Tensor:
        return torch.tensor(math.exp(norm.logpdf(x) - norm.logpdf(x, m)), dtype=torch.float64)

    m = 1
    assert expectation(lambda x: float(f(ratio(x, m))), m) == pytest.approx(DIVERGENCE[name](m), abs=2e-6)
    assert float(f(torch.ones((), dtype=torch.float64))) == 0
    u = torch.linspace(1e-6, 60, 2_000_001, dtype=torch.float64)
    for v in torch.tensor([-1.1, -0.3, 0.0, 0.4, 1.2], dtype=torch.float64):
        sup = (u * activation(v) - f(u)).max()
        assert float(dual(v)) == pytest.approx(float(sup), abs=2e-5)
    at_zero = torch.zeros((), dtype=torch.float64)
    step = 1e-5
    slope = (f(torch.tensor(1 + step, dtype=torch.float64)) - f(torch.tensor(1 - step, dtype=torch.float64))) / (
        2 * step
    )
    assert float(activation(at_zero)) == pytest.approx(float(slope), abs=1e-6)  # 0 is where p = q


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("seed", [0, 1])
def test_any_scores_give_a_lower_bound(name: str, seed: int) -> None:
    game = FGame(name)
    w = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = torch.special.ndtri((torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001)
    score = lambda x: 1.5 * torch.tanh(w[0] + w[1] * x) * w[2]  # noqa: E731
    assert float(game.bound(score(x), score(x + 1))) < DIVERGENCE[name](1)


@pytest.mark.parametrize(
    ("name", "m"), [("kl", 1), ("reverse-kl", 1), ("hellinger", 1), ("hellinger", 2), ("js", 1), ("js", 2)]
)
def test_a_trained_critic_reaches_the_f_divergence(name: str, m: int) -> None:
    """For these the best score is a multiple of log p/q, linear in x."""
    game = FGame(name)
    real, fake = trained(game, m, lambda x: powers(x)[:, :2])
    assert float(game.bound(real, fake)) == pytest.approx(DIVERGENCE[name](m), abs=0.01)


def test_trained_critics_reach_pearson_and_total_variation() -> None:
    # Pearson's best score is 2 (p/q - 1), in the span of 1 and p/q; total variation's is a sign
    tilted = lambda x: torch.stack([torch.ones_like(x), torch.exp(0.125 - 0.5 * x)], 1)  # noqa: E731
    real, fake = trained(FGame("pearson"), 0.5, tilted)
    assert float(FGame("pearson").bound(real, fake)) == pytest.approx(DIVERGENCE["pearson"](0.5), abs=0.01)
    steep = lambda x: torch.stack([torch.ones_like(x), x], 1)  # noqa: E731
    real, fake = trained(FGame("total-variation"), 1.0, steep, steps=200)
    assert float(FGame("total-variation").bound(real, fake)) == pytest.approx(
        DIVERGENCE["total-variation"](1), abs=0.01
    )


@pytest.mark.parametrize("saturating", [True, False])
def test_the_generators_side_of_an_f_game(saturating: bool) -> None:
    for name, (_, activation, dual) in DIVERGENCES.items():
        real, fake = scores()
        found = FGame(name, saturating=saturating).generator(real, fake)
        assert found == -(dual(fake) if saturating else activation(fake)).mean()


def test_least_squares_is_pearsons_chi_square_of_the_mixture() -> None:
    """With D* = (p - q) / (p + q), ½ E_p D² + ½ E_q D² = ½ χ²(p + q ‖ 2q') of Mao et al., by quadrature."""
    p, q = norm(0, 1).pdf, norm(1.5, 0.7).pdf
    best = lambda x: (p(x) - q(x)) / (p(x) + q(x))  # noqa: E731
    x = np.linspace(-9, 9, 200_001)
    dx = x[1] - x[0]
    # D* minimises the critic's loss, point by point
    loss = lambda d: 0.5 * p(x) * (d - 1) ** 2 + 0.5 * q(x) * (d + 1) ** 2  # noqa: E731
    assert all((loss(best(x)) <= loss(best(x) + e)).all() for e in (-1e-3, 1e-3))
    both = 0.5 * ((p(x) + q(x)) * best(x) ** 2).sum() * dx
    mixed = p(x) + q(x)
    assert both == pytest.approx(0.5 * ((mixed - 2 * q(x)) ** 2 / mixed).sum() * dx, rel=1e-9)
    d = torch.tensor(best(x))
    weigh = lambda f, w: float((f * torch.tensor(w(x))).sum() * dx)  # noqa: E731
    side = weigh(0.5 * d.square(), q)
    n = len(x)
    assert float(CHI_SQUARE.generator(d, d * torch.tensor(np.sqrt(q(x) * dx * n)))) == pytest.approx(side, rel=1e-9)
    assert LEAST_SQUARES.critic is CHI_SQUARE.critic


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_hinge_critic_is_the_sign_and_reaches_the_total_variation(seed: int) -> None:
    """On a finite set: min over scores is 2 - 2 TV(p, q), at D = sign(p - q) (Lim & Ye 2017)."""
    p, q = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()
    p, q = p / p.sum(), q / q.sum()

    def loss(d: Tensor) -> Tensor:  # means over a sample that holds value i in proportion to its weight
        one = torch.zeros(())
        return sum(
            (p[i] * (HINGE.critic(d[i], one) - 1) + q[i] * (HINGE.critic(one, d[i]) - 1) for i in range(9)),
            torch.zeros(()),
        )

    tv = 0.5 * (p - q).abs().sum()
    assert float(loss((p - q).sign())) == pytest.approx(float(2 - 2 * tv))
    for other in range(3):
        d = 2 * torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(other))
        assert loss(d) >= 2 - 2 * tv - 1e-12


@pytest.mark.parametrize(("a", "b"), [([0.0, 1, 3], [5.0, 6, 8]), (None, None)])
def test_the_best_lipschitz_critic_reaches_the_wasserstein_distance(
    a: list[float] | None, b: list[float] | None
) -> None:
    """Critics on the line, 1-Lipschitz by construction (slopes in [-1, 1] between the points)."""
    rng = np.random.default_rng(3)
    real = np.asarray(a) if a else rng.normal(size=40)
    fake = np.asarray(b) if b else rng.normal(0.7, 1.8, size=40)
    points = np.sort(np.concatenate([real, fake]))
    gaps = torch.tensor(np.diff(points))
    where = [torch.tensor(np.searchsorted(points, x)) for x in (real, fake)]
    slopes = torch.zeros(len(gaps), dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        d = torch.cat((torch.zeros(1), (slopes.clamp(-1, 1) * gaps).cumsum(0)))
        value = WASSERSTEIN.critic(d[where[0]], d[where[1]])
        (g,) = torch.autograd.grad(value, slopes)
        with torch.no_grad():
            slopes.sub_(g, alpha=20.0).clamp_(-1, 1)
    reached = -float(value.detach())
    assert reached == pytest.approx(wasserstein_distance(real, fake), rel=1e-3)
    assert a is None or reached == pytest.approx(5, rel=1e-6)


# ---- the Dirac-GAN: data at 0, a generator at θ, a critic D(x) = ψ x -----------------------------------------------


def field(theta: Tensor, psi: Tensor, game: Game, r1: float = 0.0, consensus: float = 0.0) -> tuple[Tensor, Tensor]:
    """The gradients (of the generator's loss by θ, of the critic's by ψ)."""
    theta, psi = theta.detach().requires_grad_(), psi.detach().requires_grad_()
    real, fake = 0 * psi, theta * psi
    critic = game.critic(real, fake) + 0.5 * r1 * psi**2  # ½ γ |∇D|² at the data
    generator = game.generator(real, fake)
    (g,) = torch.autograd.grad(generator, theta, create_graph=True)
    (c,) = torch.autograd.grad(critic, psi, create_graph=True)
    if consensus:
        both = 0.5 * (g**2 + c**2)
        pulls = torch.autograd.grad(both, (theta, psi))
        g, c = g + consensus * pulls[0], c + consensus * pulls[1]
    return g.detach(), c.detach()


def jacobian(game: Game, **more: float) -> np.ndarray:
    """Of the gradient field -(∂θ, ∂ψ) at the equilibrium, by central differences."""
    zero, e = torch.zeros((), dtype=torch.float64), 1e-5
    columns = []
    for k in range(2):
        ends = []
        for sign in (1, -1):
            at = [zero + sign * e * (k == i) for i in range(2)]
            ends.append(np.array([-float(v) for v in field(*at, game, **more)]))
        columns.append((ends[0] - ends[1]) / (2 * e))
    return np.array(columns).T


@pytest.mark.parametrize("game", [WASSERSTEIN, NON_SATURATING, MINIMAX, RELATIVISTIC], ids=lambda g: g.critic.__name__)
def test_the_unpenalised_dirac_gan_turns_in_circles(game: Game) -> None:
    f = 1.0 if game is WASSERSTEIN else 0.5  # |f'(0)|, with which the field is [[0, f], [-f, 0]]
    values = np.linalg.eigvals(jacobian(game))
    assert sorted(values.imag) == pytest.approx([-f, f], abs=1e-6)
    assert values.real == pytest.approx([0, 0], abs=1e-6)
    if game is WASSERSTEIN:
        h = 0.1
        radius = max(abs(np.linalg.eigvals(np.eye(2) + h * jacobian(game))))
        assert radius == pytest.approx(math.sqrt(1 + h**2), abs=1e-8)
    else:
        h = 0.1
        radius = max(abs(np.linalg.eigvals(np.eye(2) + h * jacobian(game))))
        assert radius == pytest.approx(math.sqrt(1 + h**2 / 4), abs=1e-8)
        assert radius == pytest.approx(1.0012492197, abs=1e-8)


def walked(game: Game, steps: int, h: float, alternating: bool, at: float = 0.1, **more: float) -> list[float]:
    theta, psi = torch.tensor(at).double(), torch.tensor(at).double()
    away = []
    for _ in range(steps):
        g, c = field(theta, psi, game, **more)
        psi = psi - h * c
        if alternating:
            g, _ = field(theta, psi, game, **more)
        theta = theta - h * g
        away.append(math.hypot(float(theta), float(psi)))
    return away


def test_simultaneous_steps_diverge_and_alternating_ones_stay() -> None:
    start = math.hypot(0.1, 0.1)
    apart = walked(NON_SATURATING, 800, 0.2, alternating=False)
    assert apart[-1] > 4 * start
    near = walked(NON_SATURATING, 100, 0.2, alternating=False, at=1e-3)
    assert near[-1] / math.hypot(1e-3, 1e-3) == pytest.approx((1 + 0.2**2 / 4) ** 50, rel=1e-4)
    stays = walked(NON_SATURATING, 400, 0.2, alternating=True)
    assert max(stays) < 1.1 * start
    assert max(stays[-100:]) > 0.9 * start  # and does not come nearer


@pytest.mark.parametrize(
    ("gamma", "expected"), [(0.5, [-0.25 + 0.4330127j, -0.25 - 0.4330127j]), (2.0, [-0.1339746, -1.8660254])]
)
@pytest.mark.parametrize("game", [NON_SATURATING, MINIMAX, RELATIVISTIC], ids=["plain", "minimax", "pairs"])
def test_r1_makes_it_converge(game: Game, gamma: float, expected: list[complex]) -> None:
    values = np.linalg.eigvals(jacobian(game, r1=gamma))
    assert sorted(values, key=lambda v: (-v.real, v.imag)) == pytest.approx(
        sorted(expected, key=lambda v: (-complex(v).real, complex(v).imag)), abs=1e-6
    )
    assert walked(game, 600, 0.1, alternating=False, r1=gamma)[-1] < 1e-3


def test_consensus_contracts_the_bilinear_game_where_plain_descent_expands() -> None:
    values = np.linalg.eigvals(jacobian(WASSERSTEIN, consensus=0.5))
    assert values.real == pytest.approx([-0.5, -0.5], abs=1e-6)  # -γ f², beside the turning ±i f
    assert walked(WASSERSTEIN, 300, 0.1, alternating=False, consensus=0.5)[-1] < 1e-3
    assert walked(WASSERSTEIN, 300, 0.1, alternating=False)[-1] > 0.3


def test_relativistic_average_is_over_the_whole_batch() -> None:
    real, fake = scores(6)
    halves = [RELATIVISTIC_AVERAGE.critic(real[s], fake[s]) for s in (slice(0, 3), slice(3, 6))]
    assert float(sum(halves)) / 2 != pytest.approx(float(RELATIVISTIC_AVERAGE.critic(real, fake)), abs=1e-6)
    assert RELATIVISTIC_AVERAGE.mixes
    pairs = [RELATIVISTIC.critic(real[s], fake[s]) for s in (slice(0, 3), slice(3, 6))]
    assert float(sum(pairs)) / 2 == pytest.approx(float(RELATIVISTIC.critic(real, fake)))
    assert not RELATIVISTIC.mixes
    assert float(F.softplus(fake - real).mean()) == pytest.approx(float(RELATIVISTIC.critic(real, fake)))
