"""Made data sets and a client with canned answers."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_eval.schema.requests import GenerateRequest, GenerateResponse


@pytest.fixture
def made_data(tmp_path: Path) -> Callable[..., Path]:
    """A maker of data sets in a mirror of one's own: ``made_data(id, {config: {split: rows}})`` -> the mirror."""

    def make(dataset_id: str, configs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Path:
        folder = tmp_path / "mirror" / dataset_id
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for config, splits in configs.items():
            files = []
            for split, rows in splits.items():
                # ``datasets`` keys its cache by folder name and front matter, not by content.
                name = f"{config}-{split}-{uuid.uuid4().hex[:8]}.jsonl"
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (folder / name).write_text(text, encoding="utf-8")
                files.append({"split": split, "path": name})
            entries.append({"config_name": config, "data_files": files})
        front_matter = json.dumps({"configs": entries})  # JSON is YAML
        (folder / "README.md").write_text(f"---\n{front_matter}\n---\n", encoding="utf-8")
        return tmp_path / "mirror"

    return make


class CannedClient:
    """What ``generative.score`` needs of a client; ``answers``: prompt token ids -> text."""

    def __init__(self, tokenizer: Any, max_length: int = 100_000, finish_reason: str = "stop") -> None:
        self.tokenizer, self.max_length, self.finish_reason = tokenizer, max_length, finish_reason
        self.checkpoint = SimpleNamespace(label="model", fingerprint="f" * 64)
        self.answers: dict[bytes, str] = {}

    def answer(self, requests: Sequence[GenerateRequest], texts: Sequence[str]) -> None:
        for request, text in zip(requests, texts, strict=True):
            self.answers[request.digest()] = text

    def lookup_generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateResponse | None]:
        return [self._response(self.answers.get(request.digest())) for request in requests]

    def _response(self, text: str | None) -> GenerateResponse | None:
        if text is None:
            return None
        tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return GenerateResponse(tokens, text, self.finish_reason, (1.0,) * len(tokens))


@pytest.fixture
def canned_client() -> type[CannedClient]:
    return CannedClient


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model_folder: Callable[..., Path]) -> Any:
    """A real tokenizer with a chat template, of a checkpoint too small to matter."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_folder())
