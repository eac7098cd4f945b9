"""How near a student is to its teacher on text that neither is trained on."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from distill.data.batch import Batch
from distill.hybrid import HybridForCausalLM
from distill.losses import distillation_loss
from distill.packing import PACKED_SDPA
from distill.recipe import LossRecipe
from distill.stages import layer_arguments


def last_states(model: Any, batch: Batch) -> torch.Tensor:
    """Return the hidden states [N, d] that the head of a student or a Llama, Qwen2 or Qwen3 model reads."""
    if isinstance(model, HybridForCausalLM):
        return model.model(input_ids=batch.input_ids, cu_seqlens=batch.cu_seqlens).last_hidden_state[0]
    if model.config._attn_implementation == "sdpa":
        model.config._attn_implementation = PACKED_SDPA
    states = model.model.embed_tokens(batch.input_ids)
    arguments = layer_arguments(model.model, states, batch)
    for layer in model.model.layers:
        states = layer(states, **arguments)
    return model.model.norm(states)[0]


@torch.no_grad()
def measure(
    student: Any, teacher: Any, batches: Sequence[Batch], accelerator: Accelerator | None = None
) -> dict[str, float]:
    """Return ``kl`` (teacher || student, nats), ``perplexity`` and ``teacher_perplexity`` a supervised token.

    Ordinary models of one dtype on the batches' device. With an ``accelerator`` each process gives its own batches,
    maybe none, and all get the numbers of all.
    """
    both, own = LossRecipe(objective="kl", ce_weight=1.0), LossRecipe(objective="sft")
    device = next(student.parameters()).device
    sums: Any = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches:
        hidden, teacher_hidden = (last_states(model, batch)[batch.rows] for model in (student, teacher))
        heads = student.lm_head.weight, teacher.lm_head.weight
        targets = batch.targets[batch.rows]
        losses = distillation_loss(hidden, heads[0], teacher_hidden, heads[1], targets, both)
        teacher_losses = distillation_loss(teacher_hidden, heads[1], None, None, targets, own)
        count = torch.tensor(float(batch.num_supervised), device=device)
        sums += torch.stack([losses.kl, losses.ce, teacher_losses.total, count]).double()
    if accelerator is not None:
        sums = accelerator.reduce(sums, "sum")
    kl, ce, teacher_ce, count = sums.tolist()
    return {
        "kl": kl / max(count, 1),
        "perplexity": math.exp(min(ce / max(count, 1), 700)),
        "teacher_perplexity": math.exp(min(teacher_ce / max(count, 1), 700)),
    }
