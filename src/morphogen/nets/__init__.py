"""Networks: `net(x, cond)`, conditions by name, time as it is told in `cond["t"]`."""

from .attention import SelfAttention
from .autoencoder import Decoder, Encoder
from .causal import CausalTransformer
from .conv import Downsample, ResidualBlock, Upsample
from .critic import Critic, PatchCritic
from .dcgan import DCGANBody, DCGANGenerator
from .dit import DiT
from .embed import ClassEmbedding, Sinusoidal, TimeEmbedding, drop
from .masked import MADE
from .mlp import MLP
from .patch import Patched
from .r3gan import R3GANBody, R3GANGenerator
from .resnet import Reader, ResNet, SpeedNet
from .spectral import spectrally_normalised
from .transformer import Attention, Block, CrossAttention, FeedForward
from .translate import TranslationResNet, TranslationUNet
from .unet import UNet
from .vgg import VGG16

__all__ = [
    "MADE",
    "MLP",
    "VGG16",
    "Attention",
    "Block",
    "CausalTransformer",
    "ClassEmbedding",
    "Critic",
    "CrossAttention",
    "DCGANBody",
    "DCGANGenerator",
    "Decoder",
    "DiT",
    "Downsample",
    "Encoder",
    "FeedForward",
    "PatchCritic",
    "Patched",
    "R3GANBody",
    "R3GANGenerator",
    "Reader",
    "ResNet",
    "ResidualBlock",
    "SelfAttention",
    "Sinusoidal",
    "SpeedNet",
    "TimeEmbedding",
    "TranslationResNet",
    "TranslationUNet",
    "UNet",
    "Upsample",
    "drop",
    "spectrally_normalised",
]
