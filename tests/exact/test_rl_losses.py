"""Losses of agents against closed forms, values worked by hand, and definitions on random numbers (oracle A10)."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.rl.losses import (
    approximate_kl,
    categorical_td,
    chosen,
    clipped_share,
    clipped_surrogate,
    clipped_value,
    double_value,
    duelling,
    expected_value,
    greedy_value,
    huber,
    importance,
    policy_gradient,
    prioritised,
    project,
    quantile_regression,
    smoothed,
    soft_policy,
    soft_value,
    squared,
    standardised,
    td_target,
    temperature,
)


def d(*values):
    return torch.tensor(values, dtype=torch.float64)


# ---- policies ------------------------------------------------------------------------------------------------------


def test_the_softmax_bandit():
    """∇J of θ = (.1, −.2, .3), r = (1, 0, .5), exactly, by samples, and the natural gradient (A10, row 5)."""
    theta, reward = d(0.1, -0.2, 0.3).requires_grad_(), d(1.0, 0.0, 0.5)
    pi = theta.detach().softmax(0)
    expected = d(0.154024, -0.135985, -0.018038)
    exact = pi * (reward - pi @ reward)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-6)
    n = 40_000
    action = Noise.seeded(1, n).categorical(theta.detach().expand(n, 3))
    for baseline in (0.0, 0.7, -3.0):  # any baseline keeps the mean
        per = torch.stack([(reward[a] - baseline) * (torch.eye(3).double()[a] - pi) for a in range(3)])[action]
        loss = policy_gradient(theta.log_softmax(0)[action], reward[action] - baseline)
        (made,) = torch.autograd.grad(loss, theta)
        torch.testing.assert_close(-made, per.mean(0), rtol=0, atol=1e-12)
        assert ((-made - exact).abs() < 4 * per.std(0) / n**0.5).all()
    fisher = torch.diag(pi) - torch.outer(pi, pi)
    natural = torch.linalg.pinv(fisher) @ exact
    torch.testing.assert_close(natural - natural[2], d(0.5, -0.5, 0.0), rtol=0, atol=1e-9)  # up to a constant


def test_the_clipped_surrogate():
    """The value and the gradients of A10, row 7: exactly zero where the clip is active."""
    ratio, advantage = d(0.5, 0.9, 1.1, 1.5), d(1, -1, 1, -1)
    logp = ratio.log().requires_grad_()
    loss = clipped_surrogate(logp, torch.zeros(4).double(), advantage, 0.2)
    assert loss.item() == pytest.approx(0.2, abs=1e-12)
    logp2 = d(0.5, 1.5, 1.5, 0.5).log().requires_grad_()  # with A = (1, 1, −1, −1): two are cut off, two are not
    (grad,) = torch.autograd.grad(clipped_surrogate(logp2, torch.zeros(4).double(), d(1, 1, -1, -1), 0.2), logp2)
    torch.testing.assert_close(grad, d(-0.5, 0, 1.5, 0) / 4, rtol=0, atol=1e-12)
    assert grad[1] == 0
    assert grad[3] == 0
    (at_one,) = torch.autograd.grad(clipped_surrogate(zero := d(0, 0).requires_grad_(), d(0, 0), d(2, -3)), zero)
    (plain,) = torch.autograd.grad(policy_gradient(zero, d(2, -3)), zero)
    torch.testing.assert_close(at_one, plain)  # before the first update it is the policy gradient
    assert clipped_share(d(0.5, 1.1, 1.3).log(), d(0, 0, 0)) == pytest.approx(2 / 3)


def test_the_kl_estimate_is_schulmans():
    """k3 of a difference of .2 is .0214027582 (A10, row 14), its mean over samples the KL, and it is never negative."""
    assert approximate_kl(d(0.2), d(0.0)).item() == pytest.approx(0.0214027582, abs=1e-10)
    p, q = d(0.5, 0.3, 0.2), d(0.2, 0.5, 0.3)
    exact = (p * (p / q).log()).sum()
    by_action = torch.stack([approximate_kl(q.log()[a : a + 1], p.log()[a : a + 1]) for a in range(3)])
    assert (p * by_action).sum().item() == pytest.approx(exact.item(), abs=1e-12)
    assert (by_action >= 0).all()


def test_standardised_advantages():
    a = standardised(d(1, 2, 3, 6))
    assert a.mean().item() == pytest.approx(0, abs=1e-12)
    assert a.std().item() == pytest.approx(1, abs=1e-7)
    assert (standardised(torch.ones(5)) == 0).all()
    assert standardised(torch.ones(1)).isfinite().all()


def test_value_losses():
    v, old, y = d(0.0, 1.0, 3.0), d(0.5, 1.0, 1.0), d(1.0, 0.0, 4.0)
    assert squared(v, y).item() == pytest.approx(0.5)
    # kept: (.3, 1, 1.2); errors max(1, .49), 1, max(1, 7.84)
    assert clipped_value(v, old, y, 0.2).item() == pytest.approx(0.5 * (1 + 1 + 7.84) / 3, abs=1e-12)
    free = v.clone().requires_grad_()
    (grad,) = torch.autograd.grad(clipped_value(free, old, y, 0.2), free)
    torch.testing.assert_close(grad, d(-1, 1, 0) / 3)  # the last is worse where it is kept: nothing to gain
    torch.testing.assert_close(huber(d(0.0, 0.0), d(0.5, 3.0)), d(0.125, 2.5))


# ---- values --------------------------------------------------------------------------------------------------------


def test_targets_of_q():
    q, q_target = d([1, 5, 2], [4, 0, 3]), d([10, 20, 30], [40, 50, 60])
    torch.testing.assert_close(greedy_value(q_target), d(30, 60))
    torch.testing.assert_close(double_value(q_target, q), d(20, 40))
    torch.testing.assert_close(chosen(q, torch.tensor([2, 0])), d(2, 4))
    torch.testing.assert_close(expected_value(q, d([0.5, 0.5, 0], [0, 0, 1])), d(3, 3))
    torch.testing.assert_close(td_target(d(1, 1), d(0.9, 0), d(10, 10)), d(10, 1))


def test_doubling_takes_the_bias_of_the_maximum_away():
    """Of noisy estimates of equal values the maximum is too high, and one net's choice valued by another is not."""
    q, other = Noise.seeded(0, 20_000).normal(10), Noise.seeded(1, 20_000).normal(10)
    assert greedy_value(q).mean() > 1.4  # 1.539 is exact
    assert abs(double_value(other, q).mean()) < 4 / 20_000**0.5


def test_duelling_is_centred():
    v, a = d([2.0], [-1.0]), d([1, 2, 6], [0, 0, 3])
    q = duelling(v, a)
    torch.testing.assert_close(q.mean(1, keepdim=True), v)
    torch.testing.assert_close(q, d([0, 1, 5], [-2, -2, 1]))
    torch.testing.assert_close(duelling(v, a + 7), q)  # only the differences are the advantages'


def test_td3s_target_action():
    made = smoothed(d([0.9, 0.0]), d([5.0, -0.1]), sigma=0.2, clip=0.5, low=-1.0, high=1.0)
    torch.testing.assert_close(made, d([1.0, -0.02]))
    made = smoothed(d([0.0, 0.0]), d([5.0, -5.0]), sigma=0.2, clip=0.5, low=-1.0, high=1.0)
    torch.testing.assert_close(made, d([0.5, -0.5]))


def test_sacs_bandit_and_its_temperature():
    """For r = −c (a − µ)² the best policy at temperature α is a normal of variance α/2c; a target entropy H asks for
    α = 2c e^{2H} / 2πe (A10, row 9). The policy is a normal whose log σ is learned, and α with it.
    """
    c, mu, target = 2.0, 0.3, -1.0
    mean, log_sigma, log_alpha = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(3))
    noise = Noise.seeded(0, 512).normal(dtype=torch.float64)
    normal = (noise - noise.mean()) / noise.std(correction=0)
    policy, alpha = torch.optim.Adam([mean, log_sigma], 0.05), torch.optim.SGD([log_alpha], 0.015)
    for _ in range(900):
        a = mean + log_sigma.exp() * normal
        logp = -0.5 * normal.square() - log_sigma - 0.5 * math.log(2 * math.pi)
        policy.zero_grad()
        soft_policy(logp, -c * (a - mu).square(), log_alpha.exp().detach()).backward()
        policy.step()
        alpha.zero_grad()
        temperature(log_alpha, logp, target).backward()
        alpha.step()
    assert mean.item() == pytest.approx(mu, abs=1e-3)
    assert log_alpha.exp().item() == pytest.approx(0.0316954321, rel=0.05)
    assert log_sigma.exp().square().item() == pytest.approx(log_alpha.exp().item() / (2 * c), rel=0.05)
    torch.testing.assert_close(soft_value(d(1, 5), d(2, 3), d(-1, 2), 0.5), d(1.5, 2))


# ---- distributions of the return -----------------------------------------------------------------------------------


def test_c51_by_hand():
    """Support −1, 0, 1; half the mass at 0, half at 1; r = .25, γ̂ = .5: atoms at .25 and .75."""
    support = d(-1, 0, 1)
    made = project(d([0, 0.5, 0.5]), d(0.25), d(0.5), support)
    torch.testing.assert_close(made, d([0, 0.5, 0.5]))
    made = project(d([0, 0.5, 0.5], [0.2, 0.3, 0.5], [1, 0, 0]), d(0.25, 9.0, -0.5), d(0.0, 1.0, 0.0), support)
    torch.testing.assert_close(made, d([0, 0.75, 0.25], [0, 0, 1], [0.5, 0.5, 0]))


@pytest.mark.parametrize("atoms", [2, 7, 51])
def test_c51_keeps_mass_and_mean_inside_the_support(atoms):
    g = torch.Generator().manual_seed(atoms)
    support = torch.linspace(-10, 10, atoms, dtype=torch.float64)
    probs = torch.rand(64, atoms, generator=g, dtype=torch.float64).softmax(1)
    reward = torch.rand(64, generator=g, dtype=torch.float64) * 2 - 1
    discount = torch.where(torch.rand(64, generator=g) < 0.3, 0.0, 0.9).double()
    made = project(probs, reward, discount, support)
    torch.testing.assert_close(made.sum(1), torch.ones(64).double())
    torch.testing.assert_close(made @ support, reward + discount * (probs @ support))
    torch.testing.assert_close(project(probs, reward * 0, reward * 0 + 1, support), probs)  # the identity
    target = made.log().clamp(min=-50)
    assert (categorical_td(target, made) <= categorical_td(probs.log(), made) + 1e-9).all()  # Gibbs
    with pytest.raises(UserError, match="two or more"):
        project(probs[:, :1], reward, discount, support[:1])


def test_quantile_regression_finds_quantiles():
    """By hand with κ = 1, and its minimum with κ = 0 is at the quantiles (τ = ⅙, ½, ⅚)."""
    made = quantile_regression(d([0.0, 0.0]), d([0.5, -3.0]), 1.0)  # τ = ¼, ¾; L = .125, 2.5
    assert made.item() == pytest.approx(((0.25 * 0.125 + 0.75 * 2.5) + (0.75 * 0.125 + 0.25 * 2.5)) / 2)
    draws = torch.linspace(0, 1, 1001, dtype=torch.float64)[None]
    theta = d([0.5, 0.5, 0.5]).requires_grad_()
    optim = torch.optim.Adam([theta], 0.01)
    for step in range(400):
        optim.param_groups[0]["lr"] = 0.01 * (1 - step / 400)
        optim.zero_grad()
        quantile_regression(theta, draws, 0.0).sum().backward()
        optim.step()
    torch.testing.assert_close(theta.detach(), d([1 / 6, 1 / 2, 5 / 6]), rtol=0, atol=2e-3)


# ---- priorities ----------------------------------------------------------------------------------------------------


def test_priorities():
    """A10, row 8: α = .6, β = .4, p = (1, 2, 3, 4)."""
    probs = prioritised(d(1, 2, 3, 4), 0.6)
    torch.testing.assert_close(probs, d(0.14823, 0.224674, 0.286555, 0.340542), rtol=0, atol=1e-6)
    torch.testing.assert_close(importance(probs, 4, 0.4), d(1, 0.846745, 0.768229, 0.716978), rtol=0, atol=1e-6)
    torch.testing.assert_close(prioritised(d(1, 0, 4), 0.0), d(0.5, 0, 0.5))  # what was never stored is never drawn
    value = d(3, -1, 4, 1)
    weighted = (probs * (4 * probs).pow(-1.0) * value).sum()  # β = 1 undoes the drawing exactly
    assert weighted.item() == pytest.approx(value.mean().item(), abs=1e-12)
