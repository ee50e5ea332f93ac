"""Diffusion, score models and flow matching: path ∘ parametrisation ∘ solver (see each file's head)."""
