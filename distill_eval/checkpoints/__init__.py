"""From the name of a checkpoint to an ordinary local Hugging Face folder, checked before any model loads."""

from distill_eval.checkpoints.architectures import register_architecture
from distill_eval.checkpoints.demo import DEMOS
from distill_eval.checkpoints.resolve import parse_name, resolve_checkpoint
from distill_eval.checkpoints.tokenizer import load_tokenizer

__all__ = ["DEMOS", "load_tokenizer", "parse_name", "register_architecture", "resolve_checkpoint"]
