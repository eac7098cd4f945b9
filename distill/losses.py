"""Stage 3's objectives from hidden states and heads; of the logits there is never more than a chunk of rows.

A row is one supervised position: masks are applied by gathering rows before. A chunk's logits are float32 and its
gradient is worked out at once, so that the backward pass only scales. Divergences KL(p || q) are summed as
p * (exp(x) - 1 - x), x = log q - log p, which is the same sum (probabilities add up to one) in terms that are all
positive: it neither cancels where the models nearly agree nor ever falls below zero.
"""

import math
from typing import NamedTuple

import torch

from distill.recipe import LossRecipe
from distill_eval.errors import ConfigError, OptionError

# What a chunk's float32 logits of both models take, by kind of device.
CHUNK_BYTES = {"cuda": 3 << 29, "cpu": 1 << 26}

# Up to this |x|, exp(x) - 1 - x is its Taylor series, x**2 * sum(TAYLOR[k] * x**k).
NEAR = 0.5
TAYLOR = tuple(1 / math.factorial(k) for k in range(2, 9))
# Where log q - log p is more than this, p adds nothing in float32, but infinity times zero would.
FAR = 80.0


class Losses(NamedTuple):
    """Float32 sums over rows; only ``total`` is differentiable."""

    total: torch.Tensor
    kl: torch.Tensor  # the objective without its cross-entropy, whichever divergence it is; 0 for "sft"
    ce: torch.Tensor  # 0 where nothing uses it


def distillation_loss(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor,
    teacher_hidden: torch.Tensor | None,
    teacher_head: torch.Tensor | None,
    targets: torch.Tensor | None,
    recipe: LossRecipe,
    *,
    chunk_bytes: int | None = None,
) -> Losses:
    """Return the objective over M rows (M may be 0: zero, with zero gradients).

    ``student_hidden`` [M, d], ``student_head`` [V, d], ``teacher_hidden`` [M, d2], ``teacher_head`` [V, d2] (both None
    for "sft"), ``targets`` [M] token ids (only read where there is cross-entropy). Gradients go to the student's two.
    Logits are products in the hidden states' dtype with float32 sums (wholly float32 off CUDA); a head in another
    dtype is rounded to it, and its gradient, summed in float32, comes back in its own.

    With s and t the softmax of the student's and the teacher's logits / temperature, and m = beta * t + (1 - beta) * s:
    "kl" is KL(t || s), "reverse_kl" KL(s || t), "jsd" beta * KL(t || m) + (1 - beta) * KL(s || m) (the generalised
    Jensen-Shannon divergence of arXiv 2306.13649), each times temperature**2; ce_weight times the cross-entropy at
    temperature 1 comes on top. "sft" is the cross-entropy alone. ``top_k`` keeps the teacher's K largest logits.
    ``chunk_bytes`` replaces CHUNK_BYTES.

    Raises OptionError for a recipe that has no finite value and ConfigError for vocabularies of unequal size.
    """
    teacher = None if recipe.objective == "sft" else (teacher_hidden, teacher_head)
    _check(student_head, teacher, targets, recipe)
    wanted = tuple(torch.is_grad_enabled() and x.requires_grad for x in (student_hidden, student_head))
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(student_hidden.device.type, CHUNK_BYTES["cpu"])
    return Losses(
        *_Chunked.apply(student_hidden, student_head, teacher, targets, recipe, wanted, chunk_bytes)  # type: ignore[misc]
    )


def _check(student_head, teacher, targets, recipe: LossRecipe) -> None:
    objective, beta = recipe.objective, recipe.jsd_beta
    if objective == "reverse_kl" and recipe.top_k is not None:
        raise OptionError(
            "loss: top_k with objective 'reverse_kl' is infinite; use 'kl' or 'jsd', or no top_k"
        )
    if objective == "jsd" and not 0 < beta < 1:
        raise OptionError(f"loss: jsd_beta must be between 0 and 1, got {beta}; use 'kl' or 'reverse_kl'")
    if teacher and teacher[1].shape[0] != student_head.shape[0]:
        sizes = (
            f"{student_head.shape[0]} tokens in the student's head, {teacher[1].shape[0]} in the teacher's"
        )
        raise ConfigError(f"loss: the vocabularies differ ({sizes}); logits are compared token by token")
    if targets is None and (objective == "sft" or recipe.ce_weight):
        raise OptionError("loss: cross-entropy needs targets")


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, teacher, targets, recipe, wanted, chunk_bytes):
        num_rows, device = hidden.shape[0], hidden.device
        wants_hidden, wants_head = wanted
        weights = [_operand(head, hidden)]
        if teacher:
            weights.append(_operand(teacher[1], teacher[0]))
        kl, ce = torch.zeros(2, num_rows, dtype=torch.float32, device=device)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_head = torch.zeros_like(head, dtype=torch.float32) if wants_head else None
        step = _chunk_rows(num_rows, head.shape[0], recipe, hidden.is_cuda, chunk_bytes)
        buffer = weights[0].new_empty(min(step, num_rows), head.shape[0]) if any(wanted) else None
        for start in range(0, num_rows, step):
            rows = slice(start, start + step)
            inputs = [
                x[rows].to(w.dtype) for x, w in zip((hidden, *(teacher or ())[:1]), weights, strict=True)
            ]
            gradient = None if buffer is None else buffer[: len(inputs[0])]
            chunk_targets = None if targets is None else targets[rows]
            _run_chunk(inputs, weights, chunk_targets, recipe, kl[rows], ce[rows], gradient)
            if gradient is not None and d_hidden is not None:
                d_hidden[rows] = _product(gradient, weights[0])
            if gradient is not None and d_head is not None:
                d_head += _product(gradient.T, inputs[0])
        ctx.save_for_backward(d_hidden, None if d_head is None else d_head.to(head.dtype))
        kl, ce = kl.sum(), ce.sum()
        ctx.mark_non_differentiable(kl, ce)
        total = ce.clone() if recipe.objective == "sft" else kl + recipe.ce_weight * ce
        return total, kl, ce

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale, *_):  # type: ignore[override]
        scaled = (None if x is None else x * scale for x in ctx.saved_tensors)
        return *scaled, None, None, None, None, None


def _chunk_rows(num_rows: int, vocabulary: int, recipe: LossRecipe, on_cuda: bool, chunk_bytes: int) -> int:
    """Rows a chunk, all chunks about equal: the head is read anew for each."""
    if on_cuda and recipe.objective != "kl":
        chunk_bytes //= 4  # plain torch holds several tensors of the logits' size
    most = max(1, chunk_bytes // (8 * vocabulary))
    return max(1, math.ceil(num_rows / max(1, math.ceil(num_rows / most))))


def _operand(head: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    head = head.detach().to(hidden.dtype)
    return head if hidden.is_cuda else head.float()


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product in float32: bfloat16 logits would be wrong by more than a small divergence."""
    return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


def _run_chunk(inputs, weights, targets, recipe: LossRecipe, kl, ce, gradient) -> None:
    """Fill ``kl`` and ``ce`` [R] and, unless it is None, ``gradient`` [R, V] of the total for the student's logits."""
    student, *teacher = (_product(x, w.T) for x, w in zip(inputs, weights, strict=True))
    if teacher and recipe.top_k is not None and recipe.top_k < student.shape[1]:
        values, tokens = teacher[0].topk(recipe.top_k, dim=1, sorted=False)
        teacher[0].fill_(-torch.inf).scatter_(1, tokens, values)
    if recipe.objective == "kl" and _has_kernel(student):
        from distill.ops.kl import forward_kl

        forward_kl(student, teacher[0], targets, recipe.temperature, recipe.ce_weight, kl, ce, gradient)
        return
    ce_weight = 1.0 if recipe.objective == "sft" else recipe.ce_weight
    gradients = []
    if teacher:
        terms, divergence_gradient = _divergence(student, teacher[0], recipe)
        kl.copy_(terms.sum(1)).mul_(recipe.temperature**2)
        gradients.append(divergence_gradient.mul_(recipe.temperature))
    if ce_weight:
        largest, total, probabilities = _softmax(student)
        ce.copy_((largest + total.log() - student.gather(1, targets[:, None]))[:, 0])
        probabilities.scatter_add_(1, targets[:, None], torch.full_like(total, -1.0))
        gradients.append(probabilities.mul_(ce_weight))
    if gradient is not None:
        gradient.copy_(sum(gradients))


def _has_kernel(logits: torch.Tensor) -> bool:
    return logits.is_cuda


def _softmax(
    logits: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row's largest logit, its sum of exponentials relative to that, and its probabilities."""
    largest = logits.amax(1, keepdim=True)
    exponentials = (logits - largest).div_(temperature).exp_()
    total = exponentials.sum(1, keepdim=True)
    return largest, total, exponentials.div_(total)


def _divergence(student: torch.Tensor, teacher: torch.Tensor, recipe: LossRecipe):
    """The terms [R, V] of the divergence at ``recipe.temperature`` and its gradient for student logits so scaled."""
    largest_s, total_s, s = _softmax(student, recipe.temperature)
    largest_t, total_t, t = _softmax(teacher, recipe.temperature)
    # log s - log t from differences: each log-probability alone is rounded by far more than nearby ones differ.
    ratio = (total_s.double() / total_t.double()).log().float()
    delta = (student - teacher).sub_(largest_s - largest_t).div_(recipe.temperature).sub_(ratio)
    if recipe.objective == "kl":
        terms = _kl_terms(t, s, delta)
        slope = torch.where(delta < NEAR, t * delta.clamp(max=NEAR).expm1_(), s - t)
        # It adds up to zero but for delta's own rounding, which is the same for a whole row.
        return terms, slope - s * slope.sum(1, keepdim=True)
    if recipe.objective == "reverse_kl":
        terms, slope = _kl_terms(s, t, -delta), delta
    else:
        beta = recipe.jsd_beta
        delta = delta.clamp_(-FAR, FAR)
        mixture = beta * t + (1 - beta) * s
        over_t = ((1 - beta) * delta.expm1()).log1p_()  # log mixture - log t
        over_s = (beta * (-delta).expm1_()).log1p_()
        terms = beta * _kl_terms(t, mixture, over_t) + (1 - beta) * _kl_terms(s, mixture, over_s)
        slope = (beta - 1) * over_s
    # Through the softmax: slope is the derivative for s, up to a constant.
    return terms, s * (slope - (s * slope).sum(1, keepdim=True))


def _kl_terms(p: torch.Tensor, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """p * (exp(x) - 1 - x) for x = log q - log p, also where p is 0: never negative, in sum KL(p || q)."""
    x = x.clamp(max=FAR)
    series = torch.full_like(x, TAYLOR[-1])
    for coefficient in reversed(TAYLOR[:-1]):
        series.mul_(x).add_(coefficient)
    near = series.mul_(x).mul_(x).mul_(p)
    return torch.where(x.abs() < NEAR, near, (q - p - p * x).clamp_(min=0))
