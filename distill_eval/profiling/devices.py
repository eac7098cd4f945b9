"""How fast a device can be: datasheet figures by the names that CUDA reports, or a measurement of the CPU."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """Peak FLOP/s by dtype ("float32", "tf32", "bfloat16", "float16"; dense) and memory ``bandwidth`` in bytes/s.

    ``source``: where the figures come from.
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    source: str


# TFLOP/s in float32 (no tensor cores), TF32, bfloat16 and float16 (both with float32 accumulation, without sparsity),
# bandwidth in GB/s, and names as CUDA reports them without "NVIDIA". None: the device lacks it.
_H100 = (67.0, 494.7, 989.4, 989.4)
_A100 = (19.5, 156.0, 312.0, 312.0)
_DATASHEETS: tuple[tuple[tuple[str, ...], tuple[float | None, ...], float, str], ...] = (
    (("B200",), (80.0, 1100.0, 2250.0, 2250.0), 8000, "NVIDIA Blackwell architecture brief, HGX B200"),
    (("H200",), _H100, 4800, "NVIDIA H200 datasheet, SXM"),
    (("H200 NVL",), (60.0, 417.5, 835.5, 835.5), 4800, "NVIDIA H200 datasheet, NVL"),
    (("GH200 480GB",), _H100, 4000, "NVIDIA GH200 datasheet, 96 GB"),
    (("H100 80GB HBM3", "H100 SXM5 80GB"), _H100, 3350, "NVIDIA H100 datasheet, SXM5"),
    (("H100 PCIe",), (51.2, 378.0, 756.0, 756.0), 2039, "NVIDIA H100 datasheet, PCIe"),
    (("H100 NVL",), (60.0, 417.5, 835.5, 835.5), 3938, "NVIDIA H100 NVL datasheet"),
    (("H20",), (44.0, 74.0, 148.0, 148.0), 4000, "NVIDIA H20 datasheet"),
    (("A100-SXM4-80GB",), _A100, 2039, "NVIDIA A100 datasheet, SXM 80 GB"),
    (("A100 80GB PCIe",), _A100, 1935, "NVIDIA A100 datasheet, PCIe 80 GB"),
    (("A100-SXM4-40GB", "A100-PCIE-40GB"), _A100, 1555, "NVIDIA A100 datasheet, 40 GB"),
    (("A40",), (37.4, 74.8, 149.7, 149.7), 696, "NVIDIA A40 datasheet"),
    (("A30",), (10.3, 82.0, 165.0, 165.0), 933, "NVIDIA A30 datasheet"),
    (("A10",), (31.2, 62.5, 125.0, 125.0), 600, "NVIDIA A10 datasheet"),
    (("RTX A6000",), (38.7, 77.4, 154.8, 154.8), 768, "NVIDIA RTX A6000 datasheet"),
    (("L40S",), (91.6, 183.0, 362.0, 362.0), 864, "NVIDIA L40S datasheet"),
    (("L40",), (90.5, 90.5, 181.0, 181.0), 864, "NVIDIA L40 datasheet"),
    (("L4",), (30.3, 60.0, 121.0, 121.0), 300, "NVIDIA L4 datasheet"),
    (("RTX 6000 Ada Generation",), (91.1, 182.1, 364.2, 364.2), 960, "NVIDIA RTX 6000 Ada datasheet"),
    (("GeForce RTX 5090",), (104.8, 104.8, 209.5, 209.5), 1792, "NVIDIA RTX Blackwell white paper"),
    (("GeForce RTX 4090",), (82.6, 82.6, 165.2, 165.2), 1008, "NVIDIA Ada white paper"),
    (("GeForce RTX 3090",), (35.6, 35.6, 71.0, 71.0), 936, "NVIDIA GA102 white paper"),
    (("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"), (15.7, None, None, 125.0), 900, "NVIDIA V100 datasheet, SXM2"),
    (("Tesla T4",), (8.1, None, None, 65.0), 320, "NVIDIA T4 datasheet"),
    (("AMD Instinct MI300X",), (163.4, 653.7, 1307.4, 1307.4), 5300, "AMD Instinct MI300X data sheet"),
    (("AMD Instinct MI325X",), (163.4, 653.7, 1307.4, 1307.4), 6000, "AMD Instinct MI325X data sheet"),
)  # fmt: skip
DTYPES = ("float32", "tf32", "bfloat16", "float16")

_PRODUCT = 512  # rows and columns of the measured product
_COPIED = 1 << 26  # bytes of the measured copy: more than caches hold
_SECONDS = 0.1  # for each measurement


def find_device(name: str) -> Device | None:
    """Return the datasheet's figures of the device that CUDA calls ``name``; None for any other.

    Only whole names count: part of a card (MIG), a laptop's or an export variant is slower than its namesake.
    """
    plain = " ".join(name.split()).removeprefix("NVIDIA ")
    for names, teraflops, gigabytes, source in _DATASHEETS:
        if plain in names:
            flops = {
                dtype: speed * 1e12
                for dtype, speed in zip(DTYPES, teraflops, strict=True)
                if speed is not None
            }
            return Device(name, flops, gigabytes * 1e9, f"{source} (dense)")
    return None


def measure_cpu() -> Device:
    """Measure this CPU with torch's threads as set: the fastest of some square products a dtype, and of some copies.

    Takes about a second. A measurement is no peak: a figure may come out a little above 100% of it.
    """
    import torch

    flops = {}
    for dtype in ("float32", "bfloat16", "float16"):
        a = torch.ones(_PRODUCT, _PRODUCT, dtype=getattr(torch, dtype))
        out = torch.empty_like(a)
        flops[dtype] = 2 * _PRODUCT**3 / _fastest(lambda a=a, out=out: torch.mm(a, a, out=out))
    source = torch.ones(_COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    bandwidth = 2 * _COPIED / _fastest(lambda: target.copy_(source))
    threads = torch.get_num_threads()
    return Device("cpu", flops, bandwidth, f"measured with {threads} thread{'s' * (threads > 1)}")


def _fastest(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest call, of as many as fit in ``_SECONDS`` and at least two after the first."""
    work()
    times, end = [], time.perf_counter() + _SECONDS
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
