"""What eager code does in several passes over memory, in one: norm, rotary embedding, cutting into heads; CUDA only."""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportMissingImports=false

import torch
import triton
import triton.language as tl

# Elements a program works on at a time.
TILE = 4096


@triton.jit
def _norm_forward(x, weight, y, scales, num_rows, eps, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    rows, columns = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR), tl.arange(0, BD)
    mask = (rows[:, None] < num_rows) & (columns[None, :] < D)
    place = rows[:, None] * D + columns[None, :]
    b_x = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    b_w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(b_x * b_x, 1) / D + eps)
    tl.store(scales + rows, scale, mask=rows < num_rows)
    tl.store(y + place, (b_x * scale[:, None] * b_w[None, :]).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _norm_backward(
    x, weight, scales, dy, dx, dweight, num_rows, steps,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, HAS_WEIGHT: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BD)
    b_w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)
    found = tl.zeros([BD], tl.float32)
    for step in range(steps):
        rows = (tl.program_id(0).to(tl.int64) * steps + step) * BR + tl.arange(0, BR)
        mask = (rows[:, None] < num_rows) & (columns[None, :] < D)
        place = rows[:, None] * D + columns[None, :]
        b_x = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        b_dy = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
        b_n = b_x * tl.load(scales + rows, mask=rows < num_rows, other=0.0)[:, None]
        b_g = b_dy * b_w[None, :]
        b_dx = b_g - b_n * (tl.sum(b_g * b_n, 1) / D)[:, None]
        b_dx *= tl.load(scales + rows, mask=rows < num_rows, other=0.0)[:, None]
        tl.store(dx + place, b_dx.to(dx.dtype.element_ty), mask=mask)
        if HAS_WEIGHT:
            found += tl.sum(b_dy * b_n, 0)
    if HAS_WEIGHT:
        tl.store(dweight + tl.program_id(0) * D + columns, found, mask=columns < D)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        x = x.contiguous()
        D = x.shape[-1]
        num_rows = x.numel() // D
        y, scales = torch.empty_like(x), x.new_empty(num_rows, dtype=torch.float32)
        BD = triton.next_power_of_2(D)
        BR = max(1, TILE // BD)
        _norm_forward[(triton.cdiv(num_rows, BR),)](
            x, weight, y, scales, num_rows, eps, D=D, BR=BR, BD=BD, num_warps=4
        )
        ctx.save_for_backward(x, weight, scales)
        return y

    @staticmethod
    def backward(ctx, *gradients):
        x, weight, scales = ctx.saved_tensors
        dy = gradients[0].contiguous()
        D, num_rows = x.shape[-1], scales.shape[0]
        BD = triton.next_power_of_2(D)
        BR = max(1, TILE // BD)
        blocks = triton.cdiv(num_rows, BR)
        steps = triton.cdiv(
            blocks, 1024
        )  # as many programs as keep a GPU busy, so that few partial sums remain
        programs = triton.cdiv(blocks, steps)
        wanted = ctx.needs_input_grad[1]
        dx, dweight = torch.empty_like(x), x.new_empty(programs, D, dtype=torch.float32) if wanted else None
        _norm_backward[(programs,)](
            x,
            weight,
            scales,
            dy,
            dx,
            dweight,
            num_rows,
            steps,
            D=D,
            BR=BR,
            BD=BD,
            HAS_WEIGHT=wanted,
            num_warps=4,
        )
        return dx, None if dweight is None else dweight.sum(0).to(weight.dtype), None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last dimension of x [..., D], in float32, rounded once to x's dtype."""
    return _Norm.apply(x, weight, eps)  # type: ignore[return-value]


@triton.jit
def _rotate(
    x, cos, sin, y, H: tl.constexpr, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, SIGN: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    heads, lower = tl.arange(0, BH), tl.arange(0, BD)
    there = lower < D // 2
    mask = (heads[:, None] < H) & there[None, :]
    c = tl.load(cos + token * D + lower, mask=there, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + token * D + lower, mask=there, other=0.0).to(tl.float32)[None, :] * SIGN
    place = token * H * D + heads[:, None] * D + lower[None, :]
    a = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + place + D // 2, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + place, (a * c - b * s).to(y.dtype.element_ty), mask=mask)
    tl.store(y + place + D // 2, (b * c + a * s).to(y.dtype.element_ty), mask=mask)


def _launch_rotation(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    num_tokens, H, D = x.shape
    sizes = {"H": H, "D": D, "BH": triton.next_power_of_2(H), "BD": triton.next_power_of_2(D // 2)}
    _rotate[(num_tokens,)](x, cos, sin, y, **sizes, SIGN=sign, num_warps=4)
    return y


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _launch_rotation(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, *gradients):
        return _launch_rotation(gradients[0], *ctx.saved_tensors, -1), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [N, H, D] by the angles whose cos and sin are [N, D], the same in both halves of D."""
    return _Rotation.apply(x, cos.contiguous(), sin.contiguous())  # type: ignore[return-value]


@triton.jit
def _spread(
    joined, part, start, width, H: tl.constexpr, REPEATS: tl.constexpr, D: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Heads H of one part of a token in ``joined`` [N, width], to REPEATS copies each in ``part``; BACK: their sum."""
    token = tl.program_id(0).to(tl.int64)
    heads, columns = tl.arange(0, BH), tl.arange(0, BD)
    mask = (heads[:, None] < H) & (columns[None, :] < D)
    here = joined + token * width + start + heads[:, None] * D + columns[None, :]
    there = part + token * (H * REPEATS * D) + heads[:, None] * (REPEATS * D) + columns[None, :]
    if BACK:
        found = tl.zeros([BH, BD], tl.float32)
        for copy in tl.static_range(REPEATS):
            found += tl.load(there + copy * D, mask=mask, other=0.0).to(tl.float32)
        tl.store(here, found.to(joined.dtype.element_ty), mask=mask)
    else:
        values = tl.load(here, mask=mask, other=0.0)
        for copy in tl.static_range(REPEATS):
            tl.store(there + copy * D, values, mask=mask)


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, joined, num_heads, parts):
        joined = joined.contiguous()
        ctx.num_heads, ctx.parts, ctx.shape = num_heads, parts, joined.shape
        outputs = [joined.new_empty(*joined.shape[:-1], num_heads, dim) for _, dim in parts]
        _run_spread(joined, outputs, num_heads, parts, back=False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *gradients):
        joined = gradients[0].new_empty(ctx.shape)
        _run_spread(
            joined, [gradient.contiguous() for gradient in gradients], ctx.num_heads, ctx.parts, back=True
        )
        return joined, None, None


def _run_spread(joined, outputs, num_heads, parts, *, back: bool) -> None:
    start, width = 0, joined.shape[-1]
    for output, (H, D) in zip(outputs, parts, strict=True):
        sizes = {"H": H, "REPEATS": num_heads // H, "D": D}
        blocks = {"BH": triton.next_power_of_2(H), "BD": triton.next_power_of_2(D)}
        _spread[(joined.numel() // width,)](
            joined, output, start, width, **sizes, **blocks, BACK=back, num_warps=4
        )
        start += H * D


def split_heads(
    joined: torch.Tensor, num_heads: int, parts: tuple[tuple[int, int], ...]
) -> tuple[torch.Tensor, ...]:
    """Cut ``joined`` [B, T, sum(h * d)] into parts of (h, d), each repeated to [B, T, num_heads, d] as GQA does."""
    return _Heads.apply(joined, num_heads, parts)  # type: ignore[return-value]
