"""Every error a user can cause.

::

    UserError (ValueError)          one line, exit code 2, no traceback
    |- OptionError                  a flag or combination of flags
    |- CheckpointError              a model name, folder, weight or tokenizer file
    |- TaskError                    a task or suite file
    |- PolicyError                  a gate's policy file
    |- RecipeError                  a training recipe or an override of one
    |- DataError                    a dataset, split, row or mirror
    |- PublishedError               a file of published numbers or of claims
    |- StoreError                   the response cache or a run folder
    |- OutputError                  a place that cannot be written to
    |- BackendError                 a model that cannot be run (NaN weights, out of memory, ...)
    |- TrainingError                a run of training that cannot go on (NaN, a lost process, ...)
    `- SandboxError                 model-written code with no sandbox to hold it

A message says what is wrong, where, and what would be right::

    task 'gsm8k': num_fewshot must be >= 0, got -1 (tasks/gsm8k.yaml)
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend; the command line prints it as one line and exits with 2."""


class OptionError(UserError):
    """A flag or a combination of flags that makes no sense."""


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read or trusted."""


class TaskError(UserError):
    """A task or suite file that is missing or malformed."""


class PolicyError(UserError):
    """A gate's policy file that is missing or malformed, or names what the runs do not have."""


class RecipeError(UserError):
    """A training recipe, or an override of one, that is missing, malformed or makes no sense."""


class ConfigError(UserError):
    """A model's settings that do not fit together."""


class DataError(UserError):
    """A dataset that is missing, empty or lacks what a task needs."""


class PublishedError(UserError):
    """A file of published numbers or claims that is missing or malformed."""


class StoreError(UserError):
    """A response cache or run folder that is damaged or foreign."""


class OutputError(UserError):
    """A place that cannot be written to."""


class BackendError(UserError):
    """A model that cannot be run as asked."""


class TrainingError(UserError):
    """A run of training that cannot go on."""


class SandboxError(UserError):
    """Model-written code with no sandbox to run it in."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
