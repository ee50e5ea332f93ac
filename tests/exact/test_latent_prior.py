"""A prior in a codec's space is that prior: bitwise where the codec is nothing, in closed form where it is linear."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from torch import Tensor

from morphogen import Model, Noise, UserError, draw
from morphogen.autoregressive import Autoregressive
from morphogen.core import Bounds, Infers, LogProb, Samples, can, keys
from morphogen.diffusion import rectified_flow
from morphogen.flows import Composition, Flow, iaf, maf
from morphogen.latent import VAE, Diagonal, Flowed, Gaussian, Ladder, Latent, Rung
from morphogen.nets.causal import CausalTransformer
from morphogen.nets.mlp import MLP

from .codecs import Conditioned, Identity, Linear, LinearGaussian, Normal, Squares
from .test_nets import awake


def batch(n: int = 6, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    index = torch.arange(n)
    x = Noise.seeded(7, n).normal(*(shape or (2,)), dtype=dtype) * 3 + 1
    return {"x": x, "cond": {"label": index % 8}, "key": keys(index, 0), "index": index}


def diffusion(dim: int = 2) -> Model:
    return rectified_flow(MLP(dim, dim, 16, 1, scalars=("t",), sinusoid=8, classes=8), (dim,))


PRIORS = {"rectified flow": diffusion, "masked autoregressive flow": lambda: maf(2, 2, (8,), classes=8)}


@pytest.mark.parametrize("name", PRIORS)
def test_in_the_space_of_the_identity_it_is_the_prior_itself(name: str) -> None:
    torch.manual_seed(0)
    prior = awake(PRIORS[name]())
    latent, b = Latent(Identity(), prior), batch()
    assert torch.equal(latent.loss(b).value, prior.loss(b).value)
    cond = b["cond"]
    if isinstance(prior, Flow):
        assert torch.equal(latent.log_prob(b["x"], cond), prior.log_prob(b["x"], cond))
    assert torch.equal(draw(latent, 5, None, seed=3), draw(prior, 5, None, seed=3))


def test_codes_of_the_identity_are_the_prior_itself() -> None:
    class Codes(Identity):
        codes = 3

    net = CausalTransformer(3, (2, 2), width=16, depth=1, heads=2, classes=8)
    prior = awake(Autoregressive(net, (2, 2), 3))
    latent, b = Latent(Codes((2, 2)), prior), batch()
    b["x"] = torch.randint(3, (6, 2, 2))
    latent.start(b)
    assert torch.equal(latent.loss(b).value, prior.loss(b).value)
    drawn = draw(latent, 5, {"label": torch.arange(5)}, options={"guidance": 2.0, "top_k": 2})
    assert torch.equal(drawn, draw(prior, 5, {"label": torch.arange(5)}, options={"guidance": 2.0, "top_k": 2}))


def test_the_latents_that_the_prior_sees_have_unit_deviation() -> None:
    torch.manual_seed(1)
    latent, b = Latent(Linear(3), awake(maf(3, 2, (8,)))), batch(50, 3)
    latent.start(b)
    z = (latent.encode(b["x"]) - latent.mean) / latent.std
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-5)
    assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-5)
    seen = latent.prior.loss({**b, "x": z}).value
    assert torch.allclose(latent.loss(b).value, seen)
    pictures = Latent(Identity((3, 4, 5)), rectified_flow(torch.nn.Identity(), (3, 4, 5)))
    pictures.start(batch(7, 3, 4, 5))
    assert pictures.mean.shape == (3, 1, 1)  # a number a channel


@pytest.mark.parametrize("started", [False, True])
def test_a_linear_codec_and_a_gaussian_prior_have_the_closed_form(started: bool) -> None:
    torch.manual_seed(2)
    codec, prior = Linear(3).double(), Normal(3).double()
    latent, b = Latent(codec, prior).double(), batch(9, 3, dtype=torch.float64)
    if started:
        latent.start(b)
    # z' = (A x + b − m) / s ~ N(µ, Σ), so x ~ N(A^-1 (m + s µ − b), s² A^-1 Σ A^-T)
    inverse, s = torch.linalg.inv(codec.A), latent.std
    centre = inverse @ (latent.mean + s * prior.mean - codec.b)
    cov = s**2 * inverse @ prior.law.covariance_matrix @ inverse.T
    law = torch.distributions.MultivariateNormal(centre, cov)
    assert torch.allclose(latent.log_prob(b["x"]), law.log_prob(b["x"]), atol=1e-9)
    x = draw(latent, 20_000, chunk=5000)
    assert torch.allclose(x.mean(0), centre.detach(), atol=0.1)
    assert torch.allclose(x.T.cov(), cov.detach(), atol=0.15 * float(cov.detach().abs().max()))


def test_the_bound_is_below_the_likelihood_and_tight_at_the_optimum() -> None:
    """Of a linear-Gaussian VAE with a Gaussian prior: log p(x) = log N(x; W µ + m, W Σ W' + v I)."""
    torch.manual_seed(3)
    codec, prior = LinearGaussian(4, 2).double(), Normal(2).double()
    latent, b = Latent(codec, prior).double(), batch(5, 4, dtype=torch.float64)
    latent.std.fill_(1.7)
    latent.mean.fill_(-0.4)
    mean, cov = latent.mean + 1.7 * prior.mean, 1.7**2 * prior.law.covariance_matrix
    exact = torch.distributions.MultivariateNormal(
        codec.W @ mean + codec.m, codec.W @ cov @ codec.W.T + codec.var * torch.eye(4, dtype=torch.float64)
    ).log_prob(b["x"])

    def bounds() -> Tensor:
        return torch.stack([latent.elbo(b["x"], noise=Noise.seeded(i, 5)) for i in range(100)]).detach()

    loose = bounds()
    assert (loose.mean(0) < exact).all()
    codec.exact(mean.detach(), cov.detach())
    tight = bounds()
    assert (tight - exact).abs().max() < 1e-9  # every draw, not only the mean
    assert torch.equal(latent.elbo(b["x"]), latent.elbo(b["x"]))  # a function of x alone


def test_a_vae_with_a_flow_learns_its_bound() -> None:
    """The prior trained on draws of q, in a space where the best there is has a closed form."""
    torch.manual_seed(4)
    codec, prior = LinearGaussian(3, 1).double(), maf(1, 1, (4,)).double()
    x = codec.decode(2 + 0.5 * torch.randn(256, 1, dtype=torch.float64)) + 0.4**0.5 * torch.randn(256, 3).double()
    codec.exact(torch.full((1,), 2.0, dtype=torch.float64), torch.full((1, 1), 0.25, dtype=torch.float64))
    latent = Latent(codec, prior).double()
    index = torch.arange(256)
    optimiser = torch.optim.Adam(latent.prior.parameters(), 0.05)
    latent.start({"x": x, "key": keys(index, 0)})
    for step in range(60):
        optimiser.zero_grad()
        latent.loss({"x": x, "key": keys(index, step)}).value.backward()
        optimiser.step()
    truth = torch.distributions.MultivariateNormal(
        2 * codec.W[:, 0] + codec.m, 0.25 * codec.W @ codec.W.T + 0.4 * torch.eye(3, dtype=torch.float64)
    ).log_prob(x)
    gap = float((truth - latent.elbo(x)).mean().detach())
    assert -0.02 < gap < 0.03  # up to the sample's own chance


@pytest.mark.parametrize("flowed", [False, True])
def test_in_a_vae_with_its_own_prior_it_is_the_vae(flowed: bool) -> None:
    """E_q [log p(x|z) − log q(z|x) + log N(z)] is the VAE's own bound: draw by draw where its KL is one."""
    torch.manual_seed(8)
    encoder, decoder = MLP(4, 2 * 2 + 3 * flowed, 16, 1), MLP(2, 4, 16, 1)
    posterior = Flowed(encoder, iaf(2, 2, (8,), context=3), 2, 3) if flowed else Diagonal(encoder, 2)
    vae = awake(VAE(posterior, decoder, Gaussian((4,), 0.5)))
    latent, x = Latent(vae, Flow(Composition(), (2,))), torch.randn(5, 4)
    assert not can(vae, LogProb)
    ours, own = (torch.stack([m.elbo(x, noise=Noise.seeded(i, 5)) for i in range(200)]).detach() for m in (latent, vae))
    if flowed:
        assert torch.allclose(ours, own, atol=1e-4)
    assert ((ours.mean(0) - own.mean(0)).abs() < 5 * (ours.std(0) + own.std(0)) / 200**0.5).all()
    assert torch.equal(latent.encode(x), vae.encode(x))


def test_a_ladder_is_a_codec_without_a_law() -> None:
    rungs = [Rung(MLP(4, 8, 8, 1), 8, 3, down=MLP(2, 6, 8, 1)), Rung(MLP(8, 8, 8, 1), 8, 2)]
    vae = VAE(Ladder(*rungs), MLP(3, 4, 8, 1), Gaussian((4,)))
    latent = Latent(vae, Normal(3))
    assert not can(vae, Infers)
    assert not can(latent, Bounds)
    assert latent.loss({"x": torch.randn(6, 4), "key": torch.arange(6)}).value.isfinite()


def test_all_grids_of_codes_have_a_total_probability_of_one() -> None:
    torch.manual_seed(5)
    net = CausalTransformer(3, (2, 2), width=16, depth=1, heads=2)
    latent = Latent(Squares(3), awake(Autoregressive(net, (2, 2), 3))).double()
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    assert torch.equal(latent.encode(latent.decode(grids)), grids)
    total = latent.prior.log_prob(latent.encode(latent.decode(grids))).exp().sum()
    assert float(total.detach()) == pytest.approx(1, abs=1e-6)


def test_samples_have_the_options_of_the_prior() -> None:
    latent = Latent(Linear(2), Normal(2))
    assert list(inspect.signature(latent.sample).parameters) == ["n", "cond", "noise", "wide"]
    assert not torch.equal(draw(latent, 4, options={"wide": 0.0}), draw(latent, 4))
    with pytest.raises(UserError, match="did you mean 'wide'"):
        draw(latent, 4, options={"wode": 2.0})


def test_conditions_reach_a_codec_that_reads_them() -> None:
    torch.manual_seed(6)
    latent, b = Latent(Conditioned(), diffusion()), batch()
    assert torch.equal(latent.encode(b["x"], b["cond"]), b["x"] - latent.codec.table[b["cond"]["label"]])
    assert torch.allclose(latent.decode(latent.encode(b["x"], b["cond"]), b["cond"]), b["x"], atol=1e-6)
    plain = Latent(Identity(), latent.prior)
    shifted = latent.loss(b).value
    moved = plain.loss({**b, "x": b["x"] - latent.codec.table[b["cond"]["label"]]}).value
    assert torch.allclose(shifted, moved)


def test_the_codec_is_frozen_and_stays_in_evaluation_mode() -> None:
    latent = Latent(Linear(2), diffusion())
    latent.train()
    assert latent.prior.training
    assert not latent.codec.training
    latent.loss(batch()).value.backward()
    assert all(p.grad is None and not p.requires_grad for p in latent.codec.parameters())
    assert any(p.grad is not None for p in latent.prior.parameters())


def test_what_parts_lack_the_whole_lacks() -> None:
    cases = {
        (Linear, Normal): {Samples, LogProb},
        (LinearGaussian, Normal): {Samples, Bounds},
        (Conditioned, Normal): {Samples},
    }
    for (codec, prior), serves in cases.items():
        latent = Latent(codec(), prior())
        assert {p for p in (Samples, LogProb, Bounds) if can(latent, p)} == serves
    codes = Latent(Squares(3), Autoregressive(CausalTransformer(3, (2, 2), width=8, depth=1, heads=1), (2, 2), 3))
    assert not can(codes, LogProb)
    assert not can(codes, Bounds)


def test_a_flow_is_a_codec_for_another_flow() -> None:
    torch.manual_seed(7)
    codec, prior = awake(maf(2, 1, (8,))), awake(maf(2, 1, (8,)), 1)
    latent = Latent(codec, prior)
    whole = Flow(Composition(codec.bijection, prior.bijection), (2,))
    x = torch.randn(4, 2)
    assert torch.allclose(latent.log_prob(x), whole.log_prob(x), atol=1e-5)


def test_of_several_draws_one_is_taken_by_the_key() -> None:
    latent, b = Latent(Identity(), Normal(2)), batch(200)
    draws = torch.stack([torch.full((200, 2), float(i)) for i in range(4)], 1)
    held = {k: v for k, v in b.items() if k != "x"} | {"latent": draws}
    z = latent._drawn(held)
    assert set(z[:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert torch.equal(latent._drawn({**held, "key": held["key"][:3], "latent": draws[:3]}), z[:3])
    assert torch.equal(latent._drawn({**held, "latent": b["x"][:, None]}), b["x"])


def test_mistakes_are_said() -> None:
    ar = Autoregressive(CausalTransformer(3, (2, 2), width=8, depth=1, heads=1), (2, 2), 3)
    with pytest.raises(UserError, match="is no codec"):
        Latent(Normal(2), Normal(2))
    with pytest.raises(UserError, match=r"latents of this Linear are \(3,\)"):
        Latent(Linear(3), Normal(2))
    with pytest.raises(UserError, match="give an Autoregressive for integers"):
        Latent(Identity((2, 2)), ar)
    with pytest.raises(UserError, match="has 4 codes and the prior 3"):
        Latent(Squares(4), ar)
    with pytest.raises(UserError, match=r"latents are \(3,\) a draw"):
        Latent(Linear(2), Normal(2)).loss({"latent": torch.zeros(4, 1, 3), "key": torch.arange(4)})
