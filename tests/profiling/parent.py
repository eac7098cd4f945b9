"""A profile by the simulated engine as a program: ``python -m tests.profiling.parent FOLDER``."""

import signal
import sys
from pathlib import Path

from distill_eval.errors import ConfigError
from distill_eval.profiling import BACKENDS, run, run_profile
from distill_eval.profiling.presets import write_target
from distill_eval.schema.profile import ProfileOptions


def no_formulas(config: object) -> None:
    raise ConfigError("none, which saves reading them in every test")


if __name__ == "__main__":
    # A shell without job control starts what is in its background with SIGINT ignored, and so do we then.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    BACKENDS["simulated"] = "tests.profiling.engines:make"
    run.read_architecture = no_formulas  # type: ignore[assignment]
    out = Path(sys.argv[1])
    options = ProfileOptions((128,), (2048,), backend="simulated", repeats=6)
    try:
        run_profile([write_target("tiny", out.with_suffix(".config"))], options, out=out)
    except KeyboardInterrupt:
        sys.exit(130)
