"""Checkpoints on the Hugging Face hub, fetched into its own cache."""

from pathlib import Path

from distill_eval.checkpoints.architectures import first_line
from distill_eval.errors import CheckpointError

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
SAFETENSORS = ["*.safetensors"]
PICKLES = ["pytorch_model*.bin"]
# Copies of the weights in other formats, which some repositories keep beside the usual ones.
UNNEEDED = ["*/*", "consolidated*", "*.onnx", "*.gguf", "README*", "LICENSE*"]


def fetch_snapshot(repo: str, revision: str | None, *, trust_remote_code: bool) -> tuple[Path, str]:
    """Fetch the files evaluation needs; return the snapshot's folder and its commit.

    Raises CheckpointError for a repository or revision that does not exist, is gated or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    small = [*SMALL_FILES, *(["*.py"] if trust_remote_code else [])]

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=UNNEEDED)
        )

    try:
        folder = fetch([*small, *SAFETENSORS])
        if not any(folder.glob("*.safetensors")):
            folder = fetch([*small, *PICKLES])
    except Exception as error:
        raise CheckpointError(_explain(repo, revision, error)) from error
    return folder, folder.name


def _explain(repo: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    name = f"{repo}@{revision}" if revision else repo
    if isinstance(error, errors.GatedRepoError):
        return f"'{name}' is gated: accept its terms on huggingface.co/{repo}, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no folder '{name}' here and no such model on the hub (or it is private: run `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{repo}' has no revision '{revision}' on the hub"
    if isinstance(error, errors.HFValidationError):
        return f"'{name}' is neither a folder here nor a hub id: {first_line(error)}"
    unreachable = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if isinstance(error, unreachable) or type(error).__module__.startswith(("httpx", "requests", "httpcore")):
        option = f" --revision {revision}" if revision else ""
        return (
            f"no folder '{name}' here, and as a hub id it is not in the local cache and the hub cannot be "
            f"reached; where there is a network run `hf download {repo}{option}`, "
            "unset HF_HUB_OFFLINE, or give a local folder"
        )
    return f"'{name}' cannot be fetched from the hub: {type(error).__name__}: {first_line(error)}"
