"""The contract of an engine that can be profiled, inside the process that measures it."""

from typing import Protocol

from distill_eval.schema.profile import CacheSize, Loaded, Memory


class OutOfMemory(Exception):
    """What was asked does not fit the device; the text says what, with numbers where they are known."""


class ProfiledEngine(Protocol):
    """Runs one model at one (context, batch) at a time. Every time is wall-clock, from call to token on the host.

    Prompts are random ids that are no special tokens; texts never end by themselves. Anything but ``load`` and
    ``close`` follows an ``open``. Each method raises OutOfMemory where memory runs
    out, after which only ``close`` may follow.
    """

    def load(self) -> Loaded:
        """Load the model (or make its weights at random)."""
        ...

    def open(self, context: int, batch: int, new_tokens: int) -> None:
        """Make room for ``batch`` prompts of ``context`` tokens and ``new_tokens`` more each; forget earlier peaks."""
        ...

    def first_token(self) -> float:
        """Read one fresh prompt and draw its first token; return the seconds. What it cached is given up again."""
        ...

    def decode(self, num_tokens: int) -> float:
        """Return the seconds of ``num_tokens`` more tokens for each of the batch, whose prompts have been read before.

        Every call starts at the same context; reading prompts does not count.
        """
        ...

    def cache_bytes(self) -> CacheSize:
        """Return the bytes that the prompts of the batch take up in caches: what is used, not what is set aside."""
        ...

    def peak_memory(self) -> Memory:
        """Return the peak since ``open``."""
        ...

    def shut(self) -> None:
        """Give up what ``open`` took; the model stays."""
        ...

    def close(self) -> None:
        """Give up everything."""
        ...
