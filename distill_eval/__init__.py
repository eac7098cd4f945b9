"""distill-eval: what log-likelihood says, what generation says, and the gap between them."""

__version__ = "0.1.0"
