"""Parity probes: is the checkpoint the same model on every path its tokens can take?"""

from distill_eval.probes.run import MOST_FLOAT32_GIB, run_probes

__all__ = ["MOST_FLOAT32_GIB", "run_probes"]
