r"""Bounds of a latent-variable model's likelihood, and what is put beside or in place of their terms; pure functions.

With one draw z_i ~ q(z|x) of k and its weight  w_i = p(x|z_i) p(z_i) / q(z_i|x):

    ELBO      E log w = E log p(x|z) − KL(q(z|x) ‖ p(z)) ≤ log p(x)        (Kingma & Welling 2014, arXiv:1312.6114)
    IWAE      L_k = E log (1/k) Σ w_i,   L_1 = ELBO,  L_k ≤ L_{k+1} → log p(x)    (Burda et al. 2016, arXiv:1509.00519)
    DReG      ∇_φ L_k = E Σ v_i² ∂log w_i/∂z_i ∂z_i/∂φ,   v_i = w_i / Σ w_j,   φ in q alone
              (Tucker, Lawson, Gu & Maddison 2018, arXiv:1810.04152; with k = 1 that of Roeder et al. 2017)
    free bits Σ_j max(λ, E_x KL_j)                          (Kingma et al. 2016, arXiv:1606.04934, eq. 14)
    MMD²      E k(x, x') + E k(y, y') − 2 E k(x, y)         (Gretton et al. 2012, lemma 6)
    active    a unit is active where Var_x E[z_j | x] > 0.01   (Burda et al. 2016, section 5)
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor


def standard_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(0, 1)), a coordinate at a time, nats."""
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1)


def iwae(log_w: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """Log of the mean of k weights: in the mean L_k."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def dreg(log_w: Float[Tensor, "k b"], z: Float[Tensor, " n *latent"]) -> Float[Tensor, " b"]:
    """`iwae` by its value; its gradient is DReG's for what is behind the draws z (k b, *latent), the usual one else.

    log_w must know q's parameters through z alone (their own appearance in log q stopped). Nothing else may be
    differentiated through z: its gradient is multiplied by v_i on the way.
    """
    share = log_w.detach().softmax(0)  # v (k, b)
    if z.requires_grad:
        z.register_hook(lambda g: g * share.reshape(-1, *(1,) * (z.ndim - 1)))
    linear = (share * log_w).sum(0)
    return linear + (iwae(log_w) - linear).detach()


def free_bits(kl: Float[Tensor, "b d"], least: float) -> Float[Tensor, ""]:
    """The KL of a batch, in which no dimension counts for less than `least` nats and none of those is pulled at."""
    return kl.mean(0).clamp(min=least).sum()


def rising(step: int, over: int) -> float:
    """The factor on the KL in step `step` (from 0) of a linear warm-up over `over` steps: 1/over, …, 1; 0 is none."""
    return min(1.0, (step + 1) / over) if over else 1.0


def mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], bandwidth: float = 1.0) -> Float[Tensor, ""]:
    """MMD² of two samples under the kernel exp(−|x − y|² / (2 bandwidth²)), without bias: pairs of an x with itself
    are left out. 0 where one of them has fewer than two, which say nothing of a law.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        apart = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        return (apart.clamp(min=0) * (-0.5 / bandwidth**2)).exp()

    if min(len(x), len(y)) < 2:
        return x.new_zeros(())

    def within(a: Tensor) -> Tensor:
        return (kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def active(means: Float[Tensor, "n d"], threshold: float = 0.01) -> Bool[Tensor, " d"]:
    """Of the posterior means E[z|x] of n data, which dimensions say something of x. Wants two or more data."""
    return means.double().var(0) > threshold
