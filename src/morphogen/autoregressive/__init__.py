"""Autoregressive models: a law of discrete data, symbol by symbol."""

from .autoregressive import Autoregressive

__all__ = ["Autoregressive"]
