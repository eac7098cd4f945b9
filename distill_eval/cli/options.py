"""Options that several commands share: how they are declared, and what their text means."""

import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill_eval.errors import OptionError, did_you_mean
from distill_eval.schema.records import ARMS
from distill_eval.schema.requests import GREEDY, Sampling
from distill_eval.schema.run import RunOptions

if TYPE_CHECKING:
    from distill_eval.catalog import Suite

NO_ARMS = "none"
WITH_OPTIONS = ("vllm",)  # backends that hand --backend-option through
WHAT, HOW, WHERE, RISK = "What to run", "How to prompt and sample", "Where and with what", "Permissions"


def _at_least_1(param: typer.CallbackParam, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise OptionError(f"{param.opts[0]} must be at least 1, got {value}")
    return value


def _is_memory(text: str | None) -> str | None:
    parse_max_memory(text)
    return text


def limit_option(text: str, panel: str) -> Any:
    """Declare ``--limit``, refused below 1."""
    return typer.Option(help=text, callback=_at_least_1, rich_help_panel=panel)


def data_dir_option(rest: str, panel: str = WHERE) -> Any:
    """Declare ``--data-dir``; ``rest`` ends its help."""
    return typer.Option(
        envvar="DISTILL_EVAL_DATA",
        help=f"Local mirror of the benchmark data{rest}",
        rich_help_panel=panel,
        show_default=False,
    )


def tasks_dir_option(panel: str = WHERE) -> Any:
    """Declare ``--tasks-dir``."""
    return typer.Option(help="Folder with more task files (repeatable).", rich_help_panel=panel)


def cache_dir_option(text: str, panel: str = WHERE) -> Any:
    """Declare ``--cache-dir``."""
    return typer.Option(envvar="DISTILL_EVAL_CACHE", help=text, rich_help_panel=panel, show_default=False)


def max_memory_option(default: str, panel: str = WHERE) -> Any:
    """Declare ``--max-memory``; its text is for ``parse_max_memory``."""
    return typer.Option(
        help="Most memory of the device to use, weights included (on a CPU the whole process): 8, 8.5, 8GiB or "
        f"500MiB. Default: {default}",
        metavar="GIB",
        callback=_is_memory,
        rich_help_panel=panel,
        show_default=False,
    )


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; no table, no bars.")]

Backend = Annotated[
    str,
    typer.Option(
        help="What runs the models: transformers, vllm, openai (a server) or fake.", rich_help_panel=WHERE
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=WHERE)]
DTYPES = "auto (the checkpoint's on a GPU, float32 on a CPU), float32, bfloat16 or float16."
Dtype = Annotated[str, typer.Option(help=DTYPES, rich_help_panel=WHERE)]
Attention = Annotated[
    str, typer.Option(help="Attention implementation: sdpa, eager, ...", rich_help_panel=WHERE)
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Most sequences at once. Default: by token budget; 16 to a server.",
        callback=_at_least_1,
        rich_help_panel=WHERE,
    ),
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Handed through to the backend's engine, as in tensor_parallel_size=2. May be repeated.",
        metavar="KEY=VALUE",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
StopLoops = Annotated[
    bool,
    typer.Option(
        "--stop-loops",
        help="End an answer that has fallen into a repetition loop; recorded, and no cached answer is shared.",
        rich_help_panel=HOW,
    ),
]
MaxMemory = Annotated[str | None, max_memory_option("what is free.")]
DataDir = Annotated[Path | None, data_dir_option("; nothing is fetched then.")]
TasksDir = Annotated[list[Path] | None, tasks_dir_option()]
CacheDir = Annotated[
    Path | None,
    cache_dir_option("Response cache and converted checkpoints. Default: ~/.cache/distill-eval."),
]
AllowUnsandboxedCode = Annotated[
    bool,
    typer.Option(
        "--allow-unsandboxed-code",
        help="Run model-written code (HumanEval) even where no sandbox can be had.",
        rich_help_panel=RISK,
    ),
]
LimitSeed = Annotated[int, typer.Option(help="Seed of that draw.", rich_help_panel=WHAT)]


def split_names(text: str | None) -> tuple[str, ...]:
    """Return the names in ``a,b``."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def parse_tokens(option: str, text: str | None) -> tuple[int, ...]:
    """Return the token counts in ``4096,8K``, each once, ascending; ``8K`` is 8,192."""
    counts = set()
    for part in split_names(text):
        digits, factor = (part[:-1], 1024) if part[-1] in "kK" else (part, 1)
        if not digits.isdecimal() or not int(digits):
            raise OptionError(
                f"{option} takes tokens separated by commas, as in 4096,8192 or 4K,8K; got '{part}'"
            )
        counts.add(int(digits) * factor)
    return tuple(sorted(counts))


def parse_arms(text: str | None) -> tuple[str, ...]:
    """Return the bridging arms of ``--arms``; the default without it, none for ``none``."""
    if text is None:
        return RunOptions().arms
    names = split_names(text)
    if names == (NO_ARMS,):
        return ()
    for name in names:
        if name not in ARMS:
            raise OptionError(f"--arms: unknown arm '{name}'{did_you_mean(name, (*ARMS, NO_ARMS))}")
    if not names:
        raise OptionError(f"--arms is empty; give {', '.join(ARMS)} or {NO_ARMS}")
    return tuple(dict.fromkeys(names))


def parse_seeds(text: str | None, suite: "Suite | None") -> tuple[int, ...]:
    """Return the seeds of ``--seeds``, else the suite's, else the paper's."""
    if text is None:
        return tuple(suite.seeds) if suite and suite.seeds else RunOptions().seeds
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(
            f"--seeds takes whole numbers separated by commas, as in 1,2,3; got '{text}'"
        ) from None
    if len(set(seeds)) != len(seeds):
        raise OptionError(f"--seeds must differ from one another, got '{text}'")
    return seeds


def parse_backend_options(backend: str, given: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """Return the pairs of ``--backend-option KEY=VALUE``; what they mean, the backend knows."""
    if given and backend not in WITH_OPTIONS:
        raise OptionError(
            f"--backend-option {given[0]}: the {backend} backend takes none; {', '.join(WITH_OPTIONS)} does"
        )
    pairs = []
    for text in given or ():
        key, sign, value = text.partition("=")
        if not key or not sign:
            raise OptionError(f"--backend-option takes KEY=VALUE, as in tensor_parallel_size=2; got '{text}'")
        pairs.append((key, value))
    return tuple(pairs)


def parse_sampling(
    greedy: bool | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    suite: "Suite | None",
) -> Sampling:
    """Return how tokens are drawn: flags first, then the suite's greedy, then the paper's sampling."""
    asked = [
        name
        for name, value in (("--temperature", temperature), ("--top-p", top_p), ("--top-k", top_k))
        if value is not None
    ]
    if greedy and asked:
        raise OptionError(f"--greedy leaves nothing to sample: drop {', '.join(asked)}")
    if temperature is not None and temperature < 0:
        raise OptionError(f"--temperature must be 0 or more, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise OptionError(f"--top-p must be above 0 and at most 1, got {top_p}")
    if top_k is not None and top_k < 0:
        raise OptionError(f"--top-k must be 0 (off) or more, got {top_k}")
    if greedy or temperature == 0 or (greedy is None and not asked and suite is not None and suite.greedy):
        return GREEDY
    base = Sampling()
    return Sampling(
        temperature=base.temperature if temperature is None else temperature,
        top_p=base.top_p if top_p is None else top_p,
        top_k=base.top_k if top_k is None else top_k,
        seed=base.seed,
    )


def parse_max_new_tokens(asked: int | None, suite: "Suite | None") -> int:
    """Return ``--max-new-tokens``, else the suite's, else the paper's."""
    if asked is not None and asked < 1:
        raise OptionError(f"--max-new-tokens must be at least 1, got {asked}")
    if asked is not None:
        return asked
    return suite.max_new_tokens if suite and suite.max_new_tokens else RunOptions().max_new_tokens


def parse_max_memory(text: str | None) -> float | None:
    """Return the GiB of ``--max-memory``: a number of them, or a size with GiB or MiB."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(gib|mib)?\s*", text, re.IGNORECASE)
    gib = 0.0 if found is None else float(found[1]) / (1024 if (found[2] or "").lower() == "mib" else 1)
    if not 0 < gib < math.inf:
        raise OptionError(f"--max-memory takes GiB above 0, as in 8, 8.5, 8GiB or 500MiB; got '{text}'")
    return gib


def read_template(path: str) -> str:
    """Return the text of a chat template's file."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text()
    raise OptionError(f"--chat-template must be auto, own or a readable template file, got '{path}'")
