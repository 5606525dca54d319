"""Fused discriminative loss for instance embeddings, for CPU and CUDA tensors."""

from . import reference
from ._ops import DiscriminativeLossFunction
from .functional import discriminative_loss, discriminative_loss_packed
from .module import DiscriminativeLoss
from .terms import DiscriminativeLossTerms

__version__ = "0.1.0"

__all__ = [
    "DiscriminativeLoss",
    "DiscriminativeLossFunction",
    "DiscriminativeLossTerms",
    "discriminative_loss",
    "discriminative_loss_packed",
    "reference",
]
