"""A search for the peak throughput that is killed leaves no memory taken on the card."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from distill_eval.profiling.machine import ask_nvidia_smi, card_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MIB_OF_NOISE = 16
SECONDS_TO_DIE = 15.0


def used_mib() -> int:
    card = card_of("cuda")
    told = ask_nvidia_smi(["--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={card}"])
    assert told, "nvidia-smi does not answer"
    return int(told)


@pytest.fixture
def search(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A search by the transformers backend, of a model whose caches fill the card."""
    command = [
        sys.executable, "-m", "distill_eval.cli.main", "profile", "--random-weights", "qwen3-0.6b", "--device", "cuda",
        "--contexts", "2048", "--throughput-contexts", "32768", "--repeats", "3", "--out", str(tmp_path / "out"),
        "--cache-dir", str(tmp_path / "cache"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_search_gives_all_memory_back(search: subprocess.Popen, seed: int) -> None:
    before, end = used_mib(), time.monotonic() + 180
    while used_mib() < before + 1024:  # the weights and more are there
        assert search.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    time.sleep(random.Random(seed).uniform(0, 40))
    assert search.poll() is None, "the search ended before it could be killed"
    family = psutil.Process(search.pid).children(recursive=True)
    search.kill()
    _, left = psutil.wait_procs(family, timeout=SECONDS_TO_DIE)
    assert left == []
    end = time.monotonic() + SECONDS_TO_DIE
    while used_mib() > before + MIB_OF_NOISE:
        assert time.monotonic() < end, f"{used_mib()} MiB are taken, {before} before"
        time.sleep(0.5)
