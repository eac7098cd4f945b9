"""Triton's kernels without tuning, which takes minutes, wherever speed is not what is asked."""

import importlib.util
from collections.abc import Callable


def untune() -> Callable[[], None]:
    """Let triton take a kernel's first configuration that runs; returns what undoes it. Does nothing without triton."""
    if importlib.util.find_spec("triton") is None:
        return lambda: None
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.errors import OutOfResources

    tuned = Autotuner.run

    def run(self, *args, **kwargs):
        configs = self.configs
        for config in configs:
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
