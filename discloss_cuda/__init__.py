"""Fused discriminative loss for instance embeddings, for CPU and CUDA tensors."""

from pathlib import Path

import torch

try:
    # Not `from . import`, whose error for a missing module speaks of a circular import.
    import discloss_cuda._C  # noqa: F401  (registers the ops)
except ImportError as error:
    raise ImportError(
        f"discloss_cuda: the compiled module in {Path(__file__).parent} cannot be imported beside "
        f"torch {torch.__version__}: {error}. In a checkout, build it (python setup.py build_ext "
        "--inplace) or run from another folder; after torch has changed, install discloss_cuda "
        "again."
    ) from error

from . import metrics, reference, tracking
from ._doors import DiscriminativeLossFunction
from .clustering import (
    Clusters,
    EmbeddingClustering,
    cluster_embeddings,
    cluster_embeddings_packed,
)
from .functional import discriminative_loss, discriminative_loss_packed
from .module import DiscriminativeLoss
from .terms import DiscriminativeLossTerms

__version__ = "0.1.0"

__all__ = [
    "Clusters",
    "DiscriminativeLoss",
    "DiscriminativeLossFunction",
    "DiscriminativeLossTerms",
    "EmbeddingClustering",
    "cluster_embeddings",
    "cluster_embeddings_packed",
    "discriminative_loss",
    "discriminative_loss_packed",
    "metrics",
    "reference",
    "tracking",
]
