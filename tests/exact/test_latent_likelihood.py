"""What a decoder's output means: each law sums to one, has the mean it says, and draws what it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions

from morphogen import UserError
from morphogen.core import Model, Noise
from morphogen.data.augment import AugmentedOnce, Binarise
from morphogen.data.items import Tensors
from morphogen.latent.likelihood import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    Gaussian,
    Heteroscedastic,
    Likelihood,
)
from morphogen.metrics.likelihood import likelihoods

LAWS: dict[str, Likelihood] = {
    "bernoulli": Bernoulli((2, 3)),
    "bernoulli on 0 and 1": Bernoulli((2, 3), 0.0, 1.0),
    "logistic": DiscretisedLogistic((2, 3), 9),
    "categorical": Categorical((2, 3), 7, 0.0, 3.0),
    "gaussian": Gaussian((2, 3), 0.7),
    "heteroscedastic": Heteroscedastic((2, 3)),
}


def levels(law) -> torch.Tensor:
    return torch.linspace(law.low, law.high, law.levels, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_discretised_logistic_sums_to_one_and_is_the_difference_of_two_sigmoids(dtype: torch.dtype):
    law = DiscretisedLogistic((1,))
    x = levels(law).to(dtype)[:, None]  # (256, 1)
    cell = 2 / 255
    for log_scale in (-7.0, -5.5, -3.0, -1.0, 0.0, 3.0):
        for centre in (-1.7, -1.0, -0.4375, 0.003, 0.999, 1.0, 2.5):
            h = torch.tensor([centre, log_scale], dtype=dtype).expand(256, 2)
            log_p = law.log_prob(x, h)
            assert log_p.isfinite().all()
            assert log_p.double().exp().sum().item() == pytest.approx(1, abs=1e-9 if dtype == torch.float64 else 2e-4)
            if dtype == torch.float64:
                scale = math.exp(log_scale)
                upper = torch.sigmoid((x[:, 0] + cell / 2 - centre) / scale)
                lower = torch.sigmoid((x[:, 0] - cell / 2 - centre) / scale)
                upper[-1], lower[0] = 1, 0
                mass = upper - lower
                torch.testing.assert_close(log_p.exp()[mass > 1e-8], mass[mass > 1e-8], rtol=1e-6, atol=0)


def test_the_discretised_logistic_s_gradient_is_finite_everywhere():
    law = DiscretisedLogistic((1,))
    x = levels(law).float()[:, None].repeat(4, 1)
    for centre in (-40.0, -1.0, 0.2, 40.0):
        h = torch.stack((torch.full((1024,), centre), torch.linspace(-30, 30, 1024)), 1).requires_grad_()
        law.log_prob(x, h).sum().backward()
        assert h.grad.isfinite().all()


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli on 0 and 1", "logistic", "categorical"])
def test_a_discrete_law_sums_to_one_has_its_mean_and_draws_its_shares(name: str):
    torch.manual_seed(0)
    law = LAWS[name]
    assert law.discrete
    h = torch.randn(1, law.parts * 6, dtype=torch.float64)
    if name == "logistic":
        h[:, 6:] = h[:, 6:] * 0.3 - 1.5
    values = levels(law)
    # all coordinates at the same level: the log-probabilities of one coordinate by differences to a reference
    table = []
    base = values[0].expand(1, 2, 3)
    for v in values:
        rows = []
        for i in range(6):
            x = base.clone()
            x.view(-1)[i] = v
            rows.append(law.log_prob(x, h) - law.log_prob(base, h))
        table.append(torch.cat(rows))
    odds = torch.stack(table)  # (levels, 6) up to a constant a coordinate
    total = law.log_prob(base, h).exp() * odds.exp().sum(0).prod()
    assert total.item() == pytest.approx(1, abs=1e-9)
    p = odds.softmax(0)
    if name != "logistic":
        torch.testing.assert_close(law.mean(h).flatten(), (values[:, None] * p).sum(0))
    n = 20_000
    drawn = law.sample(h.expand(n, -1), Noise.seeded(0, n)).view(n, 6)
    shares = torch.stack([(drawn - v).abs().lt(1e-9).double().mean(0) for v in values])
    assert shares.sum(0).tolist() == pytest.approx([1.0] * 6)  # nothing but levels is drawn
    assert ((shares - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 2 / n).all()


def test_normal_laws_are_those_of_torch():
    torch.manual_seed(0)
    x, h = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    law = Gaussian((2, 3), 0.7)
    torch.testing.assert_close(law.log_prob(x, h), distributions.Normal(h, 0.7).log_prob(x).flatten(1).sum(1))
    assert not law.discrete
    assert not list(law.parameters())
    (learned,) = Gaussian((2, 3), 0.7, learned=True).parameters()
    assert learned.exp().item() == pytest.approx(0.49)
    both = torch.randn(4, 4, 3)  # channels: means, then log-variances
    own = distributions.Normal(both[:, :2], (both[:, 2:] / 2).exp())
    torch.testing.assert_close(LAWS["heteroscedastic"].log_prob(x, both), own.log_prob(x).flatten(1).sum(1))
    n = 20_000
    for own_law, said in ((law, h[:1]), (LAWS["heteroscedastic"], both[:1])):
        drawn = own_law.sample(said.expand(n, *said.shape[1:]), Noise.seeded(1, n))
        torch.testing.assert_close(drawn.mean(0), own_law.mean(said)[0], atol=0.06, rtol=0)
        wide = drawn.double() - own_law.mean(said).double()
        variance = torch.full((2, 3), 0.49) if own_law.parts == 1 else both[0, 2:].exp()
        torch.testing.assert_close(wide.square().mean(0).float(), variance, atol=0.02, rtol=0.06)


@pytest.mark.parametrize("name", LAWS)
def test_draws_of_each_sample_go_through_the_samples_again_and_again(name: str):
    torch.manual_seed(0)
    law = LAWS[name]
    x = law.sample(torch.randn(4, law.parts * 6), Noise.seeded(2, 4))
    h = torch.randn(12, law.parts * 6)
    whole = law.log_prob(x, h)
    assert whole.shape == (12,)
    torch.testing.assert_close(whole, law.log_prob(x.repeat(3, 1, 1), h))
    torch.testing.assert_close(whole, law.log_prob(x, h.view(12, law.parts * 2, 3)))
    assert law.log_prob(x[:0], h[:0]).shape == (0,)
    assert law.mean(h).shape == (12, 2, 3)
    law.check(x)
    rough = law.log_prob(x, h.bfloat16())
    assert rough.dtype == torch.float32  # sums of bfloat16 would be coarse
    with pytest.raises(UserError, match="numbers a sample"):
        law.log_prob(x, torch.randn(4, 5))
    with pytest.raises(UserError, match="build it for that"):
        law.check(torch.zeros(2, 3, 2))


def test_between_two_values_a_bernoulli_is_the_mean_over_binarisations():
    torch.manual_seed(0)
    law, h = Bernoulli((5,)), torch.randn(1, 5, dtype=torch.float64)
    grey = torch.rand(1, 5, dtype=torch.float64) * 2 - 1
    n = 40_000
    drawn = Binarise()(grey.expand(n, 5), Noise.seeded(0, n))
    each = law.log_prob(drawn, h.expand(n, -1))
    assert abs(each.mean() - law.log_prob(grey, h)) < 4 * each.std() / n**0.5


def test_binarising_keeps_the_ends_and_the_mean():
    x = torch.tensor([[-1.0, 1.0, 0.0, 0.5]]).expand(20_000, 4)
    drawn = Binarise()(x, Noise.seeded(0, 20_000))
    assert drawn.unique().tolist() == [-1, 1]
    assert drawn[:, 0].eq(-1).all()
    assert drawn[:, 1].eq(1).all()
    assert drawn[:, 2:].mean(0).tolist() == pytest.approx([0.0, 0.5], abs=0.03)
    with pytest.raises(UserError, match="low < high"):
        Binarise(1.0, 1.0)


def test_items_augmented_once_stay_as_they_are():
    grey = Tensors(torch.rand(30, 1, 4, 4) * 2 - 1, {"label": torch.arange(30)})
    items = AugmentedOnce(grey, (Binarise(),))
    whole = items.take(torch.arange(30))
    assert len(items) == 30
    assert whole["x"].unique().tolist() == [-1, 1]
    back = items.take(torch.tensor([7, 3, 29]))
    assert torch.equal(back["x"], whole["x"][[7, 3, 29]])
    assert back["cond"]["label"].tolist() == [7, 3, 29]
    assert not torch.equal(AugmentedOnce(grey, (Binarise(),), seed=1).take(torch.arange(30))["x"], whole["x"])


class Coin(Model):
    """Every pixel of two values, each of which may come: one bit a pixel."""

    discrete = True

    def elbo(self, x, cond=None):
        assert set(x.unique().tolist()) <= {-1.0, 1.0}, "discrete data are not to be dequantised"
        return x.flatten(1).new_full((len(x),), -x[0].numel() * math.log(2))

    def importance(self, x, cond=None, *, k=1000, noise=None):
        return self.elbo(x) + math.log(k)


def test_bits_of_discrete_data_need_no_cells():
    items = AugmentedOnce(Tensors(torch.rand(9, 1, 3, 5) * 2 - 1), (Binarise(),))
    said = likelihoods(Coin(), items, volume=15 * math.log(2 / 255), method="elbo")
    assert said.nats.value == pytest.approx(-15 * math.log(2))
    assert said.bits.value == pytest.approx(1.0)
    assert "upper bound" in said.bits.how
    assert "dequantised" not in said.bits.how
    more = likelihoods(Coin(), items, method="importance", options={"k": 8}, chunk=4)
    assert more.nats.value == pytest.approx(-15 * math.log(2) + math.log(8))
    assert "k 8" in more.nats.how


def test_what_is_no_data_is_told():
    with pytest.raises(UserError, match=r"0\.2, which is none of the 2 values"):
        Bernoulli((3,)).check(torch.full((2, 3), 0.2))
    with pytest.raises(UserError, match="scale x, or round it"):
        Categorical((3,), 4).check(torch.tensor([[0.0, 2.0, 1.0]]))
    with pytest.raises(UserError, match="low < high"):
        Categorical((3,), 4, 1.0, 0.0)
    with pytest.raises(UserError, match="above 0"):
        Gaussian((3,), 0.0)
    with pytest.raises(UserError, match="one sample"):
        Gaussian(())
