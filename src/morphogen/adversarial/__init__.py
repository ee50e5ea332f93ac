"""Models that learn from an opponent."""
