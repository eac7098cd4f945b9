"""A model a run can be made from, resolved to an ordinary local Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One resolved checkpoint.

    ``label`` names it in tables; ``name`` is what the user typed (without the label); ``source`` is
    ``"folder"``, ``"hub"``, ``"gguf"`` or ``"demo"``; ``folder`` holds config.json, weights and tokenizer.
    ``fingerprint`` (hex SHA-256) covers weights, config and tokenizer; ``tokenizer_fingerprint`` the
    tokenizer alone (vocabulary and merges), ``chat_template`` is the checkpoint's own or None.
    """

    label: str
    name: str
    source: str
    folder: Path
    fingerprint: str
    tokenizer_fingerprint: str
    model_type: str
    vocab_size: int
    max_positions: int | None
    dtype: str
    chat_template: str | None
    revision: str | None = None
    trust_remote_code: bool = False
