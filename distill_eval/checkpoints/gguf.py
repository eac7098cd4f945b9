"""GGUF files, dequantised once into an ordinary folder."""

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distill_eval import __version__
from distill_eval.checkpoints.architectures import first_line
from distill_eval.checkpoints.build import build_once, unwritable
from distill_eval.checkpoints.fingerprint import file_digests
from distill_eval.errors import CheckpointError

# Raise it when what the conversion writes changes, so that folders made before are not used again.
CONVERTER = 1
PROVENANCE = "provenance.json"
# GGUF names its splitting rule and transformers ignores most of them; these part every digit from its
# neighbours before the usual byte-level splitting.
DIGIT_SPLITTERS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def convert_gguf(path: Path, *, cache_dir: Path, on_progress: Callable[[str], None]) -> Path:
    """Return the folder ``path`` was dequantised into, converting it now if nobody has (bfloat16 weights).

    Raises CheckpointError for a file that is no GGUF, is cut short or that transformers cannot read.
    """
    check_magic(path)
    digest = file_digests([path], cache_dir)[path]
    target = converted_folder(digest, cache_dir)

    def build(folder: Path) -> None:
        on_progress(f"{path.name}: dequantising (once)")
        dequantise(path, folder, source={"gguf": path.name, "gguf_sha256": digest})

    return build_once(target, build)


def converted_folder(gguf_sha256: str, cache_dir: Path) -> Path:
    """Where the folder made from a GGUF file of this SHA-256 lives."""
    key = hashlib.sha256(f"gguf {CONVERTER} {gguf_sha256}".encode()).hexdigest()
    return cache_dir / "checkpoints" / key[:32]


def check_magic(path: Path) -> None:
    """Raise CheckpointError unless the file starts as GGUF files do."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"'{path}' is not a GGUF file: it starts with {magic!r}, not b'GGUF'")


def dequantise(path: Path, folder: Path, *, source: dict[str, str]) -> None:
    """Write config, bfloat16 weights, tokenizer and chat template of a GGUF file into ``folder``."""
    fields = _read_fields(path)
    # A folder of its own: transformers would take config or tokenizer files beside the GGUF for the model's.
    alone = folder / "source"
    alone.mkdir()
    link = alone / "model.gguf"
    link.symlink_to(path.resolve())
    try:
        with _quiet():
            _convert(link, folder, fields)
    except Exception as error:
        if isinstance(error, MemoryError) or unwritable(error):
            raise
        raise CheckpointError(f"'{path}' cannot be dequantised: {first_line(error)}") from error
    finally:
        link.unlink()
        alone.rmdir()
    write_provenance(folder, {"made": "dequantised from GGUF to bfloat16", **source})


def write_provenance(folder: Path, content: dict[str, Any]) -> None:
    """Say in ``folder`` how it was made; not part of its fingerprint."""
    import transformers

    content = {**content, "distill_eval": __version__, "transformers": transformers.__version__}
    (folder / PROVENANCE).write_text(json.dumps(content, indent=2) + "\n")


def _convert(link: Path, folder: Path, fields: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(link.parent, gguf_file=link.name)
    _repair(tokenizer, fields)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    quantised = AutoModelForCausalLM.from_pretrained(link.parent, gguf_file=link.name, dtype=torch.float32)
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        settings.pop(key, None)
    settings |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in quantised.state_dict().items()}
    del quantised
    # A fresh model, because the loaded one still calls itself quantised and refuses to be saved; on the meta
    # device, because random weights that are replaced at once would take longer than everything else.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_end_tokens(tokenizer, fields),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _end_tokens(tokenizer: Any, fields: dict[str, Any]) -> int | list[int] | None:
    ends = [tokenizer.eos_token_id, fields.get("tokenizer.ggml.eot_token_id")]
    ends = list(dict.fromkeys(int(end) for end in ends if end is not None))
    return ends[0] if len(ends) == 1 else ends or None


def _repair(tokenizer: Any, fields: dict[str, Any]) -> None:
    """Undo in place what transformers makes of a GGUF's tokenizer that the file does not say."""
    from tokenizers import Tokenizer, pre_tokenizers

    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    # It adds tokens usual elsewhere, such as <|endoftext|>, with ids that the embedding does not have.
    added = [token for token in whole["added_tokens"] if token["id"] < fields["num_tokens"]]
    if len(added) < len(whole["added_tokens"]):
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps({**whole, "added_tokens": added}))
    # Some releases take the end of a turn for the end of the text, and others drop the padding token.
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = fields.get(f"tokenizer.ggml.{key}_token_id")
        token = None if index is None else tokenizer.convert_ids_to_tokens(int(index))
        setattr(tokenizer, f"{name}_token", token)
    tokenizer.clean_up_tokenization_spaces = (
        False  # true in some releases: it drops spaces before punctuation
    )
    if fields.get("tokenizer.ggml.pre") in DIGIT_SPLITTERS:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _read_fields(path: Path) -> dict[str, Any]:
    """The short metadata of a GGUF file; reading it also shows whether every tensor is there."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.endswith("_token_id") or name in ("tokenizer.ggml.pre", "split.count")
        }
        fields["num_tokens"] = len(reader.fields["tokenizer.ggml.tokens"].data)
    except KeyError as error:
        raise CheckpointError(f"'{path}' holds no tokenizer: it has no {first_line(error)}") from error
    except Exception as error:
        raise CheckpointError(
            f"'{path}' is damaged or cut short ({first_line(error)}); download it again"
        ) from error
    if fields.get("split.count", 1) > 1:
        raise CheckpointError(
            f"'{path}' is one part of a split GGUF; merge the parts first (llama-gguf-split --merge)"
        )
    return fields


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notes off the screen; what goes wrong is raised anyway."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
