"""A vLLM that isn't: schedules as vLLM does, with a clock of its own, and lays caches out as vLLM would."""

from types import SimpleNamespace
from typing import Any

from distill_eval.profiling.vllm_worker import ProfiledWorker

MODEL_LENGTH_LIMIT = "KV cache is needed, which is larger than the available KV cache memory"


class AttentionSpec:
    def __init__(self, block_size: int, page_size_bytes: int) -> None:
        self.block_size, self.page_size_bytes = block_size, page_size_bytes

    def max_memory_usage_bytes(self, config: Any) -> int:
        return -(-config.model_config.max_model_len // self.block_size) * self.page_size_bytes


class StateSpec:
    shapes = ((2, 4, 4),)
    block_size = 10**6

    def __init__(self, page_size_bytes: int) -> None:
        self.page_size_bytes = page_size_bytes

    def max_memory_usage_bytes(self, config: Any) -> int:
        return self.page_size_bytes


class Weight:
    def __init__(self, numel: int) -> None:
        self._numel = numel

    def numel(self) -> int:
        return self._numel

    def element_size(self) -> int:
        return 2


class StubLLM:
    """One step takes 1 s and 1 ms for each token in it. ``num_blocks`` and more come from ``settings``."""

    def __init__(self, settings: dict[str, Any], **arguments: Any) -> None:
        self.arguments, self.settings = arguments, settings
        settings["starts"].append(arguments)
        if arguments["max_model_len"] > settings["longest"]:
            raise ValueError(f"2.0 GiB {MODEL_LENGTH_LIMIT} (1.0 GiB)")
        self.llm_engine = self
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=arguments["max_model_len"], dtype="torch.bfloat16"),
            scheduler_config=SimpleNamespace(
                max_num_seqs=arguments.get("max_num_seqs", 8),
                max_num_batched_tokens=arguments.get("max_num_batched_tokens", 64),
            ),
            compilation_config=SimpleNamespace(
                cudagraph_mode=SimpleNamespace(name="NONE" if arguments["enforce_eager"] else "FULL"),
                static_forward_context={},
            ),
            device_config=SimpleNamespace(device_type="cuda"),
        )
        pages = SimpleNamespace(
            num_blocks=settings["num_blocks"],
            kv_cache_groups=[
                SimpleNamespace(layer_names=["0", "1"], kv_cache_spec=AttentionSpec(16, 1000)),
                *(
                    SimpleNamespace(layer_names=names, kv_cache_spec=StateSpec(1000))
                    for names in settings["state_layers"]
                ),
            ],
            kv_cache_tensors=[SimpleNamespace(size=1000 * settings["num_blocks"])] * 2,
        )
        moved = SimpleNamespace(weight=Weight(0), input_size_per_partition=3, output_size_per_partition=5)
        model = SimpleNamespace(parameters=lambda: [Weight(100), moved.weight], modules=lambda: [moved])
        self.worker = ProfiledWorker()
        self.worker.model_runner = SimpleNamespace(model=model, kv_cache_config=pages)
        self.worker.vllm_config = self.vllm_config
        self.engine_core = SimpleNamespace(
            resources=SimpleNamespace(engine_manager=SimpleNamespace(processes=[])), shutdown=self._shut_down
        )
        self.clock = 100.0
        self.waiting: list[Any] = []
        self.prompts: list[list[int]] = []

    def _shut_down(self) -> None:
        self.settings["ended"] += 1

    def collective_rpc(self, name: str, args: tuple[Any, ...] = ()) -> list[Any]:
        if name == "distill_eval_peak":
            return [self.settings["peak"]]
        if name == "distill_eval_reset_peak":
            return [None]
        return [getattr(self.worker, name)(*args)]

    def generate(self, prompts: list[dict[str, list[int]]], params: Any, use_tqdm: bool) -> None:
        if self.settings["error"]:
            raise self.settings["error"]
        self.prompts += [prompt["prompt_token_ids"] for prompt in prompts]

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any) -> None:
        ids = prompt["prompt_token_ids"]
        self.prompts.append(ids)
        metrics = SimpleNamespace(last_token_ts=0.0)
        self.waiting.append(
            SimpleNamespace(name=name, left=len(ids), params=params, drawn=0, metrics=metrics)
        )

    def abort_request(self, names: list[str]) -> None:
        self.waiting = [request for request in self.waiting if request.name not in names]

    def step(self) -> list[Any]:
        """Decode one token of each that has been read, then read in order with what is left of the step."""
        budget, outputs = self.vllm_config.scheduler_config.max_num_batched_tokens, []
        total = budget
        for request in self.waiting[: self.settings["at_a_time"]]:
            read = min(budget, max(1, request.left))
            budget -= read
            request.left -= read
            if read and request.left <= 0:
                outputs.append(request)
        self.clock += 1 + (total - budget) / 1000
        return [self._advance(request) for request in outputs]

    def _advance(self, request: Any) -> Any:
        request.drawn += 1
        request.metrics.last_token_ts = self.clock
        finished = request.drawn == request.params.max_tokens
        if finished:
            self.waiting.remove(request)
        completion = SimpleNamespace(token_ids=[1])
        return SimpleNamespace(
            request_id=request.name, finished=finished, outputs=[completion], metrics=request.metrics
        )
