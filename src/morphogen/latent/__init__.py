"""Latent-variable models, and the tools of the latent space."""

from __future__ import annotations

from .autoencoder import L1, Autoencoder, Contractive, Sparsity
from .hierarchical import Ladder, Rung
from .latent import Latent
from .likelihood import Bernoulli, Categorical, DiscretisedLogistic, Gaussian, Heteroscedastic
from .objective import ELBO, IWAE, InfoVAE
from .perceptual import Perceptual
from .posterior import Diagonal, Flowed
from .quantise import EMACodeBook, GradientCodeBook, Quantiser, ResidualVQ
from .scalar import FSQ, LFQ
from .vae import VAE
from .vq import VQVAE
from .vqgan import VQGAN, KLAutoencoder

__all__ = [
    "ELBO",
    "FSQ",
    "IWAE",
    "L1",
    "LFQ",
    "VAE",
    "VQGAN",
    "VQVAE",
    "Autoencoder",
    "Bernoulli",
    "Categorical",
    "Contractive",
    "Diagonal",
    "DiscretisedLogistic",
    "EMACodeBook",
    "Flowed",
    "Gaussian",
    "GradientCodeBook",
    "Heteroscedastic",
    "InfoVAE",
    "KLAutoencoder",
    "Ladder",
    "Latent",
    "Perceptual",
    "Quantiser",
    "ResidualVQ",
    "Rung",
    "Sparsity",
]
