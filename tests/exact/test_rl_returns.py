"""Returns and advantages against sums by hand, definitions evaluated without recursion, and theorems (A10)."""

from __future__ import annotations

import itertools

import pytest
import torch

from morphogen.errors import UserError
from morphogen.rl.returns import (
    backwards,
    discounted,
    explained_variance,
    following,
    gae,
    lambda_return,
    n_step,
    retrace,
    td_error,
    vtrace,
)

SHAPES = [(1,), (7,), (5, 3), (4, 2, 3)]


def stretch(shape, seed=0, ends=0.25):
    """A random stretch with random ends, in double precision. V(s') is free: nothing says that it is V of the next."""
    g = torch.Generator().manual_seed(seed)
    real = lambda: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    coin = torch.rand(shape, generator=g)
    return {
        "reward": real(),
        "value": real(),
        "after": real(),
        "log_ratio": 0.7 * real(),
        "terminated": coin < ends / 2,
        "truncated": (coin >= ends / 2) & (coin < ends),
    }


def connected(shape, seed=0):
    """A stretch whose V(s') is V of the next row wherever the episode goes on."""
    s = stretch(shape, seed)
    on = ~(s["terminated"] | s["truncated"])
    s["after"] = torch.where(on, following(s["value"], s["after"][-1]), s["after"])
    return s


def columns(s):
    """One stretch (T,) for each environment."""
    rest = s["reward"].shape[1:]
    for i in itertools.product(*map(range, rest)):
        yield i, {k: v[(slice(None), *i)].tolist() for k, v in s.items()}


def n_step_of(c, t, n, gamma):
    """G_t^(n) by its definition: rewards up to the end of the episode or stretch, and the value there."""
    g, k = 0.0, 0
    while True:
        g += gamma**k * c["reward"][t + k]
        k += 1
        i = t + k - 1
        if c["terminated"][i]:
            return g
        if c["truncated"][i] or k == n or i == len(c["reward"]) - 1:
            return g + gamma**k * c["after"][i]


def lambda_of(c, t, gamma, lam):
    """(1 − λ) Σ λ^{n−1} G^(n), all weight that is left on the longest: the forward view."""
    last = t
    while last < len(c["reward"]) - 1 and not (c["terminated"][last] or c["truncated"][last]):
        last += 1
    longest = last - t + 1
    weights = [(1 - lam) * lam ** (n - 1) for n in range(1, longest)] + [lam ** (longest - 1)]
    return sum(w * n_step_of(c, t, n, gamma) for n, w in enumerate(weights, 1))


def against(made, s, definition, tolerance=1e-12):
    for i, c in columns(s):
        for t in range(len(c["reward"])):
            assert made[(t, *i)].item() == pytest.approx(definition(c, t), abs=tolerance)


EPISODE = ("terminated", "truncated")


def picked(s, *names):
    return {n: s[n] for n in names}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_lambda_returns_are_the_forward_view(shape, lam):
    s = stretch(shape, seed=len(shape))
    made = lambda_return(**picked(s, "reward", "after", *EPISODE), gamma=0.9, lam=lam)
    against(made, s, lambda c, t: lambda_of(c, t, 0.9, lam))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_n_step_returns_are_their_definition(shape, n):
    s = stretch(shape, seed=n)
    made = n_step(**picked(s, "reward", "after", *EPISODE), gamma=0.9, n=n)
    against(made, s, lambda c, t: n_step_of(c, t, n, 0.9))


@pytest.mark.parametrize("shape", SHAPES)
def test_gae_is_the_sum_of_td_errors(shape):
    s, gamma, lam = stretch(shape, seed=3), 0.9, 0.7

    def definition(c, t):
        total, k = 0.0, 0
        while True:
            i = t + k
            alive = not c["terminated"][i]
            delta = c["reward"][i] + gamma * alive * c["after"][i] - c["value"][i]
            total += (gamma * lam) ** k * delta
            k += 1
            if not alive or c["truncated"][i] or i == len(c["reward"]) - 1:
                return total

    made = gae(**picked(s, "reward", "value", "after", *EPISODE), gamma=gamma, lam=lam)
    against(made, s, definition)


@pytest.mark.parametrize("seed", range(3))
def test_gae_at_its_ends_and_beside_the_lambda_return(seed):
    s = connected((9, 2), seed)
    given = picked(s, "reward", "after", *EPISODE)
    for lam in (0.0, 0.35, 0.95, 1.0):
        g = lambda_return(**given, gamma=0.97, lam=lam)
        a = gae(**given, value=s["value"], gamma=0.97, lam=lam)
        torch.testing.assert_close(a, g - s["value"], rtol=0, atol=1e-12)
    delta = td_error(*(s[k] for k in ("reward", "value", "after", "terminated")), gamma=0.97)
    torch.testing.assert_close(gae(**given, value=s["value"], gamma=0.97, lam=0.0), delta, rtol=0, atol=0)
    monte_carlo = n_step(**given, gamma=0.97, n=99)
    torch.testing.assert_close(lambda_return(**given, gamma=0.97, lam=1.0), monte_carlo, rtol=0, atol=1e-12)


def test_by_hand():
    """Three steps, γ = ½, λ = ½, V = (1, 2, 3), then V(s') = 4: δ = (1, .5, 2) for rewards (1, 1, 3)."""
    reward, value = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])
    after = following(value, torch.tensor(4.0))
    never = torch.zeros(3, dtype=torch.bool)
    a = gae(reward, value, after, never, never, gamma=0.5, lam=0.5)
    torch.testing.assert_close(a, torch.tensor([1 + 0.25 * (0.5 + 0.25 * 2), 0.5 + 0.25 * 2, 2.0]))
    torch.testing.assert_close(discounted(reward, never, never, 0.5), torch.tensor([2.25, 2.5, 3.0]))


def test_truncation_bootstraps_and_termination_does_not():
    """One pole that falls and one that is cut off at the same step, in the middle and at the end."""
    reward, after = torch.ones(3, 2), torch.full((3, 2), 10.0)
    fell, cut = torch.zeros(3, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
    fell[1, 0] = cut[1, 1] = True
    for made in (
        lambda_return(reward, after, fell, cut, gamma=0.5, lam=1.0),
        gae(reward, after, after, fell, cut, gamma=0.5, lam=1.0) + 10,
        n_step(reward, after, fell, cut, gamma=0.5, n=5),
    ):
        torch.testing.assert_close(made[:, 0], torch.tensor([1.5, 1.0, 6.0]))
        torch.testing.assert_close(made[:, 1], torch.tensor([4.0, 6.0, 6.0]))


@pytest.mark.parametrize("seed", range(3))
def test_vtrace_on_policy_is_the_return(seed):
    s = connected((8, 3), seed)
    s["log_ratio"].zero_()
    made = vtrace(**picked(s, "reward", "value", "after", "log_ratio", *EPISODE), gamma=0.9)
    g = n_step(**picked(s, "reward", "after", *EPISODE), gamma=0.9, n=99)
    torch.testing.assert_close(made.value, g, rtol=0, atol=1e-12)
    torch.testing.assert_close(made.advantage, g - s["value"], rtol=0, atol=1e-12)


def test_vtrace_is_its_definition():
    s, gamma, rho, c_hat, lam = connected((6, 2), 5), 0.9, 0.8, 0.6, 0.95

    def target(c, t):
        total, product, i = 0.0, 1.0, t
        while True:
            ratio = torch.tensor(c["log_ratio"][i]).exp().item()
            alive = not c["terminated"][i]
            delta = min(rho, ratio) * (c["reward"][i] + gamma * alive * c["after"][i] - c["value"][i])
            total += product * delta
            product *= gamma * lam * min(c_hat, ratio)
            if not alive or c["truncated"][i] or i == len(c["reward"]) - 1:
                return c["value"][t] + total
            i += 1

    def advantage(c, t):
        ended = c["terminated"][t] or c["truncated"][t] or t == len(c["reward"]) - 1
        later = c["after"][t] if ended else target(c, t + 1)
        ratio = torch.tensor(c["log_ratio"][t]).exp().item()
        return min(rho, ratio) * (c["reward"][t] + gamma * (not c["terminated"][t]) * later - c["value"][t])

    made = vtrace(
        **picked(s, "reward", "value", "after", "log_ratio", *EPISODE), gamma=gamma, lam=lam, rho=rho, c=c_hat
    )
    against(made.value, s, target, 1e-6)  # the ratio above is rounded to single precision
    against(made.advantage, s, advantage, 1e-6)


def test_retrace_is_its_definition_and_ends_in_known_methods():
    s, gamma = stretch((6, 2), 9), 0.9
    given = {"q": s["value"], **picked(s, "reward", "after", "log_ratio", *EPISODE)}

    def definition(c, t):
        ended = c["terminated"][t] or c["truncated"][t] or t == len(c["reward"]) - 1
        y = c["reward"][t] + gamma * (not c["terminated"][t]) * c["after"][t]
        if not ended:
            trace = 0.8 * min(1.0, torch.tensor(c["log_ratio"][t + 1]).exp().item())
            y += gamma * trace * (definition(c, t + 1) - c["value"][t + 1])
        return y

    against(retrace(**given, gamma=gamma, lam=0.8), s, definition, 1e-6)
    one = s["reward"] + gamma * ~s["terminated"] * s["after"]
    torch.testing.assert_close(retrace(**given, gamma=gamma, lam=0.0), one)  # expected SARSA
    never = given | {"log_ratio": torch.full_like(s["reward"], -torch.inf)}
    torch.testing.assert_close(retrace(**never, gamma=gamma), one)  # what π would not do teaches nothing later


def test_a_long_stretch_keeps_its_precision_and_gradients_flow():
    x = torch.ones(1000, dtype=torch.float64)
    y = backwards(x, torch.full_like(x, 0.99))
    assert y[0].item() == pytest.approx((1 - 0.99**1000) / 0.01, abs=1e-9)
    assert backwards(x[:0], x[:0]).shape == (0,)


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(target, target) == 1
    assert explained_variance(torch.zeros(3), target) == 0
    assert explained_variance(target, torch.ones(3)) == 0
    assert explained_variance(-target, target) < 0


def test_integers_are_rewards_too():
    s = stretch((6, 2))
    whole = torch.randint(-3, 4, (6, 2), generator=torch.Generator().manual_seed(1))
    ends = s["terminated"], s["truncated"]
    made, expected = discounted(whole, *ends, 0.9), discounted(whole.float(), *ends, 0.9)
    assert torch.equal(made, expected)
    assert torch.equal(
        discounted(torch.ones(3, dtype=torch.int64), *torch.zeros(2, 3, dtype=torch.bool), 0.5),
        torch.tensor([1.75, 1.5, 1.0]),
    )


def test_shapes_that_would_broadcast_are_refused():
    reward, ends = torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.bool)
    with pytest.raises(UserError, match=r"after \(4, 1\).*time first"):
        lambda_return(reward, torch.zeros(4, 1), ends, ends, gamma=0.9, lam=0.5)
    with pytest.raises(UserError, match="booleans"):
        gae(reward, reward, reward, reward, ends, gamma=0.9, lam=0.5)
    with pytest.raises(UserError, match="n of 1 or more"):
        n_step(reward, reward, ends, ends, gamma=0.9, n=0)
