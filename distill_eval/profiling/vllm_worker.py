"""What the profile asks of vLLM inside its worker process: sizes, caches and the peak of memory.

vLLM mixes ``ProfiledWorker`` into its own worker class (engine argument ``worker_extension_cls``); answers are plain
numbers, which is all that comes back from there without pickling.
"""

import copy
from pathlib import Path
from typing import Any

import torch

EXTENSION = f"{__name__}.ProfiledWorker"


class ProfiledWorker:
    """Methods for ``LLM.collective_rpc``. vLLM's worker has ``model_runner`` and ``vllm_config``."""

    model_runner: Any
    vllm_config: Any

    def distill_eval_model(self) -> dict[str, Any]:
        """Return the number of parameters, their bytes, and the names of the layers' attention backends.

        The vocabulary counts as vLLM lays it out, filled up to a multiple of 64.
        """
        parameters = list(self.model_runner.model.parameters())
        count = sum(weight.numel() for weight in parameters)
        size = sum(weight.numel() * weight.element_size() for weight in parameters)
        for (
            layer
        ) in self.model_runner.model.modules():  # on the CPU products' weights lie elsewhere, laid out anew
            if hasattr(layer, "input_size_per_partition") and not layer.weight.numel():
                moved = layer.input_size_per_partition * layer.output_size_per_partition
                count, size = count + moved, size + moved * layer.weight.element_size()
        layers = self.vllm_config.compilation_config.static_forward_context.values()
        backends = {
            layer.get_attn_backend().get_name() for layer in layers if hasattr(layer, "get_attn_backend")
        }
        return {
            "num_parameters": count,
            "weight_bytes": size,
            "attention": sorted(backends),
        }

    def distill_eval_cache(self, length: int) -> dict[str, int]:
        """Return what one sequence of ``length`` tokens takes up, and what there is.

        ``blocks`` of the ``free`` ones it needs; ``kv`` and ``state`` its bytes in whole pages, of attention and of
        recurrent layers; ``block_bytes`` all layers' share of one block; ``block_size`` tokens of an attention block.
        """
        cache = self.model_runner.kv_cache_config
        # Blocks by vLLM's own rule for its longest sequence, which sliding windows and states bound.
        config = copy.copy(self.vllm_config)
        config.model_config = copy.copy(config.model_config)
        config.model_config.max_model_len = length
        found = {"blocks": 0, "kv": 0, "state": 0, "block_size": 0}
        for group in cache.kv_cache_groups:
            spec = group.kv_cache_spec
            layers: list[Any] = list(getattr(spec, "kv_cache_specs", {}).values()) or [spec] * len(
                group.layer_names
            )
            blocks = -(-spec.max_memory_usage_bytes(config) // spec.page_size_bytes)
            found["blocks"] += blocks
            for layer in layers:
                recurrent = hasattr(layer, "shapes")  # a state's shapes; keys and values have heads instead
                found["state" if recurrent else "kv"] += blocks * layer.page_size_bytes
                if not recurrent:
                    found["block_size"] = layer.block_size
        total = sum(tensor.size for tensor in cache.kv_cache_tensors)
        # One block is never given to anybody.
        return found | {"free": cache.num_blocks - 1, "block_bytes": total // cache.num_blocks}

    def distill_eval_settle(self) -> None:
        """Return when the device has nothing left to do."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def distill_eval_reset_peak(self) -> None:
        """Forget the peak of memory there was."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def distill_eval_peak(self) -> tuple[int, int]:
        """Return the most bytes that were allocated and reserved; on the CPU the process's resident set for both."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak = int(status["VmHWM"].split()[0]) * 1024
        return peak, peak
