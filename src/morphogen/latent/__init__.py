"""Latent-variable models, and the tools of the latent space."""

from __future__ import annotations

from .autoencoder import L1, Autoencoder, Contractive, Sparsity
from .hierarchical import Ladder, Rung
from .latent import Latent
from .likelihood import Bernoulli, Categorical, DiscretisedLogistic, Gaussian, Heteroscedastic
from .objective import ELBO, IWAE, InfoVAE
from .posterior import Diagonal, Flowed
from .vae import VAE

__all__ = [
    "ELBO",
    "IWAE",
    "L1",
    "VAE",
    "Autoencoder",
    "Bernoulli",
    "Categorical",
    "Contractive",
    "Diagonal",
    "DiscretisedLogistic",
    "Flowed",
    "Gaussian",
    "Heteroscedastic",
    "InfoVAE",
    "Ladder",
    "Latent",
    "Rung",
    "Sparsity",
]
