"""Count the bytes of tensors alive inside a block of code, on any device, without the allocator's help."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# They hand on a storage that was made where no dispatch mode can see it, as in torch.tensor([1, 2]).
_ENTRANCES = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}


class LiveTensors(TorchDispatchMode):
    """``with LiveTensors() as tensors: ...`` counts what the operations in the block allocate and free.

    ``live_bytes`` is what they made and still exists, ``peak_bytes`` the most there ever was of it at once. Storages
    count once however many views they have; those from before the block do not count. Not seen: what a kernel
    allocates and frees inside itself, and other threads. Not for compiled code, flex attention included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[
            int, tuple[int, weakref.ref]
        ] = {}  # address of a storage's implementation -> bytes, it
        self._basic: set[Any] = set()  # operations that are not made of others

    def reset_peak(self) -> None:
        """Forget the peak: count it anew from what is alive now."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode composite operations arrive whole and would hide what they allocate on the way.
        if func not in self._basic:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            self._basic.add(func)
        result = func(*args, **kwargs)
        given = set() if func in _ENTRANCES else {_address(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            if _address(tensor) not in given:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return
        self._alive[address] = size, weakref.ref(storage, lambda _: self._free(address))
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _free(self, address: int) -> None:
        size, _ = self._alive.pop(address)
        self.live_bytes -= size


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments or results: these come alone, in lists, tuples and dicts."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(part)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
