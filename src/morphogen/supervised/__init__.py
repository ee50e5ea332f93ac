"""Models that read: the classifier, and how it serves as judge, feature extractor and guide."""

from .classifier import Classifier

__all__ = ["Classifier"]
