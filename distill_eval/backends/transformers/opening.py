"""Decides, by trying it, how a loaded model is read: raggedly, through its own cache, or every text by itself."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from distill_eval.backends.transformers import model as loading
from distill_eval.backends.transformers import padded
from distill_eval.backends.transformers.cached import CachedModel
from distill_eval.backends.transformers.flash_slots import make_slots
from distill_eval.backends.transformers.prefixes import Tokens
from distill_eval.backends.transformers.ragged import RaggedModel, Unreadable
from distill_eval.checkpoints.architectures import first_line

Model = TypeVar("Model", RaggedModel, CachedModel)

# Root mean square of the difference between logits read so and plainly, relative to the logits' own. Rounding
# makes less than a tenth of this; a token that sees what it should not, or does not see what it should, much more.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
SHARED, COMPARED = (
    6,
    3,
)  # tokens that two of the tried texts begin with, and positions compared at each one's end


def open_ragged(model: Any) -> tuple[RaggedModel | None, str]:
    """Return the model for ragged reading; or None and why not."""
    return _open(RaggedModel, model, _read_raggedly)


def open_cached(model: Any) -> tuple[CachedModel | None, str]:
    """Return the model for shared beginnings in its own cache; or None and why not."""
    return _open(CachedModel, model, _read_cached)


def _open(
    make: Callable[[Any], Model], model: Any, read: Callable[[Model, list[Tokens]], torch.Tensor]
) -> tuple[Model | None, str]:
    try:
        opened = make(model)
        texts = _texts(model)
        difference = _difference(_read_plainly(model, texts), read(opened, texts))
    except Exception as error:
        if loading.is_out_of_memory(error):
            raise
        return None, str(error) if isinstance(
            error, Unreadable
        ) else f"{type(error).__name__}: {first_line(error)}"
    if not difference <= TOLERANCES.get(model.dtype, 0.0):
        return None, f"its logits differ by {difference:.2g} of their size when its cache is shared"
    return opened, ""


def _texts(model: Any) -> list[Tokens]:
    """Return three short made-up texts, the first two with a common beginning."""
    size = min(model.config.get_text_config().vocab_size, model.get_input_embeddings().weight.shape[0])
    made = tuple((7919 * index + 13) % size for index in range(1, 23))
    common = made[:SHARED]
    return [common + made[6:11], common + made[11:14], made[14:22]]


def _read_plainly(model: Any, texts: list[Tokens]) -> torch.Tensor:
    logits, _ = padded.forward_rows(model, texts)
    return torch.stack([logits[row, len(text) - COMPARED : len(text)] for row, text in enumerate(texts)])


@torch.inference_mode()
def _read_raggedly(ragged: RaggedModel, texts: list[Tokens]) -> torch.Tensor:
    """Read the common beginning once, and step by step at the texts' ends."""
    (start,), _ = ragged.read([(None, texts[0][:SHARED])], [])
    jobs = [(start, text[SHARED : 1 - COMPARED]) for text in texts[:2]] + [(None, texts[2][: 1 - COMPARED])]
    ends = torch.tensor([len(own) for _, own in jobs]).cumsum(0) - 1
    segments, output = ragged.read(jobs, ends.tolist())
    found = [ragged.logits(output)]
    slots = make_slots(ragged, len(texts), max(map(len, texts)))
    slots.insert(segments)
    for place in range(1 - COMPARED, 0):
        tokens = torch.tensor([text[place] for text in texts], device=ragged.device)
        found.append(slots.forward(tokens))
    return torch.stack(found, dim=1)


@torch.inference_mode()
def _read_cached(cached: CachedModel, texts: list[Tokens]) -> torch.Tensor:
    """Read two beginnings of different lengths, then, on a copy first, what follows them."""
    cuts = [SHARED, SHARED, SHARED - 2]
    state = cached.begin([texts[0][:SHARED], texts[2][: SHARED - 2]])
    rests = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    cached.go_on(copy.deepcopy(state), [1, 0, 1], rests)
    logits = cached.logits(cached.go_on(state, [0, 0, 1], rests))
    return torch.stack([logits[row, len(rest) - COMPARED : len(rest)] for row, rest in enumerate(rests)])


def _difference(plain: torch.Tensor, read: torch.Tensor) -> float:
    plain, read = plain.float(), read.float()
    scale = (plain - plain.mean(-1, keepdim=True)).pow(2).mean().sqrt()
    return float((read - plain).pow(2).mean().sqrt() / scale)
