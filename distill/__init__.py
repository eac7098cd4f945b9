"""distill: train the hybrid linear-attention students that distill-eval measures."""
