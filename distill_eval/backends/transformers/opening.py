"""Decides, by trying it, whether a loaded model can be read raggedly."""

from typing import Any

import torch

from distill_eval.backends.transformers import model as loading
from distill_eval.backends.transformers import padded
from distill_eval.backends.transformers.ragged import RaggedModel, Unreadable
from distill_eval.backends.transformers.slots import make_slots
from distill_eval.checkpoints.architectures import first_line

# Root mean square of the difference between logits read raggedly and plainly, relative to the logits' own. Rounding
# makes less than a tenth of this; a token that sees what it should not, or does not see what it should, much more.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def open_ragged(model: Any) -> tuple[RaggedModel | None, str]:
    """Return the model for ragged reading; or None and why not."""
    try:
        ragged = RaggedModel(model)
        ragged.find_head()
        difference = _difference(ragged)
    except Exception as error:
        if loading.is_out_of_memory(error):
            raise
        return None, str(error) if isinstance(
            error, Unreadable
        ) else f"{type(error).__name__}: {first_line(error)}"
    if not difference <= TOLERANCES.get(model.dtype, 0.0):
        return None, f"its logits differ by {difference:.2g} of their size when its cache is shared"
    return ragged, ""


@torch.inference_mode()
def _difference(ragged: RaggedModel) -> float:
    """Read three short made-up texts, two with a common beginning, step by step at their ends, and plainly."""
    size = min(ragged.config.vocab_size, ragged.model.get_input_embeddings().weight.shape[0])
    made = [(7919 * index + 13) % size for index in range(1, 23)]
    common, others = made[:6], (made[6:11], made[11:14], made[14:22])
    texts = [common + others[0], common + others[1], others[2]]
    logits, _ = padded.forward_rows(ragged.model, texts)
    plain = torch.stack([logits[row, len(text) - 3 : len(text)] for row, text in enumerate(texts)])
    (start,), _ = ragged.read([(None, common)], [])
    jobs = [(start, others[0][:-2]), (start, others[1][:-2]), (None, others[2][:-2])]
    ends = torch.tensor([len(own) for _, own in jobs]).cumsum(0) - 1
    segments, output = ragged.read(jobs, ends.tolist())
    found = [ragged.logits(output)]
    slots = make_slots(ragged, len(texts), max(map(len, texts)))
    slots.insert(segments)
    for place in (-2, -1):
        tokens = torch.tensor([text[place] for text in texts], device=ragged.device)
        found.append(slots.forward(tokens))
    plain, read = plain.float(), torch.stack(found, dim=1).float()
    return float(
        (read - plain).pow(2).mean().sqrt() / (plain - plain.mean(-1, keepdim=True)).pow(2).mean().sqrt()
    )
