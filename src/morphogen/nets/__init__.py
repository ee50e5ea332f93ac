"""Networks: `net(x, cond)`, conditions by name, time as it is told in `cond["t"]`."""

from .attention import SelfAttention
from .causal import CausalTransformer
from .conv import Downsample, ResidualBlock, Upsample
from .dit import DiT
from .embed import ClassEmbedding, Sinusoidal, TimeEmbedding, drop
from .masked import MADE
from .mlp import MLP
from .patch import Patched
from .resnet import Reader, ResNet, SpeedNet
from .transformer import Attention, Block, CrossAttention, FeedForward
from .unet import UNet

__all__ = [
    "MADE",
    "MLP",
    "Attention",
    "Block",
    "CausalTransformer",
    "ClassEmbedding",
    "CrossAttention",
    "DiT",
    "Downsample",
    "FeedForward",
    "Patched",
    "Reader",
    "ResNet",
    "ResidualBlock",
    "SelfAttention",
    "Sinusoidal",
    "SpeedNet",
    "TimeEmbedding",
    "UNet",
    "Upsample",
    "drop",
]
