"""Plain PyTorch, to be read beside the papers and to check the compiled ops against."""

from .clustering import cluster_embeddings, cluster_embeddings_packed
from .loss import discriminative_loss, discriminative_loss_packed, kept, slot_terms
from .pairwise import PairwiseTerms, pairwise_loss

__all__ = [
    "PairwiseTerms",
    "cluster_embeddings",
    "cluster_embeddings_packed",
    "discriminative_loss",
    "discriminative_loss_packed",
    "kept",
    "pairwise_loss",
    "slot_terms",
]
