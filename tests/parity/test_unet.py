"""The U-Net against diffusers' UNet2DModel, weights copied one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from morphogen.nets.unet import UNet

diffusers = pytest.importorskip("diffusers")


def peer(
    widths: tuple[int, ...],
    attention: tuple[int, ...],
    *,
    groups: int,
    head: int | None,
    depth: int = 2,
    adm: bool = False,
    classes: int | None = None,
) -> nn.Module:
    """Diffusers' net in the configuration of google/ddpm-cifar10-32, with other sizes; or in ADM's."""
    levels = range(len(widths))
    plain = "Resnet{}sampleBlock2D" if adm else "{}Block2D"
    resample = "resnet" if adm else "conv"
    return diffusers.UNet2DModel(
        in_channels=3,
        out_channels=3,
        layers_per_block=depth,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if i in attention else plain.format("Down") for i in levels),
        up_block_types=tuple("AttnUpBlock2D" if i in attention else plain.format("Up") for i in reversed(levels)),
        downsample_type=resample,
        upsample_type=resample,
        resnet_time_scale_shift="scale_shift" if adm else "default",
        num_class_embeds=classes,
        attn_norm_num_groups=groups,  # else their middle attends without a norm where they scale and shift
        attention_head_dim=head,
        norm_num_groups=groups,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=adm,
        freq_shift=0 if adm else 1,
    )


def translated(theirs: dict[str, Tensor], depth: int = 2) -> dict[str, Tensor]:
    """Their state under our names."""
    ours: dict[str, Tensor] = {}

    def move(source: str, target: str) -> None:
        for kind in ("weight", "bias"):
            ours[f"{target}.{kind}"] = theirs[f"{source}.{kind}"]

    def residual_block(residual: str, target: str) -> None:
        for a, b in (
            ("norm1", "norm1"),
            ("conv1", "conv1"),
            ("time_emb_proj", "modulate.linear"),
            ("norm2", "norm2"),
            ("conv2", "conv2"),
            ("conv_shortcut", "skip"),
        ):
            if f"{residual}.{a}.weight" in theirs:
                move(f"{residual}.{a}", f"{target}.residual.{b}")

    def block(side: str, i: int, target: str) -> None:
        attention = f"{side}.attentions.{i}"
        residual_block(f"{side}.resnets.{i}", target)
        if f"{attention}.to_q.weight" in theirs:
            move(f"{attention}.group_norm", f"{target}.attention.norm")
            move(f"{attention}.to_out.0", f"{target}.attention.out")
            for kind in ("weight", "bias"):
                parts = [theirs[f"{attention}.to_{c}.{kind}"] for c in "qkv"]
                ours[f"{target}.attention.qkv.{kind}"] = torch.cat(parts)
            for name in ("qkv", "out"):  # a linear layer over channels is a convolution of kernel 1
                ours[f"{target}.attention.{name}.weight"] = ours[f"{target}.attention.{name}.weight"][..., None, None]

    move("conv_in", "first")
    move("time_embedding.linear_1", "times.0.inner")
    if "class_embedding.weight" in theirs:
        ours["classes.table"] = theirs["class_embedding.weight"]  # their last class is our null
    move("time_embedding.linear_2", "times.0.outer")
    for side, sampler, blocks in (("down", "downsamplers", depth), ("up", "upsamplers", depth + 1)):
        n = level = 0
        while f"{side}_blocks.{level}.resnets.0.norm1.weight" in theirs:
            for i in range(blocks):
                block(f"{side}_blocks.{level}", i, f"{side}.{n}")
                n += 1
            if f"{side}_blocks.{level}.{sampler}.0.conv.weight" in theirs:
                move(f"{side}_blocks.{level}.{sampler}.0.conv", f"{side}.{n}.conv")
                n += 1
            elif f"{side}_blocks.{level}.{sampler}.0.conv1.weight" in theirs:
                residual_block(f"{side}_blocks.{level}.{sampler}.0", f"{side}.{n}")
                n += 1
            level += 1
    block("mid_block", 0, "middle.0")
    block("mid_block", 1, "middle.1")
    move("conv_norm_out", "norm")
    move("conv_out", "last")
    return ours


def unlike(net: nn.Module) -> nn.Module:
    """The net with norms and biases that are not at their neutral initial values, so that a mix-up shows."""
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return net


def test_cifar10_ddpm_is_theirs() -> None:
    torch.manual_seed(0)
    theirs = unlike(peer((128, 256, 256, 256), (1,), groups=32, head=None)).eval()
    ours = UNet.ddpm_cifar10().eval()
    assert sum(p.numel() for p in ours.parameters()) == 35_746_307
    ours.load_state_dict(translated(theirs.state_dict()))  # strict: nothing is left over on either side
    for b, h, w, t in (
        (1, 32, 32, torch.tensor([999])),
        (2, 16, 24, torch.tensor([0.0, 371.25])),
        (3, 8, 40, torch.tensor([3.5, 500.0, 12.0])),
    ):
        x = torch.randn(b, 3, h, w)
        with torch.no_grad():
            y, y_theirs = ours(x, {"t": t}), theirs(x, t).sample
        assert y_theirs.std() > 0.1
        torch.testing.assert_close(y, y_theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "attention", "groups", "head", "depth"),
    [((8, 16), (0, 1), 4, 4, 1), ((16, 8, 24), (2,), 8, None, 2), ((12,), (), 4, None, 3)],
)
def test_other_configurations_and_gradients(widths, attention, groups, head, depth) -> None:
    torch.manual_seed(1)
    theirs = unlike(peer(widths, attention, groups=groups, head=head, depth=depth)).double()
    ours = UNet(3, widths=widths, attention=attention, groups=groups, head=head or 0, depth=depth).double()
    ours.load_state_dict(translated(theirs.state_dict(), depth))
    x, t = torch.randn(4, 3, 12, 8, dtype=torch.float64), torch.tensor([0, 1, 500, 999])
    # Their sinusoid is made in single precision, whatever the net is: the one thing compared above, in single.
    theirs.time_proj = ours.times[0].sinusoid
    y, y_theirs = ours(x, {"t": t.double()}), theirs(x, t.double()).sample
    torch.testing.assert_close(y, y_theirs, rtol=0, atol=1e-12)
    g = torch.randn_like(y)
    ((y * g).sum()).backward()
    ((y_theirs * g).sum()).backward()
    grads = translated({k: p.grad for k, p in theirs.named_parameters()}, depth)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], rtol=1e-9, atol=1e-11, msg=name)


def swapped(columns: Tensor) -> Tensor:
    """Sines before cosines, or cosines before sines."""
    return torch.cat(columns.chunk(2, 1)[::-1], 1)


class CosinesFirst(nn.Module):
    def __init__(self, sinusoid: nn.Module) -> None:
        super().__init__()
        self.sinusoid = sinusoid

    def forward(self, t: Tensor) -> Tensor:
        return swapped(self.sinusoid(t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("widths", "attention", "groups", "head", "depth"),
    [((8, 16, 24), (1, 2), 4, 4, 1), ((16, 8), (0, 1), 8, 8, 2), ((16, 32, 32, 48), (1, 3), 8, 16, 3)],
)
def test_adm_outputs_and_gradients(widths, attention, groups, head, depth, dtype) -> None:
    """Scale-shift, resolution changed inside residual blocks, heads by width at several levels, classes."""
    torch.manual_seed(2)
    theirs = unlike(peer(widths, attention, groups=groups, head=head, depth=depth, adm=True, classes=6)).to(dtype)
    ours = UNet(
        3,
        widths=widths,
        attention=attention,
        groups=groups,
        head=head,
        depth=depth,
        classes=5,
        modulation="scale-shift",
        resampling="residual",
        shift=0.0,
    ).to(dtype)

    def ported(state: dict[str, Tensor]) -> dict[str, Tensor]:
        named = translated(state, depth)
        return named | {"times.0.inner.weight": swapped(named["times.0.inner.weight"])}

    ours.load_state_dict(ported(theirs.state_dict()))
    x, label = torch.randn(4, 3, 24, 16, dtype=dtype), torch.tensor([0, 4, 5, 2])
    t = torch.tensor([0.0, 1.0, 500.0, 999.0], dtype=dtype)
    # Their sinusoid is made in single precision, whatever the net is.
    theirs.time_proj = CosinesFirst(ours.times[0].sinusoid)
    y = ours(x, {"t": t, "label": label.clamp(max=4), "null": label == 5})
    y_theirs = theirs(x, t, class_labels=label).sample
    assert y_theirs.std() > 0.1
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(y, y_theirs, rtol=0, atol=tolerance)
    g = torch.randn_like(y) / y.numel() ** 0.5
    ((y * g).sum()).backward()
    ((y_theirs * g).sum()).backward()
    grads = ported({k: p.grad for k, p in theirs.named_parameters() if not k.startswith("time_proj")})
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], rtol=tolerance, atol=tolerance, msg=name)
