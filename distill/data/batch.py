"""What the data hands to a stage: packed rows with the borders of their documents."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch

from distill.ops.documents import keep_on_host


@dataclass(frozen=True)
class Batch:
    """A micro-batch of R rows of T tokens, laid end to end as one row of N = R * T tokens.

    Rows are borders too: no document goes on from one into the next. With ``isolate_documents: false`` only rows are.
    A row with less than T tokens is padded at its end by a document of its own that nothing supervises.
    """

    input_ids: torch.Tensor  # [1, N] int64
    cu_seqlens: torch.Tensor  # [D + 1] int32: where documents start, and N
    supervised: torch.Tensor  # [N] bool: this position's prediction of the next token counts
    longest: int  # tokens of the longest document, known without asking the device
    num_rows: int
    num_supervised: int
    num_tokens: int  # without padding
    row_tokens: tuple[int, ...] = ()  # the same of each row; empty: all padding is at the batch's end

    @cached_property
    def rows(self) -> torch.Tensor:
        """The positions that count, [num_supervised]."""
        return self.supervised.nonzero()[:, 0]

    @property
    def targets(self) -> torch.Tensor:
        """The token after each, [N]; what stands where nothing is supervised means nothing."""
        return self.input_ids[0].roll(-1)

    def sum_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of ``values`` [1, N] over the positions that are no padding."""
        if self.num_tokens == values.shape[1] or not self.row_tokens:
            return values[:, : self.num_tokens].sum()
        rows = values.unflatten(1, (self.num_rows, -1))[0]
        return torch.stack(
            [row[:count].sum() for row, count in zip(rows, self.row_tokens, strict=True)]
        ).sum()

    def to(self, device: torch.device | str) -> "Batch":
        """Return it on another device; what the host must know of it stays known there."""
        moved = dataclasses.replace(
            self,
            input_ids=_send(self.input_ids, device),
            cu_seqlens=_send(self.cu_seqlens, device),
            supervised=_send(self.supervised, device),
        )
        moved.__dict__["rows"] = _send(self.rows, device)
        keep_on_host(moved.cu_seqlens, self.cu_seqlens)
        return moved


def _send(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy without waiting for what the device is doing."""
    if torch.device(device).type == "cuda" and not x.is_cuda:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
