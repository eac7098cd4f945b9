"""How to reach the servers of the ``openai`` backend."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """Settings as typed; recorded with a run, so no secret may be among them.

    ``base_urls`` and ``served_models`` are ``[LABEL=]VALUE``: for one checkpoint, or for all that have none of
    their own. ``api_key_env`` names an environment variable; ``timeout_s`` is the longest wait for one answer.
    """

    base_urls: tuple[str, ...] = ()
    served_models: tuple[str, ...] = ()
    api_key_env: str | None = None
    requests_per_minute: float | None = None
    timeout_s: float = 600.0
    max_retries: int = 6
