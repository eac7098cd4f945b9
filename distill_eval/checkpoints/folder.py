"""Reading a checkpoint's folder: what can be wrong with it is found here, before any model loads."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill_eval.checkpoints.architectures import first_line, register_architecture
from distill_eval.checkpoints.fingerprint import files_fingerprint, tokenizer_fingerprint
from distill_eval.checkpoints.tokenizer import load_folder_tokenizer, read_chat_template
from distill_eval.checkpoints.weights import check_weights, embedding_rows, find_weights, weights_dtype
from distill_eval.errors import CheckpointError
from distill_eval.schema.checkpoints import Checkpoint

# Any of these lets a tokenizer be built.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
# Everything beside the weights that can change a prompt, a token or where generation ends.
DESCRIBING = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    *VOCABULARIES,
)
# Import names of what models of other architectures are often built on, and the packages that bring them.
PACKAGES = {
    "fla": "flash-linear-attention",
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
    "flash_attn": "flash-attn",
}


def read_folder(
    folder: Path,
    *,
    label: str,
    name: str,
    source: str,
    cache_dir: Path,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """Check the folder and describe it; every fault is a CheckpointError of one line."""
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint '{label}': '{folder}' is not a folder")
    settings = read_config(folder)
    weight_files, indexes = find_weights(folder)
    tensors = check_weights(weight_files)
    if not any(True for pattern in VOCABULARIES for _ in folder.glob(pattern)):
        raise CheckpointError(
            f"no tokenizer in '{folder}': expected tokenizer.json or another vocabulary file"
        )
    check_architecture(settings, folder, label=label, trust_remote_code=trust_remote_code)
    text = settings.get("text_config")  # where models with images keep the language model's settings
    text = text if isinstance(text, dict) else {}
    rows = _check_vocabulary(
        settings.get("vocab_size", text.get("vocab_size")), embedding_rows(tensors), folder
    )
    tokenizer = load_folder_tokenizer(folder, label, trust_remote_code)
    last = max(tokenizer.get_vocab().values())
    if last >= rows:
        raise CheckpointError(
            f"checkpoint '{label}': wrong tokenizer: its token ids go up to {last} and the model's embedding "
            f"has {rows} rows ({folder})"
        )
    files = [*weight_files, *indexes]
    files += [path for pattern in DESCRIBING for path in folder.glob(pattern)]
    if trust_remote_code:
        files += folder.glob("*.py")
    return Checkpoint(
        label=label,
        name=name,
        source=source,
        folder=folder,
        fingerprint=files_fingerprint(dict.fromkeys(files), cache_dir),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        model_type=settings["model_type"],
        vocab_size=rows,
        max_positions=max_positions(settings),
        dtype=_dtype(settings, text) or weights_dtype(tensors) or "float32",
        chat_template=read_chat_template(tokenizer),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of ``folder`` as a dict that has a model_type."""
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"'{folder}' holds an adapter, not a whole model: merge it into its base model first"
            )
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        hint = f"; name the GGUF file itself: {folder / ggufs[0]}" if ggufs else ""
        raise CheckpointError(f"no config.json in '{folder}': not a checkpoint folder{hint}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not valid JSON: {first_line(error)}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise CheckpointError(f"'{path}' has no model_type: not the config of a language model")
    return settings


def check_architecture(
    settings: dict[str, Any], folder: Path, *, label: str, trust_remote_code: bool
) -> None:
    """Raise CheckpointError unless transformers (or a plug-in, or trusted code) can build the model."""
    from transformers import AutoConfig
    from transformers import __version__ as version
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    model_type = settings["model_type"]
    register_architecture(model_type)
    known = model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING
    if not known and not (trust_remote_code and settings.get("auto_map")):
        if settings.get("auto_map"):
            raise CheckpointError(
                f"checkpoint '{label}': model_type '{model_type}' needs the Python code that comes with it "
                f"({', '.join(remote_files(settings))}), which runs only if you trust it: "
                f"--trust-remote-code {label} ({folder})"
            )
        if model_type in CONFIG_MAPPING:
            raise CheckpointError(
                f"checkpoint '{label}': model_type '{model_type}' is not a causal language model ({folder})"
            )
        raise CheckpointError(
            f"checkpoint '{label}': unknown model_type '{model_type}': neither transformers {version} nor an "
            f"installed package has it ({folder / 'config.json'})"
        )
    if not known:
        _check_imports(settings, folder, label)
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint '{label}': bad config: {first_line(error)} ({folder / 'config.json'})"
        ) from error


def remote_files(settings: dict[str, Any]) -> list[str]:
    """Return the Python files that a config's ``auto_map`` names for config and model."""
    named = settings["auto_map"] if isinstance(settings["auto_map"], dict) else {}
    targets = [named.get(name) for name in ("AutoConfig", "AutoModelForCausalLM")]
    modules = [target.split("--")[-1].partition(".")[0] for target in targets if isinstance(target, str)]
    return [f"{module}.py" for module in dict.fromkeys(modules)]


def _check_imports(settings: dict[str, Any], folder: Path, label: str) -> None:
    """Raise CheckpointError where trusted code imports a package that is not installed."""
    from transformers.dynamic_module_utils import get_imports

    for file in remote_files(settings):
        try:
            imported = get_imports(folder / file)
        except (OSError, SyntaxError):  # what is wrong with the file itself is said by who loads it
            continue
        missing = [name for name in imported if find_spec(name) is None]
        if missing:
            packages = " ".join(PACKAGES.get(name, name) for name in missing)
            raise CheckpointError(
                f"checkpoint '{label}': {folder / file} imports {', '.join(missing)}, which is not installed: "
                f"pip install {packages}"
            )


def _check_vocabulary(declared: Any, rows: int | None, folder: Path) -> int:
    if rows is None and not isinstance(declared, int):
        raise CheckpointError(f"'{folder / 'config.json'}' has no vocab_size")
    if rows is not None and isinstance(declared, int) and rows != declared:
        raise CheckpointError(
            f"'{folder}': config.json says vocab_size {declared} and the weights' embedding has {rows} rows"
        )
    return rows if rows is not None else declared


def max_positions(settings: dict[str, Any]) -> int | None:
    """Return the longest text that a config.json says the model is made for."""
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length"):
        for where in (settings, settings.get("text_config")):
            if isinstance(where, dict) and isinstance(where.get(key), int) and where[key] > 0:
                return where[key]
    return None


def _dtype(settings: dict[str, Any], text: dict[str, Any]) -> str | None:
    for where in (settings, text):
        for key in ("dtype", "torch_dtype"):
            if isinstance(where.get(key), str):
                return where[key].removeprefix("torch.")
    return None
