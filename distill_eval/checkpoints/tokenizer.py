"""Loading a checkpoint's tokenizer."""

from pathlib import Path
from typing import Any

from distill_eval.checkpoints.architectures import first_line
from distill_eval.errors import CheckpointError
from distill_eval.schema.checkpoints import Checkpoint


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer of a resolved checkpoint; it always has a padding token (else the end token)."""
    return load_folder_tokenizer(checkpoint.folder, checkpoint.label, checkpoint.trust_remote_code)


def load_folder_tokenizer(folder: Path, label: str, trust_remote_code: bool) -> Any:
    """Load the tokenizer in ``folder``; CheckpointError when it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(
            f"checkpoint '{label}': its tokenizer cannot be loaded: {first_line(error)} ({folder})"
        ) from error
    if tokenizer.pad_token is None:
        # Padding is masked everywhere, so any known token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def read_chat_template(tokenizer: Any) -> str | None:
    """The checkpoint's own chat template; of several named ones the one called "default"."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
