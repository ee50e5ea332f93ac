"""Laws that several families compute with: densities and divergences, a coordinate at a time, in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal_log_prob(x: Tensor, mean: Tensor | float, log_var: Tensor) -> Tensor:
    """log N(x; mean, e^log_var), a coordinate at a time."""
    return ((x - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).mul(-0.5)


def normal_kl(mean: Tensor, log_var: Tensor, mean_p: Tensor | float, log_var_p: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(mean_p, e^log_var_p)), a coordinate at a time, nats."""
    apart = log_var_p - log_var
    return 0.5 * (apart + torch.expm1(-apart) + (mean - mean_p).square() * (-log_var_p).exp())


def log1mexp(x: Tensor) -> Tensor:
    """Logarithm of 1 − e^x for x < 0."""
    tiny = torch.finfo(x.dtype).tiny
    small = x > -0.693
    near = (-torch.expm1(torch.where(small, x, -1.0))).clamp(min=tiny).log()
    return torch.where(small, near, torch.log1p(-torch.where(small, -1.0, x).exp()))
