"""What the data hands to a stage: packed rows with the borders of their documents."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """A micro-batch of R rows of T tokens, laid end to end as one row of N = R * T tokens.

    Rows are borders too: no document goes on from one into the next. With ``isolate_documents: false`` only rows are.
    Short data is padded at the end of the last row by a document of its own that nothing supervises.
    """

    input_ids: torch.Tensor  # [1, N] int64
    cu_seqlens: torch.Tensor  # [D + 1] int32: where documents start, and N
    supervised: torch.Tensor  # [N] bool: this position's prediction of the next token counts
    longest: int  # tokens of the longest document, known without asking the device
    num_rows: int
    num_supervised: int
    num_tokens: int  # without padding

    @property
    def targets(self) -> torch.Tensor:
        """The token after each, [N]; what stands where nothing is supervised means nothing."""
        return self.input_ids[0].roll(-1)

    def to(self, device: torch.device | str) -> "Batch":
        """Return it on another device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "cu_seqlens", "supervised")
        }
        return Batch(
            **moved,
            longest=self.longest,
            num_rows=self.num_rows,
            num_supervised=self.num_supervised,
            num_tokens=self.num_tokens,
        )
