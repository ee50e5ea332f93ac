"""Autoencoders held against principal components, ridge regression and the Jacobian by another way."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from morphogen import UserError
from morphogen.core import NONE, Net, Noise, keys
from morphogen.latent.autoencoder import L1, Autoencoder, Contractive, Sparsity, jacobian_square
from morphogen.latent.likelihood import Gaussian
from morphogen.nets.mlp import MLP


class Linear(Net):
    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, outputs, bias)

    def forward(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        return self.map(x)


def data(n: int = 300) -> Tensor:
    g = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0]
    spread = torch.tensor([3.0, 2.0, 1.4, 0.6, 0.4, 0.2], dtype=torch.float64)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64) * spread @ turn.T
    return x - x.mean(0)


def converged(model: Autoencoder, batch: dict[str, Tensor]) -> None:
    optim = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optim.zero_grad()
        value = model.loss(batch).value
        assert isinstance(value, Tensor)
        value.backward()
        return value

    optim.step(closure)


def test_the_linear_autoencoder_spans_the_principal_components():
    torch.manual_seed(0)
    x, q = data(), 3
    model = Autoencoder(Linear(6, q), Linear(q, 6), Gaussian((6,)), q).double()
    converged(model, {"x": x, "key": keys(torch.arange(len(x)), 0)})
    values, axes = torch.linalg.eigh(x.T @ x / len(x))
    principal = axes[:, -q:]
    found = torch.linalg.qr(model.decoder.map.weight.detach())[0]
    cosines = torch.linalg.svdvals(principal.T @ found).clamp(max=1)
    sines = torch.linalg.svdvals(principal - found @ (found.T @ principal))  # of the angles, without losing digits
    assert sines.max() < 1e-3
    assert cosines.min() > 1 - 1e-6
    with torch.no_grad():
        error = (model.decode(model.encode(x)) - x).square().sum(1).mean()
    assert error.item() == pytest.approx(values[:-q].sum().item(), rel=1e-6)


def test_the_denoising_autoencoder_decodes_the_mean_of_x_given_what_was_seen():
    """Of Gaussian data and Gaussian corruption that mean is linear: x̂ = Σ (Σ + σ² I)⁻¹ x̃, here for each corruption
    that was drawn, by least squares on the very same noise.
    """
    torch.manual_seed(0)
    x, std = data(2000), 0.8
    key = keys(torch.arange(len(x)), 0)

    def corrupt(x: Tensor, noise: Noise) -> Tensor:
        return x + std * noise.normal(6, dtype=x.dtype)

    model = Autoencoder(Linear(6, 6), Linear(6, 6), Gaussian((6,)), 6, corrupt=(corrupt,)).double()
    converged(model, {"x": x, "key": key})
    whole = (model.decoder.map.weight @ model.encoder.map.weight).detach()
    seen = corrupt(x, Noise(key))
    centred, target = seen - seen.mean(0), x - x.mean(0)
    least = torch.linalg.lstsq(centred, target).solution.T
    torch.testing.assert_close(whole, least, atol=1e-4, rtol=0)
    cov = x.T @ x / len(x)
    optimum = cov @ torch.linalg.inv(cov + std**2 * torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(whole, optimum, atol=0.06, rtol=0)  # the draws are 2000
    clean = Autoencoder(model.encoder, model.decoder, Gaussian((6,)), 6).double()
    assert model.loss({"x": x, "key": key}).value > clean.loss({"x": x, "key": key}).value  # the loss is of clean x


@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_the_contractive_penalty_is_the_jacobian_s_norm(shape: tuple[int, ...]):
    torch.manual_seed(0)
    n = torch.Size(shape).numel()
    encoder = MLP(n, 4, 16, 2, activation="tanh").double()
    model = Autoencoder(encoder, MLP(4, n, 8, 1).double(), Gaussian(shape), 4, penalties=(Contractive(0.3),)).double()
    x = torch.randn(7, *shape, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: encoder(row[None])[0]))(x)
    exact = jacobian.flatten(1).square().sum(1)
    torch.testing.assert_close(jacobian_square(encoder, x), exact)
    with torch.no_grad():
        torch.testing.assert_close(jacobian_square(encoder, x), exact)
    batch = {"x": x, "key": keys(torch.arange(7), 0)}
    said = model.loss(batch)
    torch.testing.assert_close(said.logs["contraction"], exact.mean())
    torch.testing.assert_close(said.value, said.logs["reconstruction"] + 0.3 * exact.mean())
    said.value.backward()  # and it is differentiated: by finite differences
    weight, grad = encoder.first.weight, encoder.first.weight.grad[0, 0].item()
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight[0, 0] += step
            values.append(model.loss(batch).value.item())
            weight[0, 0] -= step
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(grad, rel=1e-5)


def test_a_sigmoid_layer_s_contraction_has_rifai_s_closed_form():
    torch.manual_seed(0)
    W, b = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    h = torch.sigmoid(x @ W.T + b)
    closed = ((h * (1 - h)).square() * W.square().sum(1)).sum(1)
    torch.testing.assert_close(jacobian_square(lambda x: torch.sigmoid(x @ W.T + b), x), closed)


def test_sparse_penalties_by_hand():
    z = torch.tensor([[1.0, -2.0], [0.0, 4.0]], dtype=torch.float64)
    assert L1()(z, lambda x: x, z).item() == pytest.approx(3.5)
    on = z.sigmoid().mean(0)
    bernoulli = torch.distributions.Bernoulli
    exact = torch.distributions.kl_divergence(bernoulli(torch.full_like(on, 0.2)), bernoulli(on)).sum()
    torch.testing.assert_close(Sparsity(1.0, 0.2)(z, lambda x: x, z), exact)
    model = Autoencoder(Linear(2, 2), Linear(2, 2), Gaussian((2,)), 2, penalties=(L1(0.5), Sparsity(2.0))).double()
    batch = {"x": z, "key": keys(torch.arange(2), 0)}
    said = model.loss(batch)
    added = 0.5 * said.logs["l1"] + 2 * said.logs["sparsity"]
    torch.testing.assert_close(said.value, said.logs["reconstruction"] + added)
    assert model.counts(batch) == {}
    with pytest.raises(UserError, match="0 or more"):
        L1(-1.0)
    with pytest.raises(UserError, match="share of the time"):
        Sparsity(1.0, 1.0)


def test_sparse_codes_are_sparser():
    x, zeros = data(200), []
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        model = Autoencoder(Linear(6, 12), Linear(12, 6), Gaussian((6,)), 12, penalties=(L1(weight),)).double()
        optim = torch.optim.Adam(model.parameters(), 0.02)
        for step in range(200):
            optim.zero_grad()
            model.loss({"x": x, "key": keys(torch.arange(200), step)}).value.backward()
            optim.step()
        zeros.append((model.encode(x).abs() < 0.1).double().mean().item())
    assert zeros[1] > zeros[0] + 0.2
