"""The KL autoencoder beside diffusers', with its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from morphogen.latent.vqgan import KLAutoencoder
from morphogen.nets.attention import SelfAttention
from morphogen.nets.autoencoder import Decoder, Encoder
from morphogen.nets.conv import Downsample, ResidualBlock, Upsample

AutoencoderKL = pytest.importorskip("diffusers").AutoencoderKL

WIDTHS, DEPTH = (8, 16, 16), 2


def theirs() -> nn.Module:
    torch.manual_seed(0)
    net = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=WIDTHS,
        layers_per_block=DEPTH,
        latent_channels=4,
        norm_num_groups=4,
    )
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


def pairs(mine: KLAutoencoder, other: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Our layers and theirs, one for one."""
    found = [(mine.moments, other.quant_conv), (mine.latent, other.post_quant_conv)]
    middle = lambda m: [m.resnets[0], m.attentions[0], m.resnets[1]]  # noqa: E731
    down = [m for b in other.encoder.down_blocks for m in (*b.resnets, *(b.downsamplers or ()))]
    up = [m for b in other.decoder.up_blocks for m in (*b.resnets, *(b.upsamplers or ()))]
    sides = (
        (mine.encoder, other.encoder, [*down, *middle(other.encoder.mid_block)]),
        (mine.decoder, other.decoder, [*middle(other.decoder.mid_block), *up]),
    )
    for own, their, parts in sides:
        found += [(own.first, their.conv_in), (own.norm, their.conv_norm_out), (own.last, their.conv_out)]
        assert len(own.parts) == len(parts)
        for a, b in zip(own.parts, parts, strict=True):
            if isinstance(a, ResidualBlock):
                found += [(a.norm1, b.norm1), (a.conv1, b.conv1), (a.norm2, b.norm2), (a.conv2, b.conv2)]
                assert (a.skip is None) == (b.conv_shortcut is None)
                found += [] if a.skip is None else [(a.skip, b.conv_shortcut)]
            elif isinstance(a, SelfAttention):
                found.append((a.norm, b.group_norm))
                found.append((a.out, b.to_out[0]))
            else:
                assert isinstance(a, Downsample | Upsample)
                found.append((a.conv, b.conv))
    return found


@torch.no_grad()
def copied(mine: KLAutoencoder, other: nn.Module) -> None:
    for a, b in pairs(mine, other):
        a.weight.copy_(b.weight.reshape(a.weight.shape))
        a.bias.copy_(b.bias)
    attentions = [
        (own.parts, their.mid_block.attentions[0])
        for own, their in ((mine.encoder, other.encoder), (mine.decoder, other.decoder))
    ]
    for parts, b in attentions:
        (a,) = [p for p in parts if isinstance(p, SelfAttention)]
        a.qkv.weight.copy_(torch.cat([m.weight for m in (b.to_q, b.to_k, b.to_v)])[..., None, None])
        a.qkv.bias.copy_(torch.cat([m.bias for m in (b.to_q, b.to_k, b.to_v)]))


@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
def test_it_is_diffusers_with_its_weights(size: tuple[int, int]) -> None:
    other = theirs()
    settings = {"widths": WIDTHS, "depth": DEPTH, "groups": 4}
    mine = KLAutoencoder(Encoder(3, 8, **settings), Decoder(3, 4, **settings), 4, (3, *size)).eval()
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in other.parameters())
    copied(mine, other)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        law = other.encode(x).latent_dist
        mean, log_var = mine.posterior(x)
        _close(mean, law.mean)
        _close(log_var, law.logvar)
        _close(mine.encode(x), law.mode())
        z = torch.randn(2, *mine.latent_shape)
        _close(mine.decode(z), other.decode(z).sample)


def _close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))
