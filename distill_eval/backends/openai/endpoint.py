"""Which endpoint serves which checkpoint, and the key it wants. Nothing here touches the network."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from distill_eval.errors import OptionError, did_you_mean
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.endpoint import EndpointOptions
from distill_eval.schema.run import RunOptions

ENGINE = "openai"
KEY_VARIABLE = "OPENAI_API_KEY"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST_CONCURRENT = 16

_LABELLED = re.compile(r"(?:(?P<label>[A-Za-z0-9_.-]+)=)?(?P<value>.*)", re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A key goes into a header as it is: printable ASCII without spaces, or the HTTP library would quote it in an error.
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one checkpoint is served: ``url`` without a final slash; ``served`` is None when the user named none."""

    url: str
    served: str | None
    key_variable: str | None
    concurrency: int
    requests_per_minute: float | None
    timeout_s: float
    max_retries: int

    @property
    def on_loopback(self) -> bool:
        return urlsplit(self.url).hostname in LOOPBACK


def check_endpoints(options: RunOptions, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OptionError unless every checkpoint has an endpoint and every label of an option is a checkpoint's."""
    asked = options.endpoint
    if options.backend != ENGINE:
        if asked != EndpointOptions():
            raise OptionError(
                "--base-url and the other endpoint options are for --backend openai; give that too"
            )
        return
    labels = [checkpoint.label for checkpoint in checkpoints]
    for flag, values in (("--base-url", asked.base_urls), ("--served-model", asked.served_models)):
        for label in _by_label(flag, values):
            if label and label not in labels:
                raise OptionError(f"{flag}: no checkpoint is called '{label}'{did_you_mean(label, labels)}")
    for checkpoint in checkpoints:
        find_endpoint(options, checkpoint)


def find_endpoint(options: RunOptions, checkpoint: Checkpoint) -> Endpoint:
    """Return where ``checkpoint`` is served; OptionError, without any secret in it, for a bad setting."""
    asked, label = options.endpoint, checkpoint.label
    for flag, given, default in (
        ("--device", options.device, "auto"),
        ("--dtype", options.dtype, "auto"),
        ("--attention", options.attention, "sdpa"),
        ("--max-memory", options.max_memory_gib, None),
        ("--backend-option", options.backend_options, ()),
    ):
        if given != default:
            raise OptionError(f"{flag}: with --backend openai this is the server's; start the server with it")
    if options.batch_size is not None and options.batch_size < 1:
        raise OptionError(f"--batch-size: must be at least 1, got {options.batch_size}")
    if asked.requests_per_minute is not None and not asked.requests_per_minute > 0:
        raise OptionError(f"--requests-per-minute must be above 0, got {asked.requests_per_minute:g}")
    if not asked.timeout_s > 0:
        raise OptionError(f"--request-timeout must be above 0 seconds, got {asked.timeout_s:g}")
    if asked.max_retries < 0:
        raise OptionError(f"--request-retries must be 0 or more, got {asked.max_retries}")
    urls = _by_label("--base-url", asked.base_urls)
    url = urls.get(label, urls.get(""))
    if url is None:
        raise OptionError(
            f"--backend openai: nothing serves checkpoint '{label}': give --base-url http://HOST:PORT/v1, or "
            f"--base-url {label}=URL where each has its own"
        )
    models = _by_label("--served-model", asked.served_models)
    url = _checked_url(url)
    variable = _key_variable(asked, url)
    key = read_key(variable)
    if key and key in url:
        raise OptionError(
            f"--base-url of '{label}' contains the key of {variable}; keys come from there alone"
        )
    return Endpoint(
        url=url,
        served=models.get(label, models.get("")),
        key_variable=variable,
        concurrency=options.batch_size or MOST_CONCURRENT,
        requests_per_minute=asked.requests_per_minute,
        timeout_s=asked.timeout_s,
        max_retries=asked.max_retries,
    )


def read_key(variable: str | None) -> str | None:
    """Return the key in the environment, None for an empty or missing one; it must never be shown."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if key and not _KEY.fullmatch(key):
        raise OptionError(f"the key in {variable} has a space or a character that no key has")
    return key or None


def _by_label(flag: str, values: Sequence[str]) -> dict[str, str]:
    """Part every ``[LABEL=]VALUE``; the one without a label is under ``""``."""
    found: dict[str, str] = {}
    for text in values:
        match = _LABELLED.fullmatch(text)
        label, value = (match["label"] or "", match["value"]) if match else ("", text)
        if not value:
            raise OptionError(f"{flag}: an empty value{f' for {label!r}' if label else ''}")
        if label in found:
            whose = f"two for '{label}'" if label else "two without a label"
            raise OptionError(f"{flag}: {whose}; say which checkpoint each is for: {flag} LABEL=...")
        found[label] = value
    return found


def _checked_url(text: str) -> str:
    """Return the URL in plain form. What is wrong with it is said without quoting it: it may hold a secret."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise OptionError("--base-url: not a URL; it looks like http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.password is not None:
        raise OptionError(
            "--base-url holds a user or password, which would be stored with the run: take them out and put the key "
            f"into the environment ({KEY_VARIABLE}, or --api-key-env NAME)"
        )
    if parts.query or parts.fragment:
        raise OptionError(
            "--base-url holds a query (?...), where keys hide that would be stored with the run: take it out and put "
            f"the key into the environment ({KEY_VARIABLE}, or --api-key-env NAME)"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise OptionError(
            "--base-url must begin with http:// or https:// and a host, as http://127.0.0.1:8000/v1"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _key_variable(asked: EndpointOptions, url: str) -> str | None:
    """Return the variable whose key is sent: by default never one that somebody else could read on the way."""
    name = asked.api_key_env
    if name is None:
        parts = urlsplit(url)
        return KEY_VARIABLE if parts.scheme == "https" or parts.hostname in LOOPBACK else None
    # Not quoted in errors: who mistakes the option gives the key itself.
    if not _VARIABLE.fullmatch(name):
        raise OptionError("--api-key-env takes the name of an environment variable, not a key")
    if not os.environ.get(name, "").strip():
        raise OptionError("--api-key-env names an environment variable that is not set")
    return name
