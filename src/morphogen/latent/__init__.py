"""Latent-variable models, and the tools of the latent space."""

from .latent import Latent

__all__ = ["Latent"]
