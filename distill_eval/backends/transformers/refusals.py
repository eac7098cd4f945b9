"""What cannot be computed, said in one line before it is tried; ``where`` names the checkpoint."""

from distill_eval.checkpoints.architectures import first_line
from distill_eval.errors import BackendError
from distill_eval.schema.requests import GenerateRequest, ScoreRequest


def check_scored(where: str, request: ScoreRequest, most: int | None) -> None:
    """Raise BackendError for an empty text, or one of more than ``most`` positions."""
    if not request.context or not request.continuation:
        raise BackendError(f"{where}: a log-likelihood needs a context and a continuation")
    length = len(request.context) + len(request.continuation) - 1
    if length > (most or length):
        raise BackendError(
            f"{where}: a text of {length} tokens exceeds the checkpoint's {most} positions; it must be cut before"
            " it is scored"
        )


def check_generated_length(where: str, longest: GenerateRequest, most: int | None) -> None:
    """Raise BackendError if prompt and new tokens are more than ``most`` positions."""
    length = len(longest.prompt)
    if most is None or length + longest.max_new_tokens <= most:
        return
    remedy = f"at most {most - length} new tokens fit after this prompt"
    raise BackendError(
        f"{where}: a prompt of {length} tokens and {longest.max_new_tokens} new ones exceed the checkpoint's {most}"
        f" positions; {remedy if length < most else 'the prompt alone is too long'}"
    )


def check_vocabulary(where: str, largest: int, size: int) -> None:
    """Raise BackendError for a token id that a model with ``size`` embeddings has not."""
    if largest >= size:
        raise BackendError(
            f"{where}: token id {largest} lies outside the model's {size} embeddings; its tokenizer is not the one"
            " the model was trained with"
        )


def explain(where: str, error: Exception) -> Exception:
    """Return an error from inside a model as one line; what is none of its own is returned as it is."""
    if isinstance(error, BackendError):
        return error
    if isinstance(error, RuntimeError | ValueError | TypeError | NotImplementedError | AttributeError):
        return BackendError(f"{where}: the model failed: {type(error).__name__}: {first_line(error)}")
    return error
