"""Training data: sources, chat masks, packing, mixing, and data that the teacher makes itself."""
