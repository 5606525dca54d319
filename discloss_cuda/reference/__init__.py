"""Plain PyTorch, to be read beside the papers and to check the compiled ops against."""

from .loss import discriminative_loss, discriminative_loss_packed, kept, slot_terms

__all__ = ["discriminative_loss", "discriminative_loss_packed", "kept", "slot_terms"]
