"""How much memory there is, and what of a model's work fits into it.

Scoring batches are cut the same way after a restart, before the model is loaded: ``plan_scoring`` asks for the
machine's whole memory and the checkpoint's files, never for what is free now. What really fits is asked when a pass is
run, from free memory and measured costs.
"""

import math
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from distill_eval.backends.transformers.costs import CacheBytes, Costs
from distill_eval.errors import BackendError, OptionError

GIB = 2**30
# Of free memory, what a pass may be planned to take: allocators leave gaps, kernels use a little of their own.
USABLE = 0.85
# Of what the weights leave of all memory, what scoring is planned to take: estimates are made without the model.
PLANNED = 0.5
# Python and its libraries; CUDA's context and workspaces.
RUNTIME_BYTES = GIB
# More at once is no faster. On the CPU, tokens beyond the caches' size make a pass slower.
MOST_TOKENS = {"cpu": 2048, "cuda": 65536}
MOST_SLOTS = {"cpu": 32, "cuda": 1024}
# Positions whose logits exist at once: enough to read the head's weights for many, and soon reached.
MOST_LOGITS = {"cpu": 256, "cuda": 2048}
MOST_LOGIT_BYTES = {"cpu": 2**27, "cuda": 2**30}
# A cache repeated for many rows: enough for passes of about as many tokens as above.
MOST_CACHE_BYTES = {"cpu": 2**29, "cuda": 2**34}
# Padding in a batch that could be cut in two: about what another pass costs.
MOST_PADDING = {"cpu": 64, "cuda": 4096}
# A prefix shared by continuations is hardly shorter; each keeps its recurrent state.
PREFIX_TOKENS = 32
SLOT_TOKENS = 64  # a slot's capacity is a multiple of this
SAMPLING_COPIES = 3  # of a slot's logits while a token is drawn: scaled, sorted, with their noise
CACHE_COPIES = 3  # of a scoring cache: of its beginnings, repeated for what follows, and while that grows it
PREFILL_SHARE = 0.25  # of the memory for generation; the rest is for slots
# A prompt of more tokens keeps the device busy by itself and is read alone, so many of it at once, or fewer.
LONG_TOKENS = {"cpu": 1024, "cuda": 4096}
CHUNK_TOKENS = {"cpu": 1024, "cuda": 32768}
LEAST_CHUNK = 256
MASK_BYTES = {"cpu": 5}  # for a query and a key of a chunk that is not the first

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_LIST = Path("/proc/self/cgroup")
CGROUP_UNLIMITED = 2**60  # version 1 writes a huge number instead of "max"


@dataclass(frozen=True, slots=True)
class ScoringBudget:
    """The most that one scoring pass should hold: packed tokens, and positions whose logits exist at once."""

    num_tokens: int
    num_logits: int


@dataclass(frozen=True, slots=True)
class CachedBudget:
    """The most for one pass over padded rows with a cache: rows, tokens with padding, positions whose logits exist at
    once, bytes that a cache (a row's costs are ``cache``) may come to, and tokens of padding."""

    num_rows: int
    num_tokens: int
    num_logits: int
    cache: CacheBytes
    cache_bytes: int
    num_padding: int


@dataclass(frozen=True, slots=True)
class GenerationBudget:
    """``num_slots`` sequences decoded side by side, each of up to ``capacity`` tokens (prompt and new ones), filled by
    prefills of up to ``prefill_tokens`` packed tokens. A prompt of more than ``long_tokens`` is read alone,
    ``chunk_tokens`` at a time."""

    num_slots: int
    capacity: int
    prefill_tokens: int
    long_tokens: int
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """A control group that bounds this process: its limit, and its use less the page cache that is dropped first."""

    limit: int
    used: int


def total_memory(device: str, max_memory_gib: float | None = None) -> int:
    """Return the most bytes this process could ever use on ``device``: the same at every call on one machine.

    CUDA: the device's memory. CPU: the least of the machine's memory, the control groups' limits and the address
    space's (``ulimit -v``). ``max_memory_gib`` caps it. A virtual machine that is given memory as it uses it
    reports what it has now; there a control group's limit or ``--max-memory`` keeps the figure steady.
    """
    check_max_memory(max_memory_gib)
    if device == "cpu":
        limits = [psutil.virtual_memory().total, *(group.limit for group in read_control_groups())]
        limits += [limit] if (limit := _address_limit()) else []
    else:
        limits = [torch.cuda.get_device_properties(device).total_memory]
    if max_memory_gib is not None:
        limits.append(int(max_memory_gib * GIB))
    return min(limits)


def free_memory(device: str, max_memory_gib: float | None = None) -> int:
    """Return the bytes this process may take now, beside what it has.

    CUDA: what the device has free and torch holds unused. CPU: the least of what the machine, its control groups and
    the process' address space have left. ``max_memory_gib`` counts ``held_memory``.
    """
    check_max_memory(max_memory_gib)
    held = held_memory(device)
    if device == "cpu":
        left = [psutil.virtual_memory().available]
        left += [group.limit - group.used for group in read_control_groups()]
        left += [limit - psutil.Process().memory_info().vms] if (limit := _address_limit()) else []
    else:
        left = [torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held]
    if max_memory_gib is not None:
        left.append(int(max_memory_gib * GIB) - held)
    return max(0, min(left))


def held_memory(device: str) -> int:
    """Return the bytes this process has: on CUDA its tensors there, without CUDA's own context; on a CPU all of it
    (resident set), libraries included."""
    return psutil.Process().memory_info().rss if device == "cpu" else torch.cuda.memory_allocated(device)


def check_max_memory(max_memory_gib: float | None) -> None:
    """Raise OptionError unless ``--max-memory`` is a positive number of GiB, or not given."""
    if max_memory_gib is not None and not (math.isfinite(max_memory_gib) and max_memory_gib > 0):
        raise OptionError(f"--max-memory must be above 0 GiB, got {max_memory_gib}")


def plan_scoring(costs: Costs, device: str, max_memory_gib: float | None = None) -> ScoringBudget:
    """Return how much to put into one scoring pass, from ``estimate_costs`` and the machine alone.

    Powers of two, so that a few MiB more or less change no batch. At least one token: a text longer than the budget
    has a pass of its own.
    """
    kind = _kind(device)
    room = PLANNED * (total_memory(device, max_memory_gib) - RUNTIME_BYTES - costs.weights)
    num_logits = _power_of_two(min(MOST_LOGIT_BYTES[kind], room / 4) / costs.per_logits)
    num_logits = min(MOST_LOGITS[kind], num_logits)
    room -= num_logits * costs.per_logits
    # Every token may belong to a prefix whose state is kept for its continuations.
    per_token = costs.per_token + costs.cache.of(PREFIX_TOKENS) / PREFIX_TOKENS
    num_tokens = MOST_TOKENS[kind] if not per_token else _power_of_two(room / per_token)
    return ScoringBudget(min(MOST_TOKENS[kind], num_tokens), num_logits)


def scoring_bytes(
    costs: Costs,
    *,
    num_tokens: int,
    num_logits: int,
    num_kept: int = 0,
    num_states: int = 0,
    width: int = 0,
) -> int:
    """Return the bytes of a scoring pass of ``num_tokens`` packed tokens, to be held against ``usable_memory``.

    ``num_kept``: tokens whose keys and values stay for their continuations, those of this pass included.
    ``num_states``: sequences whose recurrent state does. ``num_logits`` and ``width`` as in ``Costs.pass_bytes``.
    """
    kept = num_kept * costs.cache.growth + num_states * costs.cache.per_sequence
    return costs.pass_bytes(num_tokens, num_logits=num_logits, width=width) + kept


def plan_cached(
    costs: Costs,
    device: str,
    budget: ScoringBudget,
    *,
    num_rows: int,
    longest: int,
    max_memory_gib: float | None = None,
) -> CachedBudget:
    """Return what of ``budget`` fits now into a pass with a cache; no text has more than ``longest`` tokens."""
    usable = usable_memory(device, max_memory_gib) - budget.num_logits * costs.per_logits
    per_token = costs.per_token + costs.per_pair * longest
    num_tokens = min(budget.num_tokens, int(max(0, usable) / 2 / max(1, per_token)))
    cache_bytes = min(MOST_CACHE_BYTES[_kind(device)], max(0, usable) // 2 // CACHE_COPIES)
    return CachedBudget(
        num_rows, max(1, num_tokens), budget.num_logits, costs.cache, cache_bytes, MOST_PADDING[_kind(device)]
    )


def usable_memory(device: str, max_memory_gib: float | None = None) -> int:
    """Return the bytes of ``free_memory`` that one pass may be planned to take."""
    return int(USABLE * free_memory(device, max_memory_gib))


def plan_generation(
    costs: Costs,
    device: str,
    *,
    num_requests: int,
    longest: int,
    longest_prompt: int,
    where: str,
    max_memory_gib: float | None = None,
    most_slots: int | None = None,
    chunked: bool = True,
) -> GenerationBudget:
    """Return how many sequences of up to ``longest`` tokens (prompt and new ones) to decode at once.

    Follows what is free now, with the loaded model's measured costs: results do not depend on it. ``most_slots`` is
    ``--batch-size``; ``chunked``: whether long prompts can be read in chunks. Raises BackendError, beginning with
    ``where``, if not even one sequence fits.
    """
    capacity = math.ceil(longest / SLOT_TOKENS) * SLOT_TOKENS
    slot = costs.cache.of(capacity) + costs.per_token + (1 + SAMPLING_COPIES) * costs.per_logits
    room = usable_memory(device, max_memory_gib)
    kind = _kind(device)
    long, chunk = LONG_TOKENS[kind], CHUNK_TOKENS[kind]
    if not chunked:
        long = chunk = longest_prompt
    while (
        chunked
        and chunk > LEAST_CHUNK
        and slot + _prompt_bytes(costs, longest_prompt, long, chunk, kind) > room
    ):
        chunk //= 2
        long = min(long, chunk)
    prompt = _prompt_bytes(costs, longest_prompt, long, chunk, kind)
    if slot + prompt > room:
        what = f"to generate a text of {longest} tokens"
        raise not_enough_memory(where, what, slot + prompt, room, device, max_memory_gib)
    slot_room = room - (prompt if longest_prompt > long else max(prompt, PREFILL_SHARE * room))
    num_slots = min(num_requests, MOST_SLOTS[_kind(device)], most_slots or num_requests)
    while num_slots > 1 and num_slots * slot > slot_room:
        num_slots = _power_of_two(num_slots - 1)
    per_token = costs.per_token + costs.cache.of(PREFIX_TOKENS) / PREFIX_TOKENS
    prefill_tokens = _power_of_two((room - num_slots * slot) / max(1.0, per_token))
    prefill_tokens = min(prefill_tokens, MOST_TOKENS[_kind(device)])
    prefill_tokens = max(prefill_tokens, min(longest_prompt, long))
    return GenerationBudget(num_slots, capacity, prefill_tokens, long, chunk)


def _prompt_bytes(costs: Costs, num_tokens: int, long: int, chunk: int, kind: str) -> int:
    """Return the bytes of reading one prompt, beside its slot: with others, its keys and values exist a second time."""
    if num_tokens <= long:
        return costs.pass_bytes(num_tokens, width=num_tokens) + costs.cache.of(num_tokens)
    chunk = min(num_tokens, chunk)
    # What a later chunk may see, as torch's attention takes it on a CPU: a byte, and its float32 copy.
    mask = MASK_BYTES.get(kind, 0) * chunk * num_tokens
    return costs.pass_bytes(chunk, width=num_tokens) + costs.cache.per_sequence + mask


def check_text_fits(
    costs: Costs, device: str, num_tokens: int, *, where: str, max_memory_gib: float | None = None
) -> None:
    """Raise BackendError, before the model is loaded, unless one text of ``num_tokens`` can be read beside its weights.

    The least that it takes: weights, its keys, values and states, and a pass over the smallest chunk.
    """
    needed = costs.weights + costs.cache.of(num_tokens) + costs.pass_bytes(min(num_tokens, LEAST_CHUNK))
    free = free_memory(device, max_memory_gib)
    if needed > free:
        what = f"for its weights and a text of {num_tokens} tokens"
        raise not_enough_memory(where, what, needed, free, device, max_memory_gib)


def check_weights_fit(costs: Costs, device: str, *, where: str, max_memory_gib: float | None = None) -> None:
    """Raise BackendError, beginning with ``where``, if the weights are more than there is room for, before loading."""
    free = free_memory(device, max_memory_gib)
    if costs.weights > free:
        raise not_enough_memory(where, "for its weights", costs.weights, free, device, max_memory_gib)


def not_enough_memory(
    where: str, what: str, needed: int, usable: int, device: str, max_memory_gib: float | None = None
) -> BackendError:
    """Return the error for what does not fit even one sequence at a time; ``what`` is "to score ..."."""
    limit = "" if max_memory_gib is None else f" of --max-memory {max_memory_gib:g} GiB"
    remedy = "free some" if max_memory_gib is None else "raise --max-memory"
    return BackendError(
        f"{where}: not enough memory on {device} {what}: it takes {_shown(needed)}, and {_shown(usable)}{limit} can be"
        f" used beside the {_shown(held_memory(device))} that this process holds; {remedy}, or use a smaller dtype or"
        " shorter texts"
    )


def read_control_groups(listed: Path = CGROUP_LIST, root: Path = CGROUP_ROOT) -> list[ControlGroup]:
    """Return the control groups (version 2 or 1) that limit this process' memory, itself first and its parents after.

    In a container the list may name a path of the host's that is not there; what can be seen of it counts.
    """
    try:
        lines = listed.read_text().splitlines()
    except OSError:  # not Linux
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, used, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            groups += _read_group(group, limit, used, cache)
            if group == base:
                break
    return groups


def _read_group(folder: Path, limit: str, used: str, cache: str) -> Iterator[ControlGroup]:
    try:
        most = (folder / limit).read_text().strip()
        if most == "max" or int(most) >= CGROUP_UNLIMITED:
            return
        now = int((folder / used).read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    yield ControlGroup(int(most), now - int(facts.get(cache, 0)))


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def _address_limit() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _power_of_two(number: float) -> int:
    """Return the largest power of two that is not above ``number``, at least 1."""
    return 1 << max(0, int(number).bit_length() - 1) if number >= 1 else 1
