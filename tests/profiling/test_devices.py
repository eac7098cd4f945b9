"""Devices are found by whole names only, and a CPU is measured."""

import pytest

from distill_eval.profiling.devices import find_device, measure_cpu


@pytest.mark.parametrize(
    ("name", "bf16_teraflops", "gigabytes"),
    [
        ("NVIDIA H200", 989.4, 4800),
        ("NVIDIA H100 80GB HBM3", 989.4, 3350),
        ("NVIDIA H100 PCIe", 756, 2039),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("A100-SXM4-40GB", 312, 1555),
        ("NVIDIA L4", 121, 300),
        ("NVIDIA GeForce RTX 4090", 165.2, 1008),
        ("AMD Instinct MI300X", 1307.4, 5300),
    ],
)
def test_by_the_names_cuda_reports(name, bf16_teraflops, gigabytes):
    device = find_device(name)
    assert device is not None
    assert device.flops["bfloat16"] == pytest.approx(bf16_teraflops * 1e12)
    assert device.bandwidth == pytest.approx(gigabytes * 1e9)
    assert device.name == name
    assert "heet" in device.source or "paper" in device.source


@pytest.mark.parametrize("name", ["NVIDIA H200 MIG 1g.18gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "cpu", ""])
def test_not_by_part_of_a_name(name):
    assert find_device(name) is None


def test_a_dtype_the_device_lacks_has_no_speed():
    device = find_device("Tesla T4")
    assert device is not None
    assert set(device.flops) == {"float32", "float16"}


def test_the_cpu_is_measured():
    device = measure_cpu()
    assert device.source.startswith("measured with ")
    assert set(device.flops) == {"float32", "bfloat16", "float16"}
    assert device.bandwidth > 0
    assert all(speed > 0 for speed in device.flops.values())
