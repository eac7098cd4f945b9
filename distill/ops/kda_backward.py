"""One kernel of KDA's backward pass, faster than fla's and put in its place through fla's own registry of backends.

Within a chunk of 64 tokens, fla goes through each block of 16 one token at a time where gates are unbounded, because
exp(g_i - g_j) cannot be split into exp(g_i) * exp(-g_j): the second factor overflows. Here the block is halved again
and again instead. A pair (i, j) that a halving separates has a token r between the two, and then
exp(g_i - g_r) * exp(g_r - g_j) are two factors of at most one, whatever the gates. So each of the four halvings is a
matrix product with a mask, on the tensor cores, and the result is exact for every gate.

Notation (fla's): g is the decay's logarithm to base 2, summed from the chunk's start; dAqk, dAkk [BT, BT] are the
gradients of the scores q k^T and beta k k^T with their decays.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportMissingImports=false

from typing import Any

import torch
import triton
import triton.language as tl
from fla.backends import BaseBackend, register
from fla.ops.utils import prepare_chunk_indices

BLOCK = 16


@triton.jit
def _decay(x):
    return tl.exp2(tl.minimum(x, 0.0))  # what a mask drops must not overflow either


@triton.jit
def _load(x, rows, columns, stride, mask):
    return tl.load(x + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T"])
def _within_chunks(
    q, k, g, beta, dAqk, dAkk,
    dq, dk, dg, dq_out, dk_out, dg_out, db_out,
    cu_seqlens, chunk_indices, T, total_tokens,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Block ``i_c`` of a chunk, ``BK`` channels of a head: add what arises within the chunk to dq, dk, dg."""
    blocks: tl.constexpr = BT // BC
    i_k, i_c = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_t, i_bh = tl.program_id(1), tl.program_id(2)
    i_b, i_hv = i_bh // HV, i_bh % HV
    i_h = i_hv // (HV // H)
    if PACKED:
        i_n = tl.load(chunk_indices + i_t * 2).to(tl.int32)
        i_t = tl.load(chunk_indices + i_t * 2 + 1).to(tl.int32)
        first = tl.load(cu_seqlens + i_n).to(tl.int64)
        T = (tl.load(cu_seqlens + i_n + 1) - first).to(tl.int32)
    else:
        first = i_b.to(tl.int64) * T
    start = i_t * BT
    here = start + i_c * BC
    if here >= T:
        return

    o_k = i_k * BK + tl.arange(0, BK)
    o_i = tl.arange(0, BC)
    rows = here + o_i
    inside = rows < T
    in_k = o_k < K
    mask = inside[:, None] & in_k[None, :]
    q += (first * H + i_h) * K
    k += (first * H + i_h) * K
    g += (first * HV + i_hv) * K
    beta += first * HV + i_hv
    dAqk += (first * HV + i_hv) * BT
    dAkk += (first * HV + i_hv) * BT
    shift = (first * HV + i_hv) * K

    b_q = _load(q, rows, o_k, H * K, mask)
    b_k = _load(k, rows, o_k, H * K, mask)
    b_g = _load(g, rows, o_k, HV * K, mask)
    b_beta = tl.load(beta + rows * HV, mask=inside, other=0.0).to(tl.float32)
    b_kb = b_k * b_beta[:, None]
    to_q = tl.zeros([BC, BK], dtype=tl.float32)  # of the queries
    to_k = tl.zeros([BC, BK], dtype=tl.float32)  # of the keys as rows i of k k^T, without beta
    to_t = tl.zeros([BC, BK], dtype=tl.float32)  # of the keys as columns j

    # Earlier blocks: this block's first token stands between.
    if i_c > 0:
        b_r = tl.load(g + here * HV * K + o_k, mask=in_k, other=0.0).to(tl.float32)[None, :]
        for i_j in range(0, i_c):
            others = start + i_j * BC + o_i
            both = (others < T)[:, None] & in_k[None, :]
            b_kj = _load(k, others, o_k, H * K, both)
            b_kj *= _decay(b_r - _load(g, others, o_k, HV * K, both))
            b_dAqk = _load(dAqk, rows, i_j * BC + o_i, HV * BT, inside[:, None])
            b_dAkk = _load(dAkk, rows, i_j * BC + o_i, HV * BT, inside[:, None])
            to_q = tl.dot(b_dAqk, b_kj, to_q, input_precision=PRECISION)
            to_k = tl.dot(b_dAkk, b_kj, to_k, input_precision=PRECISION)
        b_e = _decay(b_g - b_r)
        to_q *= b_e
        to_k *= b_e

    # Later blocks: this block's last token stands between.
    ends = tl.minimum(blocks, tl.cdiv(T - start, BC))
    if i_c < ends - 1:
        b_r = tl.load(g + (here + BC - 1) * HV * K + o_k, mask=in_k, other=0.0).to(tl.float32)[None, :]
        for i_j in range(i_c + 1, ends):
            others = start + i_j * BC + o_i
            is_there = others < T
            both = is_there[:, None] & in_k[None, :]
            b_e = _decay(_load(g, others, o_k, HV * K, both) - b_r)
            b_qj = _load(q, others, o_k, H * K, both) * b_e
            b_betaj = tl.load(beta + others * HV, mask=is_there, other=0.0).to(tl.float32)
            b_kj = _load(k, others, o_k, H * K, both) * b_betaj[:, None] * b_e
            b_dAqk = _load(dAqk, others, i_c * BC + o_i, HV * BT, is_there[:, None])
            b_dAkk = _load(dAkk, others, i_c * BC + o_i, HV * BT, is_there[:, None])
            to_t = tl.dot(tl.trans(b_dAqk), b_qj, to_t, input_precision=PRECISION)
            to_t = tl.dot(tl.trans(b_dAkk), b_kj, to_t, input_precision=PRECISION)
        to_t *= _decay(b_r - b_g)

    # The block itself: tokens with themselves, then four halvings.
    b_dAqk = _load(dAqk, rows, i_c * BC + o_i, HV * BT, inside[:, None])
    b_dAkk = _load(dAkk, rows, i_c * BC + o_i, HV * BT, inside[:, None])
    same = o_i[:, None] == o_i[None, :]
    own_qk = tl.sum(tl.where(same, b_dAqk, 0.0), 1)[:, None]
    own_kk = tl.sum(tl.where(same, b_dAkk, 0.0), 1)[:, None]
    to_q += own_qk * b_k
    to_k += own_kk * b_k
    to_t += own_qk * b_q + own_kk * b_kb
    for level in tl.static_range(4):
        half = BC >> (level + 1)
        # The first token of the upper half, for every token of a pair of halves.
        between = here + (o_i // (2 * half)) * (2 * half) + half
        b_r = _load(g, between, o_k, HV * K, (between < T)[:, None] & in_k[None, :])
        upper = (o_i // half) % 2 == 1
        pair = (o_i[:, None] // (2 * half)) == (o_i[None, :] // (2 * half))
        apart = pair & upper[:, None] & (upper[None, :] == 0)
        cut_qk = tl.where(apart, b_dAqk, 0.0)
        cut_kk = tl.where(apart, b_dAkk, 0.0)
        down = _decay(b_g - b_r)  # of the upper half
        up = _decay(b_r - b_g)  # of the lower half
        b_kj = b_k * up
        to_q += tl.dot(cut_qk, b_kj, input_precision=PRECISION) * down
        to_k += tl.dot(cut_kk, b_kj, input_precision=PRECISION) * down
        b_t = tl.dot(tl.trans(cut_qk), b_q * down, input_precision=PRECISION)
        b_t = tl.dot(tl.trans(cut_kk), b_kb * down, b_t, input_precision=PRECISION)
        to_t += b_t * up

    tl.store(
        db_out + (i_k.to(tl.int64) * total_tokens + first + rows) * HV + i_hv,
        tl.sum(to_k * b_k, 1),
        mask=inside,
    )
    to_k *= b_beta[:, None]
    place = shift + rows[:, None] * (HV * K) + o_k[None, :]
    b_dg = b_q * to_q + (to_k - to_t) * b_k + tl.load(dg + place, mask=mask, other=0.0)
    to_q += tl.load(dq + place, mask=mask, other=0.0)
    to_k += to_t + tl.load(dk + place, mask=mask, other=0.0)
    tl.store(dg_out + place, b_dg.to(dg_out.dtype.element_ty), mask=mask)
    tl.store(dq_out + place, to_q.to(dq_out.dtype.element_ty), mask=mask)
    tl.store(dk_out + place, to_k.to(dk_out.dtype.element_ty), mask=mask)


@register("kda")
class HalvingBackend(BaseBackend):
    """fla's seam for other implementations; called with fla's own arguments."""

    backend_type = "distill_eval"
    priority = 1

    def chunk_kda_bwd_intra_verifier(
        self, *, chunk_size=64, use_graph=False, **_: Any
    ) -> tuple[bool, str | None]:
        return (
            chunk_size % BLOCK == 0 and not use_graph,
            "chunks of other sizes and captured graphs are fla's",
        )

    def chunk_kda_bwd_intra(
        self, q, k, g, beta, dAqk, dAkk, dq, dk, db, dg,
        cu_seqlens=None, chunk_indices=None, chunk_size=64, **_: Any,
    ):  # fmt: skip
        """Return (dq, dk, db, dg) with what arises within chunks added; see fla.ops.kda.chunk_intra."""
        B, T, H, K, HV = *k.shape, g.shape[2]
        num_chunks = triton.cdiv(T, chunk_size)
        if cu_seqlens is not None:
            if chunk_indices is None:
                chunk_indices = prepare_chunk_indices(cu_seqlens, chunk_size)
            num_chunks = len(chunk_indices)
        BK = min(CHANNELS, triton.next_power_of_2(K))
        parts = triton.cdiv(K, BK)
        dq_out, dk_out, dg_out = torch.empty_like(dq), torch.empty_like(dk), torch.empty_like(dg)
        db_out = beta.new_empty(parts, *beta.shape, dtype=torch.float32)
        _within_chunks[(parts * chunk_size // BLOCK, num_chunks, B * HV)](
            q, k, g, beta, dAqk, dAkk, dq, dk, dg, dq_out, dk_out, dg_out, db_out,
            cu_seqlens, chunk_indices, T, B * T,
            H=H, HV=HV, K=K, BT=chunk_size, BC=BLOCK, BK=BK, PACKED=cu_seqlens is not None,
            PRECISION="tf32" if q.dtype != torch.float32 else "tf32x3",
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
        return dq_out, dk_out, db_out.sum(0).add_(db), dg_out


CHANNELS, WARPS, STAGES = 64, 2, 2  # the fastest of those tried on an H200
