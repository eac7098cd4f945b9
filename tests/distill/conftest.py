"""Tiny random teachers of every supported kind, and students of them whose mixers do something."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from distill.ops.untuned import untune

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Wide, so that layers matter and greedy choices are clear.
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@pytest.fixture(scope="session", autouse=True)
def untuned_kernels() -> Iterator[None]:
    """Tuning is not what is tested."""
    if not torch.cuda.is_available():
        yield
        return
    undo = untune()
    yield
    undo()


# Which of the four layers keep attention.
SHAPES = {"hybrid": (1, 3), "pure": (), "linear_first": (2,)}


@pytest.fixture(scope="session")
def make_teacher() -> Callable[..., torch.nn.Module]:
    """A maker of tiny causal models: ``make_teacher("qwen3", seed=0, **config)``."""

    def make(kind: str = "llama", *, seed: int = 0, **changes: Any) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        extra = (
            {"head_dim": 12} if kind == "qwen3" else {}
        )  # as in Qwen3, heads * head_dim is not hidden_size
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES | extra | changes)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # transformers starts them at zero, which would hide a lost bias
                    parameter.normal_(0, 0.2)
        return model

    return make


@pytest.fixture(scope="session")
def make_student(make_teacher: Callable[..., torch.nn.Module]) -> Callable[..., Any]:
    """A maker of students with random mixers: ``make_student("kda", "hybrid", teacher="llama", **choices)``."""

    def make(
        mixer: str = "kda", shape: str = "hybrid", *, teacher: str = "llama", seed: int = 0, **choices: Any
    ):
        from distill.conversion import convert

        student = convert(make_teacher(teacher), attention_layers=SHAPES[shape], mixer=mixer, **choices)
        torch.manual_seed(seed + 1)
        with torch.no_grad():
            for layer, kind in zip(student.model.layers, student.config.layer_types, strict=True):
                if kind == "linear_attention":
                    for name, parameter in layer.self_attn.named_parameters():
                        if name not in ("A_log", "dt_bias"):
                            parameter.normal_(0, 0.3)
        return student

    return make


# float32 products run in TF32 inside the kernels.
CUDA_BARS = {torch.float32: 2e-2, torch.bfloat16: 8e-2}


@pytest.fixture
def make_pair(make_teacher):
    """A maker of the same student twice: in float32 on the CPU, holding ``dtype``'s values, and in it on CUDA."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("fla")

    def make(mixer: str, dtype: torch.dtype, shape: str = "linear_first"):
        from distill.conversion import convert

        sizes = {
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        teacher = make_teacher("qwen3", head_dim=64, initializer_range=0.08, **sizes)
        student = convert(teacher, attention_layers=SHAPES[shape], mixer=mixer).to(dtype)
        return copy.deepcopy(student).float(), student.cuda()

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [2, 70], none of them 0 (which generate() would take for padding)."""
    return torch.randint(1, SIZES["vocab_size"], (2, 70), generator=torch.Generator().manual_seed(0))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-9))
