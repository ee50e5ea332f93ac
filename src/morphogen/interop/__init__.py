"""Other libraries' checkpoints, read and written."""

from .checkpoint import Pretrained, read, write

__all__ = ["Pretrained", "read", "write"]
