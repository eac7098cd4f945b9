"""The tables and figures of ``distill-eval profile``; the first checkpoint is the reference."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from distill_eval.render.profile_plots import profile_figures
from distill_eval.render.profile_values import (
    NOISY,
    cache_bytes,
    context_name,
    contexts,
    digits,
    find_point,
    find_search,
    formula_bytes,
    mark,
    milliseconds,
    most_tokens_per_s,
    ratio,
    searched,
    share,
    size,
    times,
    tokens_per_s,
    ttft_bound_s,
    ttft_s,
)
from distill_eval.render.text import join_names, one_line
from distill_eval.schema.profile import (
    FAILED,
    NOISY_IQR,
    OK,
    OUT_OF_MEMORY,
    CheckpointProfile,
    Point,
    Profile,
    Timing,
)
from distill_eval.schema.tables import Column, Table

__all__ = ["profile_figures", "tables"]


def tables(profile: Profile) -> tuple[Table, ...]:
    """Return checkpoints, time to first token, decoding, memory and throughput, those that were measured.

    Print them with ``render.tables.print_table``; at 100 columns they fit with labels of up to 16 characters.
    """
    made = [_checkpoints(profile)]
    if contexts(profile):
        made += [_first_token(profile), _decoding(profile), _memory(profile)]
    if searched(profile):
        made.append(_throughput(profile))
    return tuple(made)


def _checkpoints(profile: Profile) -> Table:
    columns = ["parameters", "weights", "dtype", "load s", "warm-up s"]
    rows = []
    for checkpoint in profile.checkpoints:
        loaded = checkpoint.loaded
        points = [*checkpoint.points, *(point for search in checkpoint.searches for point in search.points)]
        cells = ["-"] * 4
        if loaded is not None:
            cells = [
                f"{loaded.num_parameters / 1e6:,.2f}M", size(loaded.weight_bytes), loaded.dtype, f"{loaded.load_s:.1f}",
            ]  # fmt: skip
        rows.append((_label(checkpoint), *cells, f"{sum(point.warm_up_s for point in points):.1f}"))
    return Table(
        "profile-checkpoints",
        f"Profile on {profile.device_name}",
        (Column("checkpoint", "left"), *(Column(name) for name in columns)),
        tuple(rows),
        notes=tuple(_setting_notes(profile)),
    )


def _first_token(profile: Profile) -> Table:
    rows, rules = _rows(profile, contexts(profile), _first_token_cells)
    reference = _label(profile.checkpoints[0])
    return Table(
        "profile-ttft",
        "Time to first token, batch 1",
        _columns("ms", "IQR", "n", "speed", "bound ms", "reached"),
        rows,
        rules,
        notes=(
            f"speed: the median of {reference} over this one; IQR: of the median; bound: roofline by formula;"
            " reached: bound over median",
            *_marks(profile, "ttft"),
        ),
    )


def _first_token_cells(
    checkpoint: CheckpointProfile, reference: CheckpointProfile, context: int
) -> list[str]:
    point, of = find_point(checkpoint, context), find_point(reference, context)
    timing, median, bound = point.ttft if point else None, ttft_s(point), ttft_bound_s(point)
    return [
        _measured(milliseconds(median), timing, point),
        *_spread(timing),
        times(ratio(ttft_s(of), median)),
        milliseconds(bound),
        share(ratio(bound, median)),
    ]


def _decoding(profile: Profile) -> Table:
    rows, rules = _rows(profile, contexts(profile), _decoding_cells)
    return Table(
        "profile-decoding",
        "Decoding, batch 1",
        _columns("ms/token", "IQR", "n", "tokens/s", "speed", "bound ms", "reached"),
        rows,
        rules,
        notes=(f"speed: tokens/s over those of {_label(profile.checkpoints[0])}", *_marks(profile, "step")),
    )


def _decoding_cells(checkpoint: CheckpointProfile, reference: CheckpointProfile, context: int) -> list[str]:
    point, of = find_point(checkpoint, context), find_point(reference, context)
    timing, speed, most = point.step if point else None, tokens_per_s(point), most_tokens_per_s(point)
    return [
        _measured(milliseconds(timing.median_s if timing else None), timing, point),
        *_spread(timing),
        digits(speed),
        times(ratio(speed, tokens_per_s(of))),
        milliseconds(point.bounds.decode_s if point and point.bounds else None),
        share(ratio(speed, most)),
    ]


def _memory(profile: Profile) -> Table:
    rows, rules = _rows(profile, contexts(profile), _memory_cells)
    headings = {
        "cache": ("measured", "KV", "state", "formula", "off", "lower"),
        "peak": ("allocated", "reserved"),
    }
    grouped = (Column(name, group=group) for group, names in headings.items() for name in names)
    return Table(
        "profile-memory",
        "Memory, batch 1",
        (*_columns(), *grouped),
        rows,
        rules,
        notes=(
            "off: measured less formula, of the formula; lower: than the measured cache of"
            f" {_label(profile.checkpoints[0])}; peak: weights included",
        ),
    )


def _memory_cells(checkpoint: CheckpointProfile, reference: CheckpointProfile, context: int) -> list[str]:
    point, of = find_point(checkpoint, context), find_point(reference, context)
    cache, memory = (point.cache, point.memory) if point else (None, None)
    total, formula, whole = cache_bytes(point), formula_bytes(point), cache_bytes(of)
    off = None if total is None or not formula else total / formula - 1
    saved = None if total is None or not whole else 1 - total / whole
    return [
        mark(point) if total is None else size(total),
        size(cache.kv if cache else None),
        size(cache.state if cache else None),
        size(formula),
        "-" if off is None else f"{100 * off:+.1f}%".replace("-0.0%", "0.0%").replace("+0.0%", "0.0%"),
        "-" if saved is None or checkpoint is reference else f"{100 * saved:.1f}%",
        size(memory.allocated if memory else None),
        size(memory.reserved if memory else None),
    ]


def _throughput(profile: Profile) -> Table:
    rows, rules = _rows(profile, searched(profile), _throughput_cells)
    columns = _columns("fits", "OOM at", "best", "tokens/s", "IQR", "speed", "GB/s", "reached", "peak")
    return Table(
        "profile-throughput",
        "Peak decoding throughput, by batch",
        tuple(
            replace(column, group="batch" if 2 <= place < 5 else "") for place, column in enumerate(columns)
        ),
        rows,
        rules,
        notes=(
            "fits: largest batch that did; best: batch of the highest throughput, which the rest is about;"
            f" speed: tokens/s over those of {_label(profile.checkpoints[0])}; GB/s: bytes a step must move by formula,"
            " over the step's median; reached: bound over median",
            *_marks(profile, "search"),
        ),
    )


def _throughput_cells(checkpoint: CheckpointProfile, reference: CheckpointProfile, context: int) -> list[str]:
    search, of = find_search(checkpoint, context), find_search(reference, context)
    if search is None:
        return ["-"] * 9
    best, speed = search.best, tokens_per_s(search.best)
    refused = [point.batch for point in search.points if point.status == OUT_OF_MEMORY]
    batches = [str(search.largest or "-"), str(min(refused, default="-"))]
    if best is None or best.step is None:
        return [*batches, "-", mark(search.points[0] if search.points else None), *["-"] * 5]
    moved = best.bounds.decode_bytes / best.step.median_s / 1e9 if best.bounds else None
    return [
        *batches,
        str(best.batch),
        _measured(digits(speed), best.step, best),
        share(best.step.iqr_share),
        times(ratio(speed, tokens_per_s(of.best if of else None))),
        digits(moved),
        share(ratio(speed, most_tokens_per_s(best))),
        size(best.memory.allocated if best.memory else None),
    ]


def _rows(profile: Profile, wanted: list[int], cells) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """Return a row for each context and checkpoint, and the rows at which a context starts."""
    reference, rows, rules = profile.checkpoints[0], [], []
    for context in wanted:
        rules.append(len(rows))
        for checkpoint in profile.checkpoints:
            rows.append((context_name(context), _label(checkpoint), *cells(checkpoint, reference, context)))
    return tuple(rows), tuple(rules)


def _columns(*names: str) -> tuple[Column, ...]:
    return (Column("context"), Column("checkpoint", "left"), *(Column(name) for name in names))


def _measured(text: str, timing: Timing | None, point: Point | None) -> str:
    if timing is None:
        return mark(point)
    return f"{NOISY}{text}" if timing.noisy else text


def _spread(timing: Timing | None) -> tuple[str, str]:
    return ("-", "-") if timing is None else (share(timing.iqr_share), str(timing.n))


def _label(checkpoint: CheckpointProfile) -> str:
    return one_line(checkpoint.target.label)


def _marks(profile: Profile, what: str) -> Iterator[str]:
    """Explain the marks that occur: noisy, out of memory, failed."""
    shown: list[tuple[str, Point]] = []
    for checkpoint in profile.checkpoints:
        points = checkpoint.points
        if what == "search":
            points = tuple(point for search in checkpoint.searches for point in search.points)
        shown += [(_label(checkpoint), point) for point in points]
    marked = [point for _, point in shown]
    if what == "search":  # of a search the table shows the best point
        searches = [search for checkpoint in profile.checkpoints for search in checkpoint.searches]
        marked = [search.best for search in searches if search.best]
    timings = [point.ttft if what == "ttft" else point.step for point in marked]
    noisy = [timing for timing in timings if timing is not None and timing.noisy]
    if noisy:
        again = max(timing.repeated for timing in noisy)
        yield (
            f"{NOISY} noisy: interquartile range above {NOISY_IQR:.0%} of the median"
            f"{f', even when repeated (up to {again} times)' if again else ''}"
        )
    for label, point in shown:
        # In a search, running out of memory is the aim.
        if point.status == FAILED or (point.status != OK and what != "search"):
            batch = f", batch {point.batch}" if what == "search" else ""
            name = "FAILED" if point.status == FAILED else "OOM (out of memory)"
            yield f"{name}: {label} at {context_name(point.context)}{batch}: {one_line(point.reason)}"


def _setting_notes(profile: Profile) -> Iterator[str]:
    options = profile.options
    limit = f", at most {options.max_memory_gib:g} GiB" if options.max_memory_gib else ""
    yield (
        f"{options.backend}: medians of {options.repeats} samples after {options.warm_ups} warm-ups,"
        f" {options.new_tokens} tokens decoded for each, random prompts (seed {options.seed}){limit}"
    )
    engines, notes = [], []
    for checkpoint in profile.checkpoints:
        label, loaded = _label(checkpoint), checkpoint.loaded
        if loaded is not None:
            text = f"{loaded.engine} on {loaded.device}, attention {loaded.attention}, {loaded.cache}"
            text += f", CUDA graphs: {loaded.graphs}"
            engines.append((label, text))
            notes += [(label, note) for note in loaded.notes]
        if checkpoint.target.random_weights:
            engines.append((label, "random weights"))
        notes += [(label, note) for note in checkpoint.notes]
    yield from _shared(engines, len(profile.checkpoints))
    yield from _device_notes(profile)
    yield from _shared(notes, len(profile.checkpoints))


def _shared(notes: Iterable[tuple[str, str]], num_checkpoints: int) -> Iterator[str]:
    """Say each note once, before it the labels that it holds for where these are not all."""
    labels: dict[str, dict[str, None]] = {}
    for label, note in notes:
        labels.setdefault(note, {})[label] = None
    for note, of in labels.items():
        yield note if len(of) == num_checkpoints > 1 else f"{join_names(list(of))}: {note}"


def _device_notes(profile: Profile) -> Iterator[str]:
    """The range of clocks, heat and power over all points; what was wrong with them is in the checkpoints' notes."""
    states = [
        state
        for checkpoint in profile.checkpoints
        for point in (*checkpoint.points, *(p for search in checkpoint.searches for p in search.points))
        for state in (point.before, point.after)
        if state is not None
    ]
    ranges = {
        "SM clock": ([state.sm_clock for state in states], " MHz"),
        "memory clock": ([state.memory_clock for state in states], " MHz"),
        "power": ([state.power_w for state in states], " W"),
        "temperature": ([state.temperature for state in states], " °C"),
    }
    parts = []
    for name, (values, unit) in ranges.items():
        known = [value for value in values if value is not None]
        if known:
            low, high = f"{min(known):.0f}", f"{max(known):.0f}"
            parts.append(f"{name} {low if low == high else f'{low} to {high}'}{unit}")
    if parts:
        yield f"card while measuring: {', '.join(parts)}"
