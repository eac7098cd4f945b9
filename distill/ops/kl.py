"""Forward KL of rows of logits as a Triton kernel, value and gradient together; imported on the first CUDA tensor."""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

# Eight logits a thread of each model: 71 registers on sm_90, so three programs a multiprocessor.
BLOCK = 2048
NUM_WARPS = 8


def forward_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor | None,
    temperature: float,
    ce_weight: float,
    kl: torch.Tensor,
    ce: torch.Tensor,
    gradient: torch.Tensor | None,
) -> None:
    """Fill ``kl`` and ``ce`` [R] and, unless it is None, ``gradient`` [R, V] for the student's logits.

    ``student`` and ``teacher`` [R, V] are contiguous float32 logits (-inf where the teacher gives no probability),
    ``targets`` [R] token ids, read only where ``ce_weight`` is not 0. ``kl`` is temperature**2 * KL(teacher || student)
    at that temperature, ``ce`` the cross-entropy at temperature 1, ``gradient`` that of kl + ce_weight * ce.
    """
    num_rows, vocabulary = student.shape
    _forward_kl[(num_rows,)](  # pyright: ignore[reportIndexIssue]
        student,
        teacher,
        targets,
        kl,
        ce,
        gradient,
        vocabulary,
        temperature,
        ce_weight,
        HAS_CE=ce_weight != 0,
        HAS_GRADIENT=gradient is not None,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )


@triton.jit
def _add(largest, total, x, scale):
    """Take ``x`` into running maxima and sums of exp((x - maximum) * scale), lane by lane."""
    above = x > largest
    weight = tl.exp(-tl.abs(x - largest) * scale)
    total = tl.where(above, total * weight + 1.0, total + weight)
    return tl.where(above, x, largest), total


@triton.jit
def _forward_kl(
    student,
    teacher,
    targets,
    kl,
    ce,
    gradient,
    V,
    temperature,
    ce_weight,
    HAS_CE: tl.constexpr,
    HAS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    first = row.to(tl.int64) * V
    lanes = tl.arange(0, BLOCK)
    num_blocks = tl.cdiv(V, BLOCK)
    scale = 1.0 / temperature

    # Finite, so that lanes that never saw a logit, or only -inf, make no NaN.
    largest_s = tl.full([BLOCK], -1e30, tl.float32)
    largest_t = tl.full([BLOCK], -1e30, tl.float32)
    total_s = tl.zeros([BLOCK], tl.float32)
    total_t = tl.zeros([BLOCK], tl.float32)
    total_1 = tl.zeros([BLOCK], tl.float32)
    for block in range(num_blocks):
        at = block * BLOCK + lanes
        s = tl.load(student + first + at, mask=at < V, other=float("-inf"))
        t = tl.load(teacher + first + at, mask=at < V, other=float("-inf"))
        if HAS_CE:
            _, total_1 = _add(largest_s, total_1, s, 1.0)
        largest_s, total_s = _add(largest_s, total_s, s, scale)
        largest_t, total_t = _add(largest_t, total_t, t, scale)
    top_s = tl.max(largest_s, 0)
    top_t = tl.max(largest_t, 0)
    sum_s = tl.sum(total_s * tl.exp((largest_s - top_s) * scale), 0)
    sum_t = tl.sum(total_t * tl.exp((largest_t - top_t) * scale), 0)
    # log s - log t from differences: each log-probability alone is rounded by far more than nearby ones differ.
    shift = (top_s - top_t) * scale + tl.log(sum_s.to(tl.float64) / sum_t.to(tl.float64)).to(tl.float32)
    per_s = 1.0 / sum_s
    per_t = 1.0 / sum_t
    per_1 = per_s
    target = 0
    if HAS_CE:
        sum_1 = tl.sum(total_1 * tl.exp(largest_s - top_s), 0)
        target = tl.load(targets + row)
        at_target = tl.load(student + first + target)
        per_1 = 1.0 / sum_1
        tl.store(ce + row, top_s - at_target + tl.log(sum_1.to(tl.float64)).to(tl.float32))

    found = tl.zeros([BLOCK], tl.float32)
    for block in range(num_blocks):
        at = (
            num_blocks - 1 - block
        ) * BLOCK + lanes  # backwards: what was read last is still in the L2 cache
        s = tl.load(student + first + at, mask=at < V, other=float("-inf"))
        t = tl.load(teacher + first + at, mask=at < V, other=float("-inf"))
        p_s = tl.exp((s - top_s) * scale) * per_s
        p_t = tl.exp((t - top_t) * scale) * per_t
        x = (s - t) * scale - shift
        near = tl.abs(x) < 0.5
        # exp(x) - 1 - x: as in distill.losses, a series near 0 (its TAYLOR) and a plain difference elsewhere.
        series = 2.4801587e-05 * x + 1.9841270e-04
        series = series * x + 1.3888889e-03
        series = series * x + 8.3333333e-03
        series = series * x + 4.1666667e-02
        series = series * x + 1.6666667e-01
        series = (series * x + 0.5) * x * x
        rest = p_s - p_t - tl.where(p_t > 0, p_t * x, 0.0)
        rest = tl.where(rest < 0, 0.0, rest)  # unlike a maximum, keeps NaN
        found += tl.where(near, p_t * series, rest)
        if HAS_GRADIENT:
            slope = tl.where(near, p_t * (x + series), p_s - p_t) * temperature
            if HAS_CE:
                p_1 = tl.exp(s - top_s) * per_1
                slope += ce_weight * (p_1 - tl.where(at == target, 1.0, 0.0))
            tl.store(gradient + first + at, slope.to(gradient.dtype.element_ty), mask=at < V)
    tl.store(kl + row, tl.sum(found, 0) * temperature * temperature)
