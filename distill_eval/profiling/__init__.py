"""Speed and memory of checkpoints by context and batch, beside what theory allows.

From a notebook::

    from distill_eval.profiling import run_profile
    from distill_eval.schema.profile import ProfileOptions

    profile = run_profile(targets, ProfileOptions(contexts=(2048, 8192)), out=Path("runs/profile"))
"""

from distill_eval.profiling.run import BACKENDS, Step, run_profile

__all__ = ["BACKENDS", "Step", "run_profile"]
