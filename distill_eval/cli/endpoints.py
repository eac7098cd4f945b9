"""Options for checkpoints that a server answers for."""

from collections.abc import Sequence
from typing import Annotated

import typer

from distill_eval.schema.endpoint import EndpointOptions

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
