r"""What agents minimise, and the targets that they learn from: pure functions of tensors (B, ...) by sample.

    policy gradient     −E A log π(a|s)                                                       Williams 1992
    clipped surrogate   −E min(ρ A, clip(ρ, 1 − ε, 1 + ε) A),  ρ = π(a|s) / π_old(a|s)        PPO
    TD target           y = r + γ̂ V(s'),   γ̂ = γ^n (1 − terminated): the `discount` of a replay
                        V(s') = max_a Q'            Q-learning, DQN
                                Q'(s', argmax_a Q)  double DQN
                                min(Q'_1, Q'_2)(s', π'(s') + clipped noise)                   TD3
                                min(Q'_1, Q'_2)(s', a') − α log π(a'|s'),  a' ~ π             SAC
    SAC's policy        E α log π(a|s) − min Q(s, a),    its temperature  −log α E (log π + H̄)
    C51                 Φ (r + γ̂ z) projected on the support z; cross entropy
    QR-DQN              E |τ − 1{u < 0}| L_κ(u) / κ,  u = y − θ_τ,  L_κ Huber's loss
    priorities          P_i = p_i^α / Σ p^α,   w_i = (N P_i)^−β / max_j w_j

Schulman et al. 2017, arXiv:1707.06347 (PPO); Mnih et al. 2015 (DQN); van Hasselt et al. 2016, arXiv:1509.06461;
Wang et al. 2016, arXiv:1511.06581 (duelling); Bellemare et al. 2017, arXiv:1707.06887 (C51); Dabney et al. 2018,
arXiv:1710.10044 (QR-DQN); Schaul et al. 2016, arXiv:1511.05952 (priorities); Fujimoto et al. 2018, arXiv:1802.09477
(TD3); Haarnoja et al. 2018, arXiv:1812.05905 (SAC with a learned temperature).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import everyone
from ..errors import UserError

# ---- policies ------------------------------------------------------------------------------------------------------


def policy_gradient(logp: Tensor, advantage: Tensor) -> Tensor:
    """Minus E A log π: its gradient is minus that of the expected return. logp, advantage: (B,)."""
    return -(advantage.detach() * logp).mean()


def clipped_surrogate(logp: Tensor, old: Tensor, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's loss of the policy: a sample whose ratio has left [1 − clip, 1 + clip] the way A points says no more.

    logp, old: log π(a|s) now and when a was taken (B,).
    """
    ratio = (logp - old.detach()).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def clipped_share(logp: Tensor, old: Tensor, clip: float = 0.2) -> Tensor:
    """The share of samples whose ratio lies outside [1 − clip, 1 + clip]."""
    return ((logp - old).exp() - 1).abs().gt(clip).float().mean()


def approximate_kl(logp: Tensor, old: Tensor) -> Tensor:
    """KL(π_old ‖ π) from samples of π_old: the mean of ρ − 1 − log ρ, never negative (Schulman's k3)."""
    log_ratio = logp - old
    return (torch.expm1(log_ratio) - log_ratio).mean()


def standardised(advantage: Tensor, eps: float = 1e-8) -> Tensor:
    """Advantages (B,) less their mean, over their standard deviation, of the batches of all ranks together."""
    n = everyone.sum(torch.tensor(float(advantage.numel()), dtype=advantage.dtype, device=advantage.device))
    mean = everyone.sum(advantage.sum()) / n
    var = everyone.sum((advantage - mean).square().sum()) / (n - 1).clamp(min=1)
    return (advantage - mean) / (var.sqrt() + eps)


# ---- values --------------------------------------------------------------------------------------------------------


def squared(value: Tensor, target: Tensor) -> Tensor:
    """½ E (y − V)², the target fixed."""
    return 0.5 * (target.detach() - value).square().mean()


def clipped_value(value: Tensor, old: Tensor, target: Tensor, clip: float = 0.2) -> Tensor:
    """½ E max of the errors of V and of V kept within `clip` of what it was, as in PPO's first implementation."""
    kept = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((target - value).square(), (target - kept).square()).mean()


def huber(value: Tensor, target: Tensor, kappa: float = 1.0) -> Tensor:
    """Huber's loss of y − V by sample, half the square up to kappa: DQN's clipped error."""
    return F.huber_loss(value, target.detach(), reduction="none", delta=kappa)


def td_target(reward: Tensor, discount: Tensor, after: Tensor) -> Tensor:
    """y = r + γ̂ V(s') without gradient. discount: γ^n, or 0 where the episode has terminated."""
    return (reward + discount * after).detach()


def chosen(q: Tensor, action: Tensor) -> Tensor:
    """Q(s, a) (B,) of q (B, A) and actions (B,)."""
    return q.gather(-1, action[..., None]).squeeze(-1)


def greedy_value(q: Tensor) -> Tensor:
    """max_a Q (B,) of q (B, A)."""
    return q.amax(-1)


def double_value(q_target: Tensor, q: Tensor) -> Tensor:
    """Q'(s', argmax_a Q(s', a)) (B,): one net chooses, the other says what it is worth."""
    return chosen(q_target, q.argmax(-1))


def expected_value(q: Tensor, probs: Tensor) -> Tensor:
    """E_π Q (B,) of q and π (B, A)."""
    return (q * probs).sum(-1)


def duelling(value: Tensor, advantage: Tensor) -> Tensor:
    """Q (B, A) = V + A − mean A of a value (B, 1) and advantages (B, A)."""
    return value + advantage - advantage.mean(-1, keepdim=True)


def smoothed(action: Tensor, normal: Tensor, *, sigma: float, clip: float, low: float, high: float) -> Tensor:
    """TD3's target action: π'(s') plus clipped noise, within the bounds. normal: standard normal, of its shape."""
    return (action + (sigma * normal).clamp(-clip, clip)).clamp(low, high)


def soft_value(q1: Tensor, q2: Tensor, logp: Tensor, alpha: Tensor | float) -> Tensor:
    """SAC's V(s') (B,) = min(Q_1, Q_2) − α log π(a'|s')."""
    return torch.minimum(q1, q2) - alpha * logp


def soft_policy(logp: Tensor, q: Tensor, alpha: Tensor | float) -> Tensor:
    """SAC's loss of the policy: E α log π(a|s) − Q(s, a), a drawn differentiably."""
    return (alpha * logp - q).mean()


def temperature(log_alpha: Tensor, logp: Tensor, target_entropy: float) -> Tensor:
    """Loss of log α: α rises while the policy's entropy is below its target, and falls above it."""
    return -(log_alpha * (logp.detach() + target_entropy)).mean()


# ---- distributions of the return -----------------------------------------------------------------------------------


def project(probs: Tensor, reward: Tensor, discount: Tensor, support: Tensor) -> Tensor:
    """C51's projection: the law of r + γ̂ Z on the support again, each atom shared by its two neighbours.

    probs: (B, K) of Z on support (K,), evenly spaced. reward, discount: (B,). What falls outside goes to the ends.
    """
    low, high, k = support[0], support[-1], len(support)
    if k < 2:
        raise UserError("A support of one atom holds no law of the return: give two or more.")
    place = (reward[:, None] + discount[:, None] * support).clamp(low, high)  # (B, K)
    place = ((place - low) / (high - low) * (k - 1)).clamp(0, k - 1)
    below = place.floor()
    share = place - below
    under = below.long()
    out = torch.zeros_like(probs)
    out.scatter_add_(1, under, probs * (1 - share))
    return out.scatter_add_(1, (under + 1).clamp(max=k - 1), probs * share)


def categorical_td(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy (B,) of a target law (B, K) and the one of logits (B, K)."""
    return -(target.detach() * logits.log_softmax(-1)).sum(-1)


def quantile_regression(quantiles: Tensor, target: Tensor, kappa: float = 1.0) -> Tensor:
    """QR-DQN's loss (B,) of N quantiles θ (B, N), at τ = (i + ½)/N, and draws of the target (B, M).

    Summed over quantiles and meant over draws; kappa = 0 is the quantile regression itself, without Huber's part.
    """
    n = quantiles.shape[-1]
    tau = (torch.arange(n, dtype=quantiles.dtype, device=quantiles.device) + 0.5) / n
    u = target.detach()[:, None, :] - quantiles[:, :, None]  # (B, N, M)
    size = u.abs()
    if kappa > 0:
        size = torch.where(size <= kappa, 0.5 * u.square() / kappa, size - 0.5 * kappa)
    return ((tau[:, None] - (u < 0).to(u)).abs() * size).mean(-1).sum(-1)


# ---- priorities ----------------------------------------------------------------------------------------------------


def prioritised(priority: Tensor, alpha: float) -> Tensor:
    """P (N,) ∝ p^α of priorities p (N,) ≥ 0; α = 0 is uniform over those above 0."""
    weight = torch.where(priority > 0, priority.pow(alpha), 0.0)
    return weight / weight.sum()


def importance(probs: Tensor, n: int, beta: float) -> Tensor:
    """Weights (B,) that undo what drawing by P does to a mean, divided by their largest. n: how many there are."""
    weight = (n * probs).pow(-beta)
    return weight / weight.max()
