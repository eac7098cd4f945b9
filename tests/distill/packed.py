"""A small engine over packed rows, written for clearness: sequences' keys and values in lists, one by one."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "packed_test"


class Bystander(CacheLayerMixin):
    """An attention layer's place in the cache; the attention function keeps keys and values itself."""

    def update(self, key_states, value_states, *args, **kwargs):
        return key_states, value_states

    def lazy_initialization(self, key_states, value_states): ...

    def get_seq_length(self) -> int:
        raise NotImplementedError("every position is given")

    def get_mask_sizes(self, query_length):
        raise NotImplementedError("no mask is built")

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


class Engine:
    """Reads the next tokens of several sequences, packed in a row or one token each side by side."""

    def __init__(self, student: Any) -> None:
        self.student = student
        self.cache = Cache(layers=list(DynamicCache(config=student.config).layers))
        for layer in student.config.attention_layers:
            self.cache.layers[layer] = Bystander()
        self.past: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.read: list[int] = []  # tokens of every sequence
        self.lengths: list[int] = []  # of the pieces now read
        self.seen: dict[str, Any] = {}  # what the attention function was last given
        student.set_attn_implementation(ATTENTION)

    def prefill(self, pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Read the next tokens [1, T] of every sequence; return their logits [1, T, V]."""
        self.lengths = [piece.shape[1] for piece in pieces]
        self.read = self.read or [0] * len(pieces)
        device = self.student.device
        logits = self.student(
            torch.cat(list(pieces), dim=1),
            position_ids=torch.cat(
                [torch.arange(r, r + n) for r, n in zip(self.read, self.lengths, strict=True)]
            )[None].to(device),
            past_key_values=self.cache,
            use_cache=True,
            cu_seqlens=torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=device),
            ragged=self,
        ).logits
        self.read = [r + n for r, n in zip(self.read, self.lengths, strict=True)]
        return list(logits.split(self.lengths, dim=1))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one token [N, 1] of every sequence; return the logits [N, 1, V]."""
        self.lengths = []
        positions = torch.tensor(self.read, device=tokens.device)[:, None]
        self.read = [r + 1 for r in self.read]
        return self.student(tokens, position_ids=positions, past_key_values=self.cache, ragged=self).logits

    def select(self, rows: list[int]) -> None:
        """Go on with the sequences ``rows``; one may be named more than once."""
        for layer in self.cache.layers:
            if not isinstance(layer, Bystander):
                layer.batch_select_indices(torch.tensor(rows))
        self.past = {layer: [kept[row] for row in rows] for layer, kept in self.past.items()}
        self.read = [self.read[row] for row in rows]

    def attend(self, layer: int, query, key, value, scaling) -> torch.Tensor:
        def parts(x):
            return x.split(self.lengths, dim=2) if self.lengths else x.split(1)

        queries, keys, values = parts(query), parts(key), parts(value)
        if layer in self.past:
            before = self.past[layer]
            keys = [torch.cat((k, new), dim=2) for (k, _), new in zip(before, keys, strict=True)]
            values = [torch.cat((v, new), dim=2) for (_, v), new in zip(before, values, strict=True)]
        self.past[layer] = list(zip(keys, values, strict=True))
        outputs = []
        for q, k, v in zip(queries, keys, values, strict=True):
            T, S = q.shape[2], k.shape[2]
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
            out = F.scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=True)
            outputs.append(out.transpose(1, 2))
        return torch.cat(outputs, dim=1 if self.lengths else 0)


def packed_attention(module, query, key, value, attention_mask, scaling=None, ragged=None, **others):
    ragged.seen = {"attention_mask": attention_mask, **others}
    return ragged.attend(module.layer_idx, query, key, value, scaling), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)


PREFIXES = (40, 1, 9)
PARENTS = [2, 0, 0, 1, 2, 0]
PIECES = (1, 5, 33, 2, 17, 3)
NUM_STEPS = 2


def some_tokens(num: int, seed: int) -> torch.Tensor:
    return torch.randint(1, 97, (1, num), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read_in_parts(student: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Prefixes packed, then continued by several sequences each, packed, then by steps; tokens and logits of each."""
    engine = Engine(student)
    prefixes = [some_tokens(n, seed).to(student.device) for seed, n in enumerate(PREFIXES)]
    pieces = [some_tokens(n, 10 + seed).to(student.device) for seed, n in enumerate(PIECES)]
    steps = [some_tokens(len(PIECES), 20 + seed).T.to(student.device) for seed in range(NUM_STEPS)]
    of_prefixes = engine.prefill(prefixes)
    engine.select(PARENTS)
    of_pieces = engine.prefill(pieces)
    of_steps = [engine.step(step) for step in steps]

    def whole(of_prefixes, of_pieces, of_steps):
        return [
            torch.cat([of_prefixes[parent], of_pieces[row], *(s[row : row + 1] for s in of_steps)], dim=1)
            for row, parent in enumerate(PARENTS)
        ]

    return whole(prefixes, pieces, steps), whole(of_prefixes, of_pieces, of_steps)
