"""Reinforcement learning: from the Bellman equation to deep agents, on the one loop (docs/rl.md)."""

from __future__ import annotations
