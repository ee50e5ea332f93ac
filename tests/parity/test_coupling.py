"""Plans against POT's network simplex (`ot.emd`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from morphogen.data.densities import eight_gaussians, moons
from morphogen.diffusion.coupling import assign

ot = pytest.importorskip("ot", reason="POT is not installed")


@pytest.mark.parametrize("n", [1, 3, 64, 255])
@pytest.mark.parametrize("name", ["moons", "eight", "pictures"])
def test_plans_are_those_of_pot(n, name):
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        if name == "pictures":
            x = torch.rand(n, 3, 8, 8, generator=g, dtype=torch.float64) * 2 - 1
        else:
            x = {"moons": moons, "eight": eight_gaussians}[name]().sample(n).double()
        z = torch.randn(x.shape, generator=g, dtype=torch.float64)
        distances = (
            torch.cdist(x.flatten(1), z.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
        )
        plan = ot.emd(np.full(n, 1 / n), np.full(n, 1 / n), distances)
        order = assign(x, z)
        ours = distances[np.arange(n), order].mean()
        assert ours == pytest.approx((plan * distances).sum(), rel=1e-9)
        np.testing.assert_array_equal(order, plan.argmax(1))
