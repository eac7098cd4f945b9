"""distill: train the hybrid linear-attention students that distill-eval measures."""

from distill_eval import __version__

__all__ = ["__version__"]
