"""Imported once by the process that test processes are forked from, so that each does not take seconds to start."""

import tests.distill.training.fakes  # noqa: F401
