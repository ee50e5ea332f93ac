"""Latent-variable models, and the tools of the latent space."""
