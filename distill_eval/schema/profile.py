"""What a profile measures: one checkpoint's speed and memory by context and batch, each beside what theory allows."""

import statistics
from dataclasses import dataclass, field

OK = "ok"
OUT_OF_MEMORY = "out of memory"
FAILED = "failed"
STATUSES = (OK, OUT_OF_MEMORY, FAILED)

NOISY_IQR = 0.10  # interquartile range over median above which a measurement is repeated, then marked


@dataclass(frozen=True, slots=True)
class Target:
    """What is profiled: a folder with config.json and, unless ``random_weights``, weights.

    ``preset``: the name of the preset or config whose architecture runs with random weights, else "". ``dtype``: the
    weights' own, "" for random ones.
    """

    label: str
    folder: str
    fingerprint: str
    model_type: str
    random_weights: bool = False
    preset: str = ""
    dtype: str = ""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """How everything of one profile is measured. Contexts in tokens; ``max_memory_gib`` stands for a smaller device.

    ``new_tokens``: decoded for one sample of the time per token. ``repeats``: timed samples, after ``warm_ups`` that
    are not counted. ``prefill_chunk``: tokens read at once (None: the engine's own choice). ``graphs``: whether CUDA
    graphs may be used. ``throughput_contexts``: where the batch is driven to out of memory.
    """

    contexts: tuple[int, ...]
    throughput_contexts: tuple[int, ...] = ()
    backend: str = "transformers"
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    new_tokens: int = 32
    repeats: int = 10
    warm_ups: int = 2
    prefill_chunk: int | None = None
    graphs: bool = True
    max_batch: int | None = None
    max_memory_gib: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What one process measures: ``shapes``, (context, batch) one after the other.

    ``engine``: "module:attribute" that makes the engine. ``first_token``: measure the time to the first token, too.
    ``measure_device``: say how fast a CPU is.
    """

    target: Target
    options: ProfileOptions
    engine: str
    shapes: tuple[tuple[int, int], ...]
    first_token: bool = False
    measure_device: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """Samples of one duration in seconds. ``repeated``: how often noisy rounds before these were thrown away."""

    samples_s: tuple[float, ...]
    repeated: int = 0

    @property
    def n(self) -> int:
        return len(self.samples_s)

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples_s)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        if self.n < 2:
            return self.samples_s[0], self.samples_s[0]
        low, _, high = statistics.quantiles(self.samples_s, n=4, method="inclusive")
        return low, high

    @property
    def iqr_share(self) -> float:
        """Interquartile range over median."""
        low, high = self.quartiles_s
        return (high - low) / self.median_s

    @property
    def noisy(self) -> bool:
        return self.iqr_share > NOISY_IQR


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Bytes of a batch's caches: keys and values (they grow with the context), recurrent and convolution states."""

    kv: int
    state: int

    @property
    def total(self) -> int:
        return self.kv + self.state


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak bytes of a point on its device, weights included; ``reserved`` is what the allocator held for them."""

    allocated: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine says of a model it loaded. ``cache``: the kind of cache; ``graphs``:
    what runs as CUDA graphs, or "none" and why.
    """

    num_parameters: int
    weight_bytes: int
    engine: str
    dtype: str
    device: str
    attention: str
    cache: str
    graphs: str = "none"
    load_s: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The card while something was measured: clocks in MHz, power in W, temperature in degrees Celsius, what slowed it.

    ``others``: processes on the card beside ours. ``other_cores``: of a CPU, how many cores others kept busy since the
    state before. None and empty where it cannot be known.
    """

    sm_clock: int | None = None
    memory_clock: int | None = None
    power_state: str = ""
    power_w: float | None = None
    temperature: int | None = None
    throttling: tuple[str, ...] = ()
    others: int | None = None
    other_cores: float | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What theory says of a point on this device: seconds of a prefill and of one decoding step, at least; FLOPs and
    bytes each; the cache by formula. Times are None for a device whose speeds are not known."""

    cache: CacheSize
    prefill_flops: float
    prefill_bytes: float
    decode_flops: float
    decode_bytes: float
    prefill_s: float | None = None
    decode_s: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One measured (context, batch). ``ttft``: request to first token at batch 1; ``step``: one token for all
    the batch. ``reason``: why it is not OK, in one line. ``warm_up_s``: compiling, tuning and recording, apart.
    """

    context: int
    batch: int
    status: str
    reason: str = ""
    ttft: Timing | None = None
    step: Timing | None = None
    cache: CacheSize | None = None
    memory: Memory | None = None
    warm_up_s: float = 0.0
    before: DeviceState | None = None
    after: DeviceState | None = None
    bounds: Bounds | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Decoded tokens a second over the whole batch."""
        return None if self.step is None else self.batch / self.step.median_s


@dataclass(frozen=True, slots=True)
class Search:
    """The points of one search for the peak throughput at ``context``, in the order they were run."""

    context: int
    points: tuple[Point, ...]

    @property
    def best(self) -> Point | None:
        """The point of highest throughput, None where not even one sequence fitted."""
        fitting = [point for point in self.points if point.tokens_per_s is not None]
        return max(fitting, key=lambda point: point.tokens_per_s or 0.0, default=None)

    @property
    def largest(self) -> int:
        """The largest batch that fitted, 0 for none."""
        return max((point.batch for point in self.points if point.status == OK), default=0)


@dataclass(frozen=True, slots=True)
class CheckpointProfile:
    """All of one checkpoint: points at batch 1 by context, and searches by context."""

    target: Target
    loaded: Loaded | None
    points: tuple[Point, ...] = ()
    searches: tuple[Search, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """One ``distill-eval profile``: the first checkpoint is the one the others are held against."""

    options: ProfileOptions
    checkpoints: tuple[CheckpointProfile, ...]
    device_name: str
    stamp: dict = field(default_factory=dict)
