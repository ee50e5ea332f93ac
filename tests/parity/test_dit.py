"""DiT against diffusers' classes, weights copied one by one: DiTTransformer2DModel, and PixArt-α's for text.

Where diffusers' DiT is not the authors' code: every block embeds time and class anew (here all with the same weights),
its slowest frequency is 1 / period (`downscale_freq_shift=1`; the authors': one step short of it), and the second norm
of a block has eps 1e-5 (theirs: 1e-6). The last two are put right before anything is compared.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.nets.dit import DiT
from morphogen.nets.transformer import Attention, CrossAttention

diffusers = pytest.importorskip("diffusers")

CHANNELS, OUTPUTS, HEADS, CLASSES, TEXT = 4, 8, 3, 5, 7


def peer(width: int = 24, depth: int = 3, size: int = 8, patch: int = 2) -> nn.Module:
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=width // HEADS,
        in_channels=CHANNELS,
        out_channels=OUTPUTS,
        num_layers=depth,
        sample_size=size,
        patch_size=patch,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    )
    first = net.transformer_blocks[0].norm1.emb.state_dict()
    for block in net.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return net.eval()  # in training it drops labels by a generator of its own


def translated(theirs: dict[str, Tensor], *, total: bool = False) -> dict[str, Tensor]:
    """Their state under our names; total: sums over the blocks' embeddings, for gradients (else the first block's)."""
    ours: dict[str, Tensor] = {}
    blocks = sorted({int(k.split(".")[1]) for k in theirs if k.startswith("transformer_blocks.")})

    def embedding(name: str) -> Tensor:
        each = [theirs[f"transformer_blocks.{i}.norm1.emb.{name}"] for i in blocks]
        return torch.stack(each).sum(0) if total else each[0]

    for kind in ("weight", "bias"):
        for a, b in (("linear_1", "inner"), ("linear_2", "outer")):
            ours[f"times.0.{b}.{kind}"] = embedding(f"timestep_embedder.{a}.{kind}")
        ours[f"first.{kind}"] = theirs[f"pos_embed.proj.{kind}"]
        ours[f"modulation.{kind}"] = theirs[f"proj_out_1.{kind}"]
        ours[f"last.{kind}"] = theirs[f"proj_out_2.{kind}"]
        for i in blocks:
            a, b = f"transformer_blocks.{i}", f"blocks.{i}"
            ours[f"{b}.modulation.{kind}"] = theirs[f"{a}.norm1.linear.{kind}"]
            _block(theirs, ours, a, b, kind)
    ours["classes.table"] = embedding("class_embedder.embedding_table.weight")
    return _turned(ours)


def _block(theirs: dict[str, Tensor], ours: dict[str, Tensor], a: str, b: str, kind: str) -> None:
    ours[f"{b}.attention.qkv.{kind}"] = torch.cat([theirs[f"{a}.attn1.to_{c}.{kind}"] for c in "qkv"])
    ours[f"{b}.attention.out.{kind}"] = theirs[f"{a}.attn1.to_out.0.{kind}"]
    ours[f"{b}.mlp.inner.{kind}"] = theirs[f"{a}.ff.net.0.proj.{kind}"]
    ours[f"{b}.mlp.outer.{kind}"] = theirs[f"{a}.ff.net.2.{kind}"]


def _turned(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """A convolution's weights as a matrix, and the sinusoid's columns swapped: theirs has cosines first."""
    ours["first.weight"] = ours["first.weight"].flatten(1)
    inner = ours["times.0.inner.weight"]
    ours["times.0.inner.weight"] = inner.roll(inner.shape[1] // 2, 1)
    return ours


def awake(net: nn.Module) -> nn.Module:
    """The net with biases and zero-initialised layers that are not at their neutral values, so that a mix-up shows."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def close(a: Tensor, b: Tensor, name: str) -> None:
    """Equal to 2e-5 of the largest magnitude."""
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * max(1.0, b.abs().max().item()), msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize(
    ("width", "depth", "size", "patch", "b"), [(24, 3, 8, 2, 4), (60, 1, 12, 4, 1), (36, 2, 5, 1, 3)]
)
def test_dit_is_theirs_in_outputs_and_gradients(width: int, depth: int, size: int, patch: int, b: int) -> None:
    torch.manual_seed(0)
    theirs = peer(width, depth, size, patch)
    state = awake(theirs).state_dict()
    for block in theirs.transformer_blocks[1:]:  # one embedding again
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    ours = DiT(CHANNELS, outputs=OUTPUTS, width=width, depth=depth, heads=HEADS, patch=patch, classes=CLASSES)
    ours.load_state_dict(translated(state))  # strict: nothing is left over on either side
    x, t = torch.randn(b, CHANNELS, size, size), torch.tensor([0.0, 1.5, 421.0, 999.0])[:b]
    label = torch.tensor([0, 4, 2, 3])[:b]
    null = torch.tensor([False, True, False, False])[:b]
    y = ours(x, {"t": t, "label": label, "null": null})
    y_theirs = theirs(x, t, label.masked_fill(null, CLASSES), return_dict=False)[0]
    assert y_theirs.std() > 0.1
    close(y, y_theirs, "output")
    g = torch.randn_like(y)
    (y * g).sum().backward()
    (y_theirs * g).sum().backward()
    grads = translated({k: p.grad for k, p in theirs.named_parameters()}, total=True)
    for name, p in ours.named_parameters():
        close(p.grad, grads[name], name)


def test_xl_2_of_theirs_is_larger_by_its_many_embeddings() -> None:
    with torch.device("meta"):
        theirs = diffusers.DiTTransformer2DModel(out_channels=8)  # its defaults are XL/2
        ours = DiT.named("XL/2", outputs=8)
    count = sum(p.numel() for p in theirs.parameters())
    again = sum(p.numel() for p in theirs.transformer_blocks[0].norm1.emb.parameters())
    assert count == 749_826_464
    assert sum(p.numel() for p in ours.parameters()) == count - 27 * again


def pixart(width: int, depth: int) -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=width // HEADS,
        in_channels=CHANNELS,
        out_channels=OUTPUTS,
        num_layers=depth,
        cross_attention_dim=width,
        sample_size=8,
        caption_channels=TEXT,
        use_additional_conditions=False,
    ).eval()


def translated_pixart(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """PixArt's state under our names: its one modulation, plus each block's bias, as a layer of each block."""
    ours: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for a, b in (("linear_1", "inner"), ("linear_2", "outer")):
            ours[f"times.0.{b}.{kind}"] = theirs[f"adaln_single.emb.timestep_embedder.{a}.{kind}"]
            ours[f"text.project.{b}.{kind}"] = theirs[f"caption_projection.{a}.{kind}"]
        ours[f"first.{kind}"] = theirs[f"pos_embed.proj.{kind}"]
        ours[f"last.{kind}"] = theirs[f"proj_out.{kind}"]
        for i in range(depth):
            a, b = f"transformer_blocks.{i}", f"blocks.{i}"
            table = theirs[f"{a}.scale_shift_table"].flatten() if kind == "bias" else 0.0
            ours[f"{b}.modulation.{kind}"] = theirs[f"adaln_single.linear.{kind}"] + table
            _block(theirs, ours, a, b, kind)
            ours[f"{b}.cross.q.{kind}"] = theirs[f"{a}.attn2.to_q.{kind}"]
            ours[f"{b}.cross.kv.{kind}"] = torch.cat([theirs[f"{a}.attn2.to_{c}.{kind}"] for c in "kv"])
            ours[f"{b}.cross.out.{kind}"] = theirs[f"{a}.attn2.to_out.0.{kind}"]
    return _turned(ours)


def test_cross_attention_to_text_is_pixarts() -> None:
    torch.manual_seed(0)
    width, depth = 24, 3
    theirs = awake(pixart(width, depth))
    ours = DiT(CHANNELS, outputs=OUTPUTS, width=width, depth=depth, heads=HEADS, text=TEXT)
    missing, extra = ours.load_state_dict(translated_pixart(theirs.state_dict(), depth), strict=False)
    assert (sorted(missing), extra) == (["modulation.bias", "modulation.weight", "text.null"], [])

    class Last(nn.Module):
        """PixArt's last modulation: of the time's embedding before its activation, which our form cannot say."""

        def forward(self, _: Tensor) -> Tensor:
            return (theirs.scale_shift_table + ours.times[0](t)[:, None]).flatten(1)

    ours.modulation = Last()
    x, t = torch.randn(3, CHANNELS, 8, 8), torch.tensor([0.0, 37.25, 999.0])
    text, mask = torch.randn(3, 6, TEXT), torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1]]).bool()
    y = ours(x, {"t": t, "text": text, "text_mask": mask})
    y_theirs = theirs(x, text, t, encoder_attention_mask=mask.float(), return_dict=False)[0]
    assert y_theirs.std() > 0.1
    close(y, y_theirs, "output")
    g = torch.randn_like(y)
    (y * g).sum().backward()
    (y_theirs * g).sum().backward()
    cross = {k: p.grad for k, p in theirs.named_parameters() if "attn2" in k or "caption" in k}
    for i in range(depth):
        close(ours.blocks[i].cross.q.weight.grad, cross[f"transformer_blocks.{i}.attn2.to_q.weight"], f"q {i}")
    close(ours.text.project.inner.weight.grad, cross["caption_projection.linear_1.weight"], "projection")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("b", "n", "m", "heads"), [(1, 1, 1, 1), (3, 5, 9, 2), (2, 300, 4, 3)])
def test_attentions_are_torchs(dtype, b: int, n: int, m: int, heads: int) -> None:
    torch.manual_seed(0)
    width, context = 4 * heads, 5
    x, c = torch.randn(b, n, width, dtype=dtype), torch.randn(b, m, context, dtype=dtype)
    mask = torch.rand(b, m) < 0.5
    mask[:, 0] = True
    one, two = Attention(width, heads).to(dtype), CrossAttention(width, context, heads).to(dtype)

    def torchs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: nn.Module) -> Tensor:
        q, k, v = (a.view(b, -1, heads, 4).transpose(1, 2) for a in (q, k, v))
        return out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    tolerance = {torch.float32: 2e-5, torch.float64: 1e-13}[dtype]
    expected = torchs(*one.qkv(x).chunk(3, 2), None, one.out)
    torch.testing.assert_close(one(x), expected, rtol=0, atol=tolerance)
    for given in (None, mask):
        bias = None if given is None else torch.zeros(b, 1, 1, m, dtype=dtype).masked_fill(~mask[:, None, None], -1e9)
        expected = torchs(two.q(x), *two.kv(c).chunk(2, 2), bias, two.out)
        torch.testing.assert_close(two(x, c, given), expected, rtol=0, atol=tolerance)
