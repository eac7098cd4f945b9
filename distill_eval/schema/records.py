"""One item under one protocol for one checkpoint and one seed: the row everything later is computed from."""

from dataclasses import dataclass, field

LOGLIKELIHOOD = "loglikelihood"
GENERATIVE = "generative"
PROTOCOLS = (LOGLIKELIHOOD, GENERATIVE)
LETTERS = "letters"  # EvalScope's prompt, the options' letters ranked by log-likelihood
GENERATE_UNTIL = "generate_until"  # generation by lm-eval's prompt and scorer
ARMS = (LETTERS, GENERATE_UNTIL)
"""Bridging arms: what lies between the two protocols, so that a gap can be taken apart."""
LONG_CONTEXT = "longcontext"  # generation from long prompts by lm-eval's RULER and LongBench tasks
UNKNOWN_TOKENS = -1


@dataclass(frozen=True, slots=True)
class Record:
    """One scored item.

    ``score``: the task's headline metric on this item (log-likelihood of the target for perplexity
    tasks), or None when the engine did not score it; unscored is never zero. ``scores``: every metric
    the engine gave. ``chance``: probability of being right by guessing, None when it has none.
    ``choice_logprobs``: log-likelihood tasks: one sum per option, in the option order of the data set.
    ``prompt`` and ``output`` are text as sent and as received (special tokens dropped from ``output``);
    token counts are this project's own, -1 where another program made the record and they are not known
    (``finish_reason`` is then ""). ``seed`` is None for log-likelihood. ``target``: gold answer. Lone surrogates, which
    an endpoint's JSON may hold and no file or table may, become U+FFFD.
    """

    checkpoint: str
    fingerprint: str
    task: str
    protocol: str
    item_key: str
    subset: str
    cluster: str
    seed: int | None
    prompt: str
    output: str
    target: str
    extracted: str | None
    score: float | None
    chance: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    finish_reason: str
    scores: dict[str, float] = field(default_factory=dict)
    choice_logprobs: tuple[float, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _FOREIGN:
            text = getattr(self, name)
            if text and not text.isascii() and (whole := _without_surrogates(text)) != text:
                object.__setattr__(self, name, whole)


_FOREIGN = ("item_key", "subset", "cluster", "prompt", "output", "target", "extracted")


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
