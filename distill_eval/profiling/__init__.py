"""Speed and memory of checkpoints: time to first token, decoding, caches, throughput to out of memory."""
