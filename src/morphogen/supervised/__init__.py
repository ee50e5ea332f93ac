"""Models that read: the classifier, its augmentations, and how it serves as judge, feature extractor and guide."""

from .augment import Augmentation, Flip, Shift, Warp
from .classifier import Classifier

__all__ = ["Augmentation", "Classifier", "Flip", "Shift", "Warp"]
