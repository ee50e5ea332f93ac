"""Networks: `net(x, cond)`, conditions by name, time as it is told in `cond["t"]`."""

from .attention import SelfAttention
from .autoencoder import Decoder, Encoder
from .causal import CausalSequence, CausalTransformer
from .conv import Downsample, ResidualBlock, Upsample
from .critic import Critic, PatchCritic
from .dcgan import DCGANBody, DCGANGenerator
from .dilated import TCN, WaveNet
from .dit import DiT
from .eightbit import int8
from .embed import ClassEmbedding, Sinusoidal, TimeEmbedding, drop
from .encoder import EncoderDecoder, TransformerEncoder
from .masked import MADE
from .mlp import MLP
from .patch import Patched
from .positions import ALiBi, Rotary, Sinusoids, T5Relative
from .r3gan import R3GANBody, R3GANGenerator
from .recurrent import GRU, LSTM, RNN, Bidirectional
from .resnet import Reader, ResNet, SpeedNet
from .spectral import spectrally_normalised
from .transformer import LLAMA, Attention, Block, CrossAttention, Design, FeedForward
from .translate import TranslationResNet, TranslationUNet
from .unet import UNet
from .vgg import VGG16

__all__ = [
    "GRU",
    "LLAMA",
    "LSTM",
    "MADE",
    "MLP",
    "RNN",
    "TCN",
    "VGG16",
    "ALiBi",
    "Attention",
    "Bidirectional",
    "Block",
    "CausalSequence",
    "CausalTransformer",
    "ClassEmbedding",
    "Critic",
    "CrossAttention",
    "DCGANBody",
    "DCGANGenerator",
    "Decoder",
    "Design",
    "DiT",
    "Downsample",
    "Encoder",
    "EncoderDecoder",
    "FeedForward",
    "PatchCritic",
    "Patched",
    "R3GANBody",
    "R3GANGenerator",
    "Reader",
    "ResNet",
    "ResidualBlock",
    "Rotary",
    "SelfAttention",
    "Sinusoidal",
    "Sinusoids",
    "SpeedNet",
    "T5Relative",
    "TimeEmbedding",
    "TransformerEncoder",
    "TranslationResNet",
    "TranslationUNet",
    "UNet",
    "Upsample",
    "WaveNet",
    "drop",
    "int8",
    "spectrally_normalised",
]
