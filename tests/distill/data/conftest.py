"""A tiny tokenizer, and files of made-up documents."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TINY_CHAT_TEMPLATE, TINY_SENTENCES


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A maker of byte-level BPE tokenizers with a chat template: ``make_tokenizer(template)``."""

    def make(template: str | None = TINY_CHAT_TEMPLATE, **changes: Any) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        bpe.post_processor = processors.ByteLevel(trim_offsets=changes.pop("trim_offsets", False))
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|pad|>", "<|turn|>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(TINY_SENTENCES, trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, pad_token="<|pad|>", **{"eos_token": "<|end|>"} | changes
        )
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    """Of the plain template, in which a turn ends with a special token and a newline."""
    return make_tokenizer()


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., str]:
    """A maker of JSONL files: ``write_lines("a.jsonl", rows)`` -> its path."""

    def write(name: str, rows: Iterable[Any]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return str(path)

    return write


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stand in for the hub: ``hub(rows)`` is what every name there then loads, in three shards when streamed."""
    import datasets

    def put(rows: list[dict[str, Any]]) -> None:
        def load(*_: Any, streaming: bool, **__: Any) -> Any:
            dataset = datasets.Dataset.from_list(rows)
            return dataset.to_iterable_dataset(num_shards=3) if streaming else dataset

        monkeypatch.setattr(datasets, "load_dataset", load)

    return put


def texts(num: int, seed: int = 0, longest: int = 60) -> list[dict[str, str]]:
    """Documents of different lengths, no two alike."""
    rng = np.random.default_rng(seed)
    return [
        {"text": f"{seed}-{i}: " + " ".join(rng.choice(["fox", "rain", "clock", "é", "7"], n))}
        for i, n in enumerate(rng.integers(1, longest, num))
    ]


def chats(num: int, seed: int = 0, longest: int = 30) -> list[dict[str, Any]]:
    """Chats of one to three questions."""
    rng = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(rng.choice(["fox", "rain", "clock", "é", "7"], rng.integers(1, longest)))

    return [
        {
            "messages": [
                {"role": role, "content": f"{seed}-{i} {words()}"}
                for _ in range(rng.integers(1, 4))
                for role in ("user", "assistant")
            ]
        }
        for i in range(num)
    ]
