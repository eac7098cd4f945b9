"""What is said of the machine, from what nvidia-smi prints."""

import pytest

from distill_eval.profiling import machine
from distill_eval.schema.profile import OK, DeviceState, Point

H200 = {
    "gpu=name": "NVIDIA H200\n",
    "gpu=clocks.sm": "1980, 3201, P0, 412.35, 61, 0x0000000000000004\n",
    "compute-apps=pid": "411\n512\n",
}


def smi(state: str = H200["gpu=clocks.sm"]):
    """Return an nvidia-smi that knows an H200 in this ``state``; None for what it does not know."""
    told = {**H200, "gpu=clocks.sm": state}

    def ask(arguments) -> str | None:
        query = arguments[0].removeprefix("--query-")
        assert arguments[1:] == ["--format=csv,noheader,nounits", "--id=3"]
        return next((text for key, text in told.items() if query.startswith(key)), None)

    return ask


def test_the_state_of_a_card() -> None:
    state = machine.read_state("3", {"411"}, smi())
    assert state == DeviceState(1980, 3201, "P0", 412.35, 61, ("power cap",), others=1)
    assert machine.card_name("3", smi()) == "NVIDIA H200"
    assert machine.processes_on("3", smi()) == {"411", "512"}


def test_what_a_card_does_not_tell() -> None:
    ask = smi("1410, 1215, [N/A], [Not Supported], [N/A], [N/A]\n")
    assert machine.read_state("3", None, ask) == DeviceState(1410, 1215)


def test_an_older_driver_calls_reasons_otherwise() -> None:
    new = smi()

    def ask(arguments) -> str | None:
        return None if "clocks_event" in arguments[0] else new(arguments)

    assert machine.read_state("3", (), ask).throttling == ("power cap",)


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        ("0x0000000000000000", ()),
        ("0x0000000000000001", ()),  # idle
        ("0x0000000000000020", ("thermal throttling",)),
        ("0x0000000000000068", ("hardware slowdown", "thermal throttling")),
    ],
)
def test_what_slows_a_card(bits: str, reasons: tuple[str, ...]) -> None:
    ask = smi(f"1980, 3201, P0, 400, 60, {bits}\n")
    assert machine.read_state("3", (), ask).throttling == reasons


@pytest.mark.parametrize(
    ("device", "visible", "card"),
    [
        ("cpu", None, None),
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:1", "4,6", "6"),
        ("cuda", "GPU-8a1f", "GPU-8a1f"),
    ],
)
def test_the_card_of_a_device(
    device: str, visible: str | None, card: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.card_of(device) == card


def test_no_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.read_state("0", None) == DeviceState()
    assert machine.card_name("0") is None
    assert machine.processes_on("0") is None


def test_notes_gather_points_of_one_cause() -> None:
    quiet = DeviceState(1980, others=0)
    points = [
        Point(2048, 1, OK, before=quiet, after=quiet),
        Point(8192, 1, OK, before=quiet, after=DeviceState(1200, throttling=("thermal throttling",))),
        Point(8192, 2, OK, before=DeviceState(1980, others=1), after=DeviceState(1980, others=2)),
        Point(8192, 4, OK, before=quiet, after=DeviceState(1950, others=1)),
        Point(512, 1, OK, after=DeviceState(other_cores=1.25)),
        Point(640, 1, OK, after=DeviceState(other_cores=0.6)),
        Point(768, 1, OK, after=DeviceState(other_cores=0.1)),
    ]
    assert machine.device_notes(points) == [
        "thermal throttling (context 8192, batch 1)",
        "clock moved from 1980 to 1200 MHz (context 8192, batch 1)",
        "another process is on the card (context 8192, batch 2; context 8192, batch 4)",
        "other processes kept up to 1.2 cores busy (context 512, batch 1; context 640, batch 1)",
    ]


def test_cores_that_others_keep_busy() -> None:
    before, after = machine.Load(10.0, 100.0, 5.0), machine.Load(20.0, 118.0, 14.0)
    assert machine.other_cores(before, after) == pytest.approx(0.9)
    assert machine.other_cores(before, machine.Load(10.5, 200.0, 5.0)) is None
    now = machine.read_load()
    assert 0 < now.own_s < now.busy_s
