"""The parts of nets: what each must be equal to, or must not notice."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.nets.attention import PLAIN, SelfAttention, attend
from morphogen.nets.conv import Downsample, ResidualBlock, Upsample, convolution, group_norm, halved
from morphogen.nets.embed import ClassEmbedding, Sinusoidal, TimeEmbedding, drop
from morphogen.nets.mlp import ACTIVATIONS, MLP
from morphogen.nets.unet import Block, Gate, UNet
from morphogen.spec import build, spec


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net with every parameter random: nothing hides behind zero-initialised layers, unit gains or zero biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            scale = 0.2 if p.ndim == 1 else 1 / math.sqrt(p[0].numel())
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return net


def conditions(b: int, classes: int = 5) -> dict[str, torch.Tensor]:
    return {"t": torch.rand(b), "label": torch.randint(classes, (b,))}


# ---- embeddings ----------------------------------------------------------------------------------------------------


def test_sinusoid_by_hand() -> None:
    """Sines first, frequency 1 first; with shift 1 the last frequency is 1 / period, with shift 0 one step short."""
    e = Sinusoidal(6, period=100.0)(torch.tensor([2.0]))
    hand = [math.sin(2), math.sin(0.2), math.sin(0.02), math.cos(2), math.cos(0.2), math.cos(0.02)]
    torch.testing.assert_close(e, torch.tensor([hand]))
    e = Sinusoidal(5, period=100.0, shift=0.0)(torch.tensor([6.0], dtype=torch.float64))
    hand = [math.sin(6), math.sin(0.6), math.cos(6), math.cos(0.6), 0.0]
    torch.testing.assert_close(e, torch.tensor([hand], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float32])
def test_sinusoid_is_made_in_single_precision_at_least(dtype) -> None:
    t = torch.tensor([0, 1, 900]).to(dtype)
    torch.testing.assert_close(Sinusoidal(8)(t), Sinusoidal(8)(t.double()).float(), atol=1e-4, rtol=0)
    assert Sinusoidal(8)(t).dtype == torch.float32


def test_sinusoid_refuses_a_width_without_two_frequencies() -> None:
    with pytest.raises(UserError, match="at least 4"):
        Sinusoidal(3)


def test_time_embedding_follows_its_weights_dtype() -> None:
    net = TimeEmbedding(8, 12)
    assert net(torch.tensor([3])).shape == (1, 12)
    assert net.double()(torch.tensor([3.0])).dtype == torch.float64


def test_null_is_used_exactly_where_marked() -> None:
    torch.manual_seed(0)
    net = ClassEmbedding(4, 3)
    label = torch.tensor([3, 0, 2, 0, 1])
    null = torch.tensor([False, True, False, True, False])
    free, e = net({"label": label}, 5), net({"label": label, "null": null}, 5)
    assert torch.equal(free, net.table[label])
    assert torch.equal(e[~null], free[~null])
    assert torch.equal(e[null], net.table[4].expand(2, 3))
    assert torch.equal(net({"t": torch.rand(2)}, 2), net.table[4].expand(2, 3))  # no label: all null
    assert torch.equal(net({"label": torch.tensor([77, 1]), "null": torch.tensor([True, False])}, 2)[1], net.table[1])
    assert len({tuple(row) for row in net.table.tolist()}) == 5  # the null is no class's row


def test_null_gets_its_gradient_from_marked_samples_only() -> None:
    net = ClassEmbedding(3, 2)
    cond = {"label": torch.tensor([0, 2, 2]), "null": torch.tensor([False, False, True])}
    net(cond, 3).sum().backward()
    assert net.table.grad[:, 0].tolist() == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("wrong", [-1, 4, 5, 1000])
def test_a_label_outside_its_range_is_named(wrong: int) -> None:
    with pytest.raises(UserError, match=rf"holds {wrong}, but this net knows the classes 0 to 3"):
        ClassEmbedding(4, 3)({"label": torch.tensor([1, wrong, 2])}, 3)


def test_drop() -> None:
    cond = {"label": torch.arange(20_000) % 7}
    noise = Noise.seeded(3, 20_000)
    assert drop(cond, 0.0, noise) is cond
    dropped = drop(cond, 0.25, noise)
    assert dropped["label"] is cond["label"]
    assert "null" not in cond
    assert dropped["null"].dtype == torch.bool
    assert dropped["null"].shape == (20_000,)
    sd = math.sqrt(0.25 * 0.75 / 20_000)
    assert abs(dropped["null"].double().mean() - 0.25) < 5 * sd
    assert bool(drop(cond, 1.0, Noise.seeded(3, 20_000))["null"].all())
    some = drop(cond, 0.25, Noise(Noise.seeded(3, 20_000).key[100:110]))["null"]
    assert torch.equal(some, drop(cond, 0.25, Noise.seeded(3, 20_000))["null"][100:110])  # by key, not by position
    again = drop({"null": torch.tensor([True, False])}, 1e-9, Noise.seeded(0, 2))
    assert again["null"].tolist() == [True, False]
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="no probability"):
            drop(cond, p, noise)


# ---- MLP -----------------------------------------------------------------------------------------------------------


def test_plain_mlp_is_linear_layers_and_activations() -> None:
    net = awake(MLP(2, 3, width=16, depth=3, scalars=("t", "r"), activation="selu"))
    x, t, r = torch.randn(5, 2), torch.rand(5), torch.rand(5)
    h = torch.cat((x, t[:, None], r[:, None]), 1)
    for layer in (net.first, *net.hidden):
        h = F.selu(h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x, {"r": r, "t": t}), h @ net.last.weight.T + net.last.bias)


@pytest.mark.parametrize("inputs", [1, 2, 50])
@pytest.mark.parametrize(("scalars", "sinusoid"), [((), 0), (("t",), 0), (("t", "r"), 0), (("t",), 64)])
def test_mlp_sees_x_however_many_columns_the_conditions_take(inputs: int, scalars: tuple[str, ...], sinusoid: int):
    """For x, and for conditions, of unit variance: the variance of the first layer is 1."""
    torch.manual_seed(3)
    weight = MLP(inputs, 1, 5000, 1, scalars=scalars, sinusoid=sinusoid).first.weight
    assert float(weight[:, :inputs].square().sum(1).mean()) == pytest.approx(1.0, abs=0.1)
    if scalars:
        assert float(weight[:, inputs:].square().sum(1).mean()) == pytest.approx(1.0, abs=0.1)


def test_mlp_conditions() -> None:
    net = awake(MLP(2, 2, width=8, depth=1, scalars=("t",), sinusoid=6, classes=3))
    x, cond = torch.randn(4, 2), {"t": torch.rand(4), "label": torch.tensor([0, 1, 2, 0])}
    h = torch.cat((x, Sinusoidal(6)(cond["t"])), 1) @ net.first.weight.T + net.first.bias
    h = F.silu(h + net.classes.table[cond["label"]])
    torch.testing.assert_close(net(x, cond), h @ net.last.weight.T + net.last.bias)
    assert torch.equal(MLP(2, 3, last=0.0)(x), torch.zeros(4, 3))
    with pytest.raises(UserError, match="condition 't'"):
        net(x, {"label": cond["label"]})
    with pytest.raises(UserError, match="did you mean 'silu'"):
        MLP(2, 2, activation="sillu")
    with pytest.raises(UserError, match="at least 1"):
        MLP(2, 2, depth=0)
    assert MLP(2, 2)(torch.zeros(0, 2)).shape == (0, 2)
    assert set(ACTIVATIONS) >= {"silu", "relu", "selu"}


# ---- convolutions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upsample_is_repeating_then_convolving(dims: int, dtype) -> None:
    net = awake(Upsample(3, dims=dims)).to(dtype)
    for size in ((1,) * dims, (2, 3, 5)[:dims], (4, 1, 2)[:dims]):
        x = torch.randn(2, 3, *size, dtype=dtype)
        y = net.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(net(x), y)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_downsample_by_hand(n: int) -> None:
    """Windows of even sizes start at 0, of odd sizes at -1; the size is halved upwards."""
    net = awake(Downsample(1, dims=1))
    x = torch.randn(1, 1, n)
    w, bias = net.conv.weight[0, 0], net.conv.bias[0]
    at = [*([0.0] * (n % 2)), *x[0, 0], 0.0]
    hand = [sum(w[k] * at[2 * i + k] for k in range(3)) + bias for i in range((n + 1) // 2)]
    torch.testing.assert_close(net(x)[0, 0], torch.stack(hand))


@pytest.mark.parametrize("modulation", ["shift", "scale-shift"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_residual_block_by_its_formula(modulation: str, dims: int) -> None:
    net = awake(ResidualBlock(4, 6, 5, dims=dims, groups=2, modulation=modulation))
    x, e = torch.randn(3, 4, *(5, 3, 2)[:dims]), torch.randn(3, 5)
    h = net.conv1(F.silu(F.group_norm(x, 2, net.norm1.weight, net.norm1.bias, 1e-6)))
    code = net.modulate.linear(e).view(3, -1, *(1,) * dims)
    h = net.norm2(h + code) if modulation == "shift" else net.norm2(h) * (1 + code[:, :6]) + code[:, 6:]
    torch.testing.assert_close(net(x, e), net.skip(x) + net.conv2(F.silu(h)))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_halved_is_the_mean_of_what_there_is(n: int) -> None:
    x = torch.randn(2, 3, n, dtype=torch.float64)
    hand = [x[:, :, i : i + 2].mean(2) for i in range(0, n, 2)]
    torch.testing.assert_close(halved(x), torch.stack(hand, 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("change", ["half", "double"])
def test_residual_block_that_changes_the_resolution_by_its_formula(dims: int, change: str) -> None:
    net = awake(ResidualBlock(4, 6, 5, dims=dims, groups=2, modulation="scale-shift", change=change)).double()
    for size in ((5, 3, 2)[:dims], (4, 1, 6)[:dims]):
        x, e = torch.randn(3, 4, *size, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)

        def resized(h: torch.Tensor) -> torch.Tensor:
            for axis in range(2, h.ndim):  # one axis after the other, by index
                if change == "double":
                    h = h.repeat_interleave(2, axis)
                else:
                    odd = h.narrow(axis, h.shape[axis] - 1, h.shape[axis] % 2)
                    h = torch.cat((h, odd), axis)
                    h = (h.unflatten(axis, (-1, 2))).mean(axis + 1)
            return h

        h = net.conv1(resized(F.silu(F.group_norm(x, 2, net.norm1.weight, net.norm1.bias, 1e-6))))
        code = net.modulate.linear(e).view(3, -1, *(1,) * dims)
        h = F.silu(net.norm2(h) * (1 + code[:, :6]) + code[:, 6:])
        torch.testing.assert_close(net(x, e), net.skip(resized(x)) + net.conv2(h))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gate_by_its_formula(dims: int) -> None:
    """Oktay et al. 2018, equations 1 and 2, position by position."""
    net = awake(Gate(3, 5, dims=dims)).double()
    h, s = (torch.randn(2, c, *(4, 3, 2)[:dims], dtype=torch.float64) for c in (3, 5))
    joined = net(h, s)
    assert torch.equal(joined[:, :3], h)
    w_s, w_h, w = (m.weight.flatten(1) for m in (net.skipped, net.gating, net.open))
    for b in range(2):
        for i in range(h[0, 0].numel()):
            at_h, at_s = h[b].flatten(1)[:, i], s[b].flatten(1)[:, i]
            a = 1 / (1 + torch.exp(-(w[0] @ (w_s @ at_s + w_h @ at_h + net.skipped.bias).clamp(min=0) + net.open.bias)))
            torch.testing.assert_close(joined[b, 3:].flatten(1)[:, i], a * at_s)


def test_residual_block_starts_as_its_skip_and_drops_only_in_training() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(ResidualBlock(4, 4)(x), x)
    net = awake(ResidualBlock(4, 4, dropout=0.5))
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    kept = awake(ResidualBlock(4, 4))
    kept.load_state_dict(net.state_dict())
    assert torch.equal(kept(x), net(x))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'scale-shift'"):
        ResidualBlock(4, 4, 4, modulation="scale_shift")
    with pytest.raises(UserError, match="dims=1, 2 or 3"):
        convolution(4, 1, 1)
    with pytest.raises(UserError, match="attention heads"):
        SelfAttention(6, heads=4)
    with pytest.raises(UserError, match="levels 0 to 1"):
        UNet(1, widths=(8, 8), attention=(2,))
    with pytest.raises(UserError, match="heads of 3 channels do not divide a level of 8"):
        UNet(1, widths=(8,), attention=(0,), head=3)
    with pytest.raises(UserError, match="did you mean 'residual'"):
        UNet(1, widths=(8,), attention=(), resampling="residuals")
    with pytest.raises(UserError, match="did you mean 'gate'"):
        UNet(1, widths=(8,), attention=(), join="gated")
    with pytest.raises(UserError, match="did you mean 'half'"):
        ResidualBlock(4, 4, change="halve")
    with pytest.raises(UserError, match="ADM net of edge '32'"):
        UNet.adm_imagenet(32)
    with pytest.raises(UserError, match="no levels"):
        UNet(1, widths=(), attention=())
    with pytest.raises(UserError, match="condition 't'"):
        UNet(1, widths=(8,), attention=())(torch.zeros(1, 1, 4, 4), {})


@given(st.integers(1, 64), st.integers(1, 200))
def test_groups_divide_channels(groups: int, channels: int) -> None:
    norm = group_norm(groups, channels, 1e-6)
    assert channels % norm.num_groups == 0
    assert groups % norm.num_groups == 0
    if channels % groups == 0:
        assert norm.num_groups == groups


# ---- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("b", "heads", "n", "m", "d"), [(0, 2, 4, 4, 3), (1, 1, 1, 1, 5), (5, 3, 7, 11, 2), (40, 2, 128, 130, 4)]
)
def test_attention_is_torchs(dtype, b: int, heads: int, n: int, m: int, d: int) -> None:
    """The last size is computed in pieces."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(b, heads, s, d, dtype=dtype) for s in (n, m, m))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(attend(q, k, v).double(), expected, rtol=tolerance, atol=tolerance)


def test_long_attention_takes_the_other_way_to_the_same() -> None:
    q, k, v = torch.randn(3, 1, 2, PLAIN[torch.float32] + 1, 4)
    cut = attend(q[:, :, :9], k, v)
    weights = torch.softmax(q[:, :, :9] @ k.mT / 2, -1)
    torch.testing.assert_close(cut, weights @ v, rtol=1e-5, atol=1e-6)


def test_self_attention_by_its_formula() -> None:
    net = awake(SelfAttention(6, heads=2, groups=3))
    x = torch.randn(2, 6, 3, 4)
    h = F.group_norm(x, 3, net.norm.weight, net.norm.bias, 1e-6).flatten(2)  # (B, C, N)
    q, k, v = (
        w[..., 0, 0] @ h + b[:, None] for w, b in zip(net.qkv.weight.chunk(3), net.qkv.bias.chunk(3), strict=True)
    )
    heads = []
    for i in (slice(0, 3), slice(3, 6)):
        weights = torch.softmax(q[:, i].mT @ k[:, i] / math.sqrt(3), -1)  # (B, N, N)
        heads.append(v[:, i] @ weights.mT)
    y = x + (net.out.weight[..., 0, 0] @ torch.cat(heads, 1) + net.out.bias[:, None]).view_as(x)
    torch.testing.assert_close(net(x), y)
    assert torch.equal(SelfAttention(6)(x), x)  # it starts as the identity


def test_self_attention_does_not_see_the_order_of_positions() -> None:
    net = awake(SelfAttention(4, heads=2, groups=2, dims=1)).double()
    x, order = torch.randn(2, 4, 10, dtype=torch.float64), torch.randperm(10)
    torch.testing.assert_close(net(x[:, :, order]), net(x)[:, :, order])


# ---- U-Net ---------------------------------------------------------------------------------------------------------


def small(dims: int = 2, **options) -> UNet:
    chosen = {"widths": (8, 12, 16), "depth": 1, "attention": (1,), "groups": 4, "head": 4, "classes": 5}
    return awake(UNet(2, dims=dims, **(chosen | options)))


@pytest.mark.parametrize(
    "size", [(8,), (7,), (1,), (8, 8), (7, 5), (28, 28), (1, 9), (1, 1), (6, 3, 5), (4, 4, 4)], ids=str
)
def test_output_is_as_large_as_the_input(size: tuple[int, ...]) -> None:
    net = small(len(size))
    assert net(torch.randn(2, 2, *size), conditions(2)).shape == (2, 2, *size)


@pytest.mark.parametrize("size", [(7,), (1,), (8, 8), (7, 5), (1, 9), (6, 3, 5)], ids=str)
def test_adm_and_gated_nets_take_any_size(size: tuple[int, ...]) -> None:
    for options in ({"resampling": "residual", "modulation": "scale-shift", "shift": 0.0}, {"join": "gate"}):
        net = small(len(size), **options).double()
        x, cond = torch.randn(2, 2, *size, dtype=torch.float64), conditions(2)
        y = net(x, cond)
        assert y.shape == (2, 2, *size)
        alone = net(x[1:], {k: v[1:] for k, v in cond.items()})
        torch.testing.assert_close(alone, y[1:], rtol=0, atol=1e-12)
        y.square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "classes" not in n)


def test_a_closed_gate_hides_its_skip() -> None:
    net = small(join="gate", attention=(), classes=0)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, Gate):
                part.open.bias.fill_(-1e4)
    h, s = torch.randn(1, 16, 2, 2), torch.randn(1, 16, 2, 2)
    gate = next(m for m in net.up[0].modules() if isinstance(m, Gate))
    assert torch.equal(gate(h, s)[:, 16:], torch.zeros_like(s))


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (lambda: UNet.adm_imagenet(64), 296),
        (lambda: UNet.adm_imagenet(128), 422),
        (lambda: UNet.adm_imagenet(256), 554),
        (lambda: UNet.improved_imagenet64(width=64), 30),
        (lambda: UNet.improved_imagenet64(width=96), 68),
    ],
)
def test_published_sizes(make, published: int) -> None:
    """Dhariwal & Nichol 2021, table 4 of the appendix; Nichol & Dhariwal 2021, section 6: millions of parameters."""
    with torch.device("meta"):
        net = make()
    null = 0 if net.classes is None else net.classes.width
    assert round((sum(p.numel() for p in net.parameters()) - null) / 1e6) == published


@pytest.mark.parametrize(("width", "published"), [(128, 120e6), (192, 270e6)])
def test_published_sizes_that_are_given_to_two_digits(width: int, published: float) -> None:
    with torch.device("meta"):
        net = UNet.improved_imagenet64(width=width)
    assert float(f"{sum(p.numel() for p in net.parameters()):.2g}") == published


def test_heads_by_number_and_by_width() -> None:
    counts = {m.heads for m in small(attention=(0, 1), head=4).modules() if isinstance(m, SelfAttention)}
    assert counts == {2, 3, 4}  # widths 8, 12 and (middle) 16
    counts = {m.heads for m in small(attention=(0, 1), head=0, heads=2).modules() if isinstance(m, SelfAttention)}
    assert counts == {2}


def test_without_conditions() -> None:
    net = small(scalars=(), classes=0)
    assert net(torch.randn(2, 2, 5, 4)).shape == (2, 2, 5, 4)
    assert not any("modulate" in name for name, _ in net.named_parameters())


def test_outputs_and_empty_batches() -> None:
    net = small(outputs=5)
    assert net(torch.randn(1, 2, 4, 4), conditions(1)).shape == (1, 5, 4, 4)
    empty = net(torch.randn(0, 2, 4, 4), conditions(0))
    assert empty.shape == (0, 5, 4, 4)


def test_it_starts_as_zero_and_reads_more_than_neighbours() -> None:
    x = torch.randn(1, 2, 16, 16)
    assert torch.equal(UNet(2, widths=(8, 8), groups=4)(x, conditions(1)), torch.zeros_like(x))
    net = small()
    x.requires_grad_()
    net(x, conditions(1))[0, 0, 0, 0].backward()
    assert x.grad[0, :, -1, -1].abs().min() > 0  # through the levels: one corner sees the other


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_rows_are_independent_and_every_condition_counts(size: tuple[int, int]) -> None:
    net = small(scalars=("t", "r")).double()
    x = torch.randn(3, 2, *size, dtype=torch.float64)
    cond = conditions(3) | {"r": torch.rand(3)}
    y = net(x, cond)
    for i in range(3):
        alone = net(x[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()})
        torch.testing.assert_close(alone, y[i : i + 1], rtol=0, atol=1e-12)
    changes = {
        "t": cond["t"] + torch.tensor([0.0, 0.1, 0.0]),
        "r": cond["r"] + torch.tensor([0.0, 0.1, 0.0]),
        "label": (cond["label"] + torch.tensor([0, 1, 0])) % 5,
        "null": torch.tensor([False, True, False]),
    }
    for name, value in changes.items():
        differs = (net(x, cond | {name: value}) - y).abs().flatten(1).amax(1)
        assert (differs > 1e-6).tolist() == [False, True, False], name
    null = net(x, cond | {"null": torch.ones(3, dtype=torch.bool)})
    assert torch.equal(null, net(x, {k: v for k, v in cond.items() if k != "label"}))
    swapped = net(x, cond | {"t": cond["r"], "r": cond["t"]})
    assert (swapped - y).abs().max() > 1e-6  # the scalars are not interchangeable


@pytest.mark.parametrize("modulation", ["shift", "scale-shift"])
def test_gradients_reach_every_parameter(modulation: str) -> None:
    net = small(modulation=modulation)
    cond = conditions(6) | {"label": torch.tensor([0, 1, 2, 3, 4, 0]), "null": torch.arange(6) == 5}
    net(torch.randn(6, 2, 8, 8), cond).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_no_parameter_is_unused_from_the_first_step() -> None:
    net = UNet(2, widths=(8, 8), groups=4, classes=3)
    net(torch.randn(2, 2, 4, 4), conditions(2, 3)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_gradient_is_the_slope() -> None:
    net = small(widths=(4, 4), groups=2).double()
    cond = {k: v[:1] for k, v in conditions(1).items()}
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x, cond), (x,))


def test_float64_and_float32_agree() -> None:
    net = small()
    x, cond = torch.randn(2, 2, 7, 5), conditions(2)
    y = copy.deepcopy(net).double()(x.double(), cond | {"t": cond["t"]})
    assert y.dtype == torch.float64
    torch.testing.assert_close(net(x, cond).double(), y, rtol=1e-4, atol=1e-5)


def test_autocast_to_bfloat16_stays_close() -> None:
    net = small()
    x, cond = torch.randn(4, 2, 8, 8), conditions(4)
    y = net(x, cond)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, cond).float()
    assert ((low - y).std() / y.std()) < 0.05


def test_channels_last_stays_and_changes_nothing() -> None:
    net = small()
    x, cond = torch.randn(3, 2, 8, 8), conditions(3)
    y = net(x, cond)
    last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), cond)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y, rtol=1e-4, atol=1e-5)


def test_recomputed_blocks_have_the_same_gradients() -> None:
    x, cond = torch.randn(2, 2, 8, 8), conditions(2)
    grads = []
    for recompute in (False, True):
        torch.manual_seed(4)
        net = small(dropout=0.3)
        blocks = [m for m in net.modules() if getattr(m, "recomputable", False)]
        assert blocks == [m for m in net.modules() if isinstance(m, Block)]
        assert len(blocks) == 3 + 2 + 6
        if recompute:
            for block in blocks:
                plain = block.forward
                block.forward = lambda *args, plain=plain: checkpoint(plain, *args, use_reentrant=False)
        torch.manual_seed(5)
        y = net(x, cond)
        y.square().sum().backward()
        grads.append([y, *(p.grad for p in net.parameters())])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**31))
def test_spec_round_trip(seed: int) -> None:
    for net in (
        UNet(2, widths=(8, 12), attention=(0,), groups=4, classes=3, dims=1, modulation="scale-shift"),
        MLP(3, 2, width=8, scalars=("t",), sinusoid=4, classes=2),
        ClassEmbedding(3, 4),
        ResidualBlock(4, 6, 3),
        SelfAttention(4, heads=2),
    ):
        graph = spec(net)
        a, b = build(graph, seed=seed), build(graph, seed=seed)
        assert spec(a) == graph
        assert a.state_dict().keys() == net.state_dict().keys()
        for k, v in a.state_dict().items():
            assert v.shape == net.state_dict()[k].shape
            assert torch.equal(v, b.state_dict()[k])


def test_spec_of_the_named_configuration_is_its_constructor_call() -> None:
    net = UNet.ddpm_cifar10(classes=10)
    assert spec(net)["class"] == "morphogen.nets.unet:UNet"
    assert spec(net)["args"]["widths"] == {"tuple": [128, 256, 256, 256]}
