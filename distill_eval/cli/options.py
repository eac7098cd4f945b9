"""Flags that several commands share: their help panels and what their text means."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_eval.errors import OptionError, did_you_mean
from distill_eval.schema.endpoint import EndpointOptions
from distill_eval.schema.records import ARMS
from distill_eval.schema.requests import GREEDY, Sampling
from distill_eval.schema.run import RunOptions

if TYPE_CHECKING:
    from distill_eval.catalog import Suite

NO_ARMS = "none"
WHAT, HOW, WHERE, RISK = "What to run", "How to prompt and sample", "Where and with what", "Permissions"
SERVED = "Checkpoints on a server (--backend openai)"

BaseUrl = Annotated[
    list[str] | None,
    typer.Option(
        help="Where a checkpoint is served, as http://127.0.0.1:8000/v1: a server with OpenAI's completions route, "
        "such as `vllm serve CHECKPOINT`. Once for all checkpoints, or LABEL=URL for each. The checkpoint itself "
        "is still named: its tokenizer makes the prompts. No keys in it: they come from the environment.",
        metavar="[LABEL=]URL",
        rich_help_panel=SERVED,
        show_default=False,
    ),
]
ServedModel = Annotated[
    list[str] | None,
    typer.Option(
        help="The checkpoint's name on its server. Default: the one that is called like it.",
        metavar="[LABEL=]NAME",
        rich_help_panel=SERVED,
        show_default=False,
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        help="Environment variable with the key. Default: OPENAI_API_KEY, sent over https or to this machine only.",
        metavar="NAME",
        rich_help_panel=SERVED,
        show_default=False,
    ),
]
RequestsPerMinute = Annotated[
    float | None,
    typer.Option(help="Most requests a minute to one server.", rich_help_panel=SERVED, show_default=False),
]
RequestTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait for one answer. Default: 600.", rich_help_panel=SERVED, show_default=False
    ),
]
RequestRetries = Annotated[
    int | None,
    typer.Option(
        help="Further tries, with growing pauses, when a server is busy or away. Default: 6.",
        rich_help_panel=SERVED,
        show_default=False,
    ),
]


def split_names(text: str | None) -> tuple[str, ...]:
    """Return the names in ``a,b``."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def parse_endpoint(
    base_url: Sequence[str] | None,
    served_model: Sequence[str] | None,
    api_key_env: str | None,
    requests_per_minute: float | None = None,
    request_timeout: float | None = None,
    request_retries: int | None = None,
) -> EndpointOptions:
    """Return the flags of checkpoints on a server as one value; what they mean is checked with the checkpoints."""
    default = EndpointOptions()
    return EndpointOptions(
        base_urls=tuple(base_url or ()),
        served_models=tuple(served_model or ()),
        api_key_env=api_key_env,
        requests_per_minute=requests_per_minute,
        timeout_s=default.timeout_s if request_timeout is None else request_timeout,
        max_retries=default.max_retries if request_retries is None else request_retries,
    )


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


def read_template(path: str) -> str:
    """Return the text of a chat template's file."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text()
    raise OptionError(f"--chat-template must be auto, own or a readable template file, got '{path}'")
