"""VQ-VAE and the convolutional codec nets: shapes of any size, what a step of training does, and mistakes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from morphogen.core import Codec, Noise, can, keys
from morphogen.errors import UserError
from morphogen.latent.quantise import EMACodeBook, GradientCodeBook, Quantiser, ResidualVQ
from morphogen.latent.scalar import FSQ, LFQ
from morphogen.latent.vq import VQVAE, absolute, cropped, encoded_shape
from morphogen.nets.autoencoder import Decoder, Encoder


def batch(n: int, *shape: int, seed: int = 0) -> dict[str, Tensor]:
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "key": keys(torch.arange(n), seed)}


def vqvae(quantiser: Quantiser, shape: tuple[int, ...] = (1, 8, 8), patch: int = 1) -> VQVAE:
    torch.manual_seed(0)
    dims, widths, d = len(shape) - 1, (4, 8), quantiser.dim
    encoder = Encoder(shape[0], d, widths=widths, depth=1, middle=False, patch=patch, groups=4, dims=dims)
    decoder = Decoder(shape[0], d, widths=widths, depth=1, middle=False, patch=patch, groups=4, dims=dims)
    return VQVAE(encoder, decoder, quantiser, shape)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (2, 1, 5), (1, 9), (1, 3, 4, 5)])
def test_any_size_comes_back(shape: tuple[int, ...], patch: int) -> None:
    model = vqvae(EMACodeBook(6, 3), shape, patch)
    small = tuple(math.ceil(math.ceil(n / patch) / 2) for n in shape[1:])
    assert model.latent_shape == small
    assert model.codes == 6
    for n in (1, 3):
        data = batch(n, *shape)
        z = model.encode(data["x"])
        assert z.dtype == torch.long
        assert z.shape == (n, *small)
        assert model.decode(z).shape == data["x"].shape
        assert model.embed(data["x"]).shape == model.quantised(z).shape == (n, 3, *small)
    assert can(model, Codec)


def test_residual_codes_have_an_axis_of_depth() -> None:
    model = vqvae(ResidualVQ(5, 3, 4))
    z = model.encode(batch(2, 1, 8, 8)["x"])
    assert z.shape == (2, 4, 4, 4)
    assert model.latent_shape == (4, 4, 4)
    assert model.decode(z).shape == (2, 1, 8, 8)


def test_the_loss_is_the_papers() -> None:
    beta, data = 0.4, batch(3, 1, 8, 8)
    model = vqvae(GradientCodeBook(7, 3, beta=beta))
    said = model.loss(data)
    z = model.encoder(data["x"])
    book = model.quantiser.book
    codes = (z.movedim(1, -1)[..., None, :] - book).square().sum(-1).argmin(-1)  # (B, h, w)
    z_q = book[codes].movedim(-1, 1)
    assert torch.equal(model.encode(data["x"]), codes)
    expected = (model.decoder(z_q) - data["x"]).square().mean() + (1 + beta) * (z - z_q).square().mean()
    torch.testing.assert_close(said.value, expected)
    assert torch.equal(said.seen["codes"], codes)
    changed = VQVAE(model.encoder, model.decoder, model.quantiser, (1, 8, 8), error=absolute)
    torch.testing.assert_close(changed.loss(data).logs["reconstruction"], (model.decoder(z_q) - data["x"]).abs().mean())


def test_a_step_moves_the_book_by_what_was_seen() -> None:
    model, data = vqvae(EMACodeBook(5, 3, restart=0.0)), batch(4, 1, 8, 8, seed=1)
    model.start(batch(4, 1, 8, 8))
    assert not torch.equal(model.quantiser.used, torch.ones(5))  # it has begun from the data
    alone = EMACodeBook(5, 3, restart=0.0)
    alone.load_state_dict(model.quantiser.state_dict())
    said = model.loss(data)
    before = model.quantiser.book.clone()
    assert torch.equal(before, model.quantiser.book)  # not by the loss
    model.after_step("loss", said.seen)
    alone.update(model.embed(data["x"]).detach(), said.seen["codes"], Noise(data["key"]))
    assert torch.equal(model.quantiser.book, alone.book)
    assert not torch.equal(model.quantiser.book, before)
    assert 1 <= float(said.logs["perplexity"]) <= 5


def test_a_batch_is_cut_unless_the_quantiser_looks_at_all_of_it() -> None:
    data = batch(3, 1, 8, 8)
    assert vqvae(FSQ((4, 4))).counts(data) == {"": 3.0}
    assert vqvae(LFQ(4)).counts(data) == {}


def test_the_shape_of_latents_leaves_the_encoder_as_it_was() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.BatchNorm2d(5)).double()
    assert encoded_shape(encoder, (3, 9, 12)) == (5, 4, 5)
    assert encoder.training
    assert encoder[1].training
    assert int(encoder[1].num_batches_tracked) == 0


def test_attention_and_middle() -> None:
    encoder = Encoder(2, 3, widths=(4, 8), depth=2, attention=(1,), groups=4)
    decoder = Decoder(2, 3, widths=(4, 8), depth=2, attention=(0,), groups=4)
    x = torch.randn(2, 2, 6, 8)
    z = encoder(x)
    assert z.shape == (2, 3, 3, 4)
    assert decoder(z).shape == x.shape
    names = [type(p).__name__ for p in encoder.parts]
    assert names == ["ResidualBlock"] * 2 + ["Downsample"] + ["ResidualBlock", "SelfAttention"] * 3 + ["ResidualBlock"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Encoder(1, 2, widths=()), "0 widths"),
        (lambda: Decoder(1, 2, depth=0), "depth 0"),
        (lambda: Encoder(1, 2, widths=(4, 8), attention=(2,)), "level 2"),
        (lambda: cropped(torch.zeros(1, 1, 4, 4), (1, 4, 5)), "(1, 4, 4)"),
        (lambda: cropped(torch.zeros(1, 2, 4, 4), (1, 4, 4)), "(2, 4, 4)"),
    ],
)
def test_mistakes_are_told(make: object, said: str) -> None:
    with pytest.raises(UserError) as told:
        make()  # type: ignore[operator]
    assert said in str(told.value)
