"""Latent-variable models: autoencoders, variational autoencoders, code books, and priors in their latent space."""
