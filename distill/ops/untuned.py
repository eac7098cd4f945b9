"""Triton's kernels without tuning, which takes minutes for every new shape: for tests and short runs."""

import importlib.util
import math
from collections.abc import Callable


def _distance(config) -> tuple[float, int]:
    """How far a configuration is from what usually does well: four warps, two stages."""
    return abs(math.log2(config.num_warps) - 2), abs(config.num_stages - 2)


def untune() -> Callable[[], None]:
    """Let triton take a usual configuration of a kernel; returns what undoes it. Does nothing without triton."""
    if importlib.util.find_spec("triton") is None:
        return lambda: None
    from triton.runtime.autotuner import Autotuner  # pyright: ignore[reportMissingImports]
    from triton.runtime.errors import OutOfResources  # pyright: ignore[reportMissingImports]

    tuned = Autotuner.run

    def run(self, *args, **kwargs):
        configs = self.configs
        for config in sorted(configs, key=_distance):
            self.configs = [config]
            try:
                return tuned(self, *args, **kwargs)
            except OutOfResources:
                continue
            finally:
                self.configs = configs
        raise OutOfResources(0, 0, "every configuration")

    def undo() -> None:
        Autotuner.run = tuned

    Autotuner.run = run
    return undo
