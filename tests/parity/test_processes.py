"""Gaussian-process regression against scikit-learn, on random input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from morphogen.diffusion.conditioned import regress, squared_exponential


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (7, 5, 2), (40, 13, 3)])
@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_regression(n: int, m: int, d: int, noise: float) -> None:
    rng = np.random.default_rng(n * d)
    x, y, at = rng.normal(size=(n, d)), rng.normal(size=n), rng.normal(size=(m, d))
    length, variance = rng.uniform(0.5, 2, size=2)
    theirs = GaussianProcessRegressor(ConstantKernel(variance) * RBF(length), alpha=noise, optimizer=None).fit(x, y)
    mean, cov = theirs.predict(at, return_cov=True)
    ours = regress(
        lambda a, b: squared_exponential(a, b, length, variance),
        torch.from_numpy(x),
        torch.from_numpy(y),
        torch.from_numpy(at),
        noise=noise,
    )
    np.testing.assert_allclose(ours.mean.numpy(), mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.cov.numpy(), cov, rtol=1e-8, atol=1e-10)
    assert float(ours.logp) == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-10)
