"""Whole profiles by the simulated engine: running out of memory, processes that die, going on after a stop."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distill_eval.errors import BackendError, OptionError, OutputError, StoreError
from distill_eval.gate.sides import load_side
from distill_eval.profiling import Step, run, run_profile, storing
from distill_eval.profiling.presets import write_target
from distill_eval.runs import load_run
from distill_eval.schema.profile import FAILED, OK, OUT_OF_MEMORY, CacheSize, Target
from tests.profiling import engines
from tests.profiling.conftest import options


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; the command's test looks at figures."""
    monkeypatch.setattr("distill_eval.render.profile.profile_figures", lambda *arguments: [])


def statuses(points) -> dict[int, str]:
    return {point.context: point.status for point in points}


def test_figures_and_folder(target: Target, tmp_path: Path) -> None:
    steps: list[Step] = []
    other = replace(target, label="other", fingerprint="another")
    asked = options(128, 2048, throughput=(200_000,))
    profile = run_profile([target, other], asked, out=tmp_path / "out", on_progress=steps.append)
    assert [found.target.label for found in profile.checkpoints] == ["tiny", "other"]
    for found in profile.checkpoints:
        assert found.loaded is not None
        assert found.loaded.engine == "simulated"
        assert statuses(found.points) == {128: OK, 2048: OK}
        point = found.points[1]
        assert point.cache == CacheSize(2048 * engines.TOKEN, engines.STATE)
        assert point.ttft is not None
        assert point.step is not None
        assert point.bounds is not None
        assert (point.ttft.n, point.step.n) == (6, 6)
        assert point.step.median_s == pytest.approx(engines.step_s(2048, 1), rel=0.01)
        [search] = found.searches
        assert (search.context, search.largest) == (200_000, 3)
        assert all(point.ttft is None for point in search.points)
    done = [step.point for step in steps if step.point]
    assert len(done) == sum(
        len(c.points) + sum(len(s.points) for s in c.searches) for c in profile.checkpoints
    )
    assert {step.doing for step in steps} == {"loading", "warming up", "first token", "decoding", ""}
    assert storing.load_profile(tmp_path / "out") == profile
    records, results, provenance = load_run(tmp_path / "out")
    assert (records, results["checkpoints"]) == ([], ["tiny", "other"])
    assert provenance["options"]["contexts"] == [128, 2048]
    figures = load_side(f"{tmp_path / 'out'}:other", "candidate").side.efficiency
    assert {(f.figure, f.setting) for f in figures} >= {
        ("ttft_s", "context 2048, batch 1, float32, simulated, cpu"),
        ("s_per_token_at_peak", "context 200000, peak throughput, float32, simulated, cpu"),
    }


def test_out_of_memory_ends_nothing(target: Target, processes: Callable[[], int]) -> None:
    large = 1 << 20
    profile = run_profile([target], options(large, 128, 2 * large, 3 * large, throughput=(large, 200_000)))
    [found] = profile.checkpoints
    assert statuses(found.points) == {
        128: OK,
        large: OUT_OF_MEMORY,
        2 * large: OUT_OF_MEMORY,
        3 * large: OUT_OF_MEMORY,
    }
    assert "bytes are more than" in found.points[1].reason
    assert found.points[3].reason == f"context {large} did not fit"
    by_context = {search.context: search for search in found.searches}
    assert (by_context[large].largest, by_context[large].best) == (0, None)
    assert by_context[200_000].largest == 3
    searched = sum(len(search.points) for search in found.searches)
    assert processes() == 1 + searched, "contexts share a process, batches do not"


@pytest.mark.parametrize(
    ("does", "status", "words"),
    [
        ("die", OUT_OF_MEMORY, "killed (SIGKILL)"),
        ("crash", FAILED, "died of SIGSEGV: quite wrong"),
        ("raise", FAILED, "RuntimeError: an odd shape"),
        ("allocate", OUT_OF_MEMORY, "can't allocate memory"),
    ],
)
def test_a_process_that_ends_ends_a_point(
    target: Target, ends: Callable, does: str, status: str, words: str
) -> None:
    """From batch 3 on the engine's process ends: by force, with an error, or by asking torch for too much."""
    ends("batch 3", does)
    profile = run_profile([target], options(128, throughput=(64,), max_memory_gib=2))
    [found] = profile.checkpoints
    assert statuses(found.points) == {128: OK}
    [search] = found.searches
    assert {point.batch: point.status for point in search.points} == {1: OK, 2: OK, 4: status, 3: status}
    assert words in search.points[2].reason
    assert "\n" not in search.points[2].reason


def test_a_context_that_fails_does_not_cost_the_others(target: Target, ends: Callable) -> None:
    ends("context 200", "crash")
    profile = run_profile([target], options(128, 256, 512))
    assert statuses(profile.checkpoints[0].points) == {128: OK, 256: FAILED, 512: FAILED}


def test_killed_for_memory_at_a_context(target: Target, ends: Callable, processes: Callable[[], int]) -> None:
    ends("context 200", "die")
    profile = run_profile([target], options(128, 256, 512))
    assert statuses(profile.checkpoints[0].points) == {128: OK, 256: OUT_OF_MEMORY, 512: OUT_OF_MEMORY}
    assert processes() == 1


def test_how_it_ends_after_its_last_point_does_not_matter(target: Target, ends: Callable) -> None:
    ends("close", "crash")
    profile = run_profile([target], options(128, 1 << 20, 1 << 21))
    assert statuses(profile.checkpoints[0].points) == {
        128: OK,
        1 << 20: OUT_OF_MEMORY,
        1 << 21: OUT_OF_MEMORY,
    }


def test_a_model_that_cannot_be_loaded_is_tried_once(
    target: Target, ends: Callable, processes: Callable[[], int]
) -> None:
    ends("load", "crash")
    profile = run_profile([target], options(128, 256))
    [found] = profile.checkpoints
    assert statuses(found.points) == {128: FAILED, 256: FAILED}
    assert found.points[1].reason == "while loading: died of SIGSEGV: quite wrong"
    assert processes() == 1


def test_a_process_that_hangs_is_stopped(target: Target, ends: Callable) -> None:
    ends("context 100", "start others")
    profile = run_profile([target], options(128), silence_s=1)
    [point] = profile.checkpoints[0].points
    assert (point.status, point.reason) == (FAILED, "gave no sign for 1 s and was stopped")


def test_a_mistake_is_the_users(target: Target) -> None:
    with pytest.raises(BackendError, match="checkpoint 'tiny': no device is called 'none'"):
        run_profile([target], options(128, device="none"))


def test_a_stopped_profile_goes_on(
    target: Target, tmp_path: Path, ends: Callable, monkeypatch: pytest.MonkeyPatch, processes: Callable
) -> None:
    asked, out = options(128, 256, throughput=(200_000,)), tmp_path / "out"
    whole = run_profile([target], asked)
    before = processes()

    def stop(step: Step) -> None:
        if step.point and step.batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_profile([target], asked, out=out, on_progress=stop)
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        load_run(out)
    assert processes() - before == 3  # the contexts, batches 1 and 2
    profile = run_profile([target], asked, out=out)
    assert processes() - before == before, "nothing is measured twice"
    assert profile.checkpoints[0].points == tuple(
        replace(mine, warm_up_s=point.warm_up_s)
        for mine, point in zip(whole.checkpoints[0].points, profile.checkpoints[0].points, strict=True)
    )
    assert [point.batch for point in profile.checkpoints[0].searches[0].points] == [1, 2, 4, 3]
    again = run_profile([target], asked, out=out)
    assert (again, processes() - before) == (profile, before)


def test_what_failed_is_measured_again(target: Target, tmp_path: Path, ends: Callable) -> None:
    out = tmp_path / "out"
    ends("context 200", "crash")
    assert run_profile([target], options(128, 256), out=out).checkpoints[0].points[1].status == FAILED
    ends("context 300", "crash")
    assert run_profile([target], options(128, 256), out=out).checkpoints[0].points[1].status == OK


@pytest.fixture
def stored(target: Target, tmp_path: Path, ends: Callable) -> Path:
    run_profile([target], options(128), out=tmp_path / "stored")
    return tmp_path / "stored"


def test_other_settings_are_refused(target: Target, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OptionError, match=r"its profile has contexts 128, this command 128, 256; name another folder"
    ):
        run_profile([target], options(128, 256), out=stored)
    with pytest.raises(OptionError, match=r"its profile has checkpoints tiny, this command tiny, b;"):
        run_profile([target, replace(target, label="b")], options(128), out=stored)
    with pytest.raises(OptionError, match="its profile has 'tiny'"):
        run_profile([replace(target, fingerprint="other")], options(128), out=stored)
    versions = {**run.provenance.package_versions(), "torch": "1.0"}
    monkeypatch.setattr(run.provenance, "package_versions", lambda: versions)
    with pytest.raises(OptionError, match="its profile has torch version"):
        run_profile([target], options(128), out=stored)


def test_a_folder_in_use_is_refused(target: Target, stored: Path) -> None:
    with storing.held(stored), pytest.raises(OutputError, match="another profile is being written there"):
        run_profile([target], options(128), out=stored)


def test_a_folder_of_other_things_is_refused(target: Target, stored: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="neither empty nor a run"):
        run_profile([target], options(128), out=tmp_path / "full")
    (stored / "profile.json").unlink()
    with pytest.raises(OutputError, match="a run that is no profile"):
        run_profile([target], options(128), out=stored)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "distill-eval profile 1"}', '{"format": "another"}'])
def test_a_damaged_profile(target: Target, stored: Path, text: str) -> None:
    (stored / "profile.json").write_text(text)
    with pytest.raises(StoreError, match=r"profile\.json is"):
        run_profile([target], options(128), out=stored)


def test_notes(target: Target, tmp_path: Path) -> None:
    strange = write_target("tiny", tmp_path / "strange")
    config = json.loads((tmp_path / "strange/config.json").read_text())
    config |= {"model_type": "strange", "max_position_embeddings": 200}
    (tmp_path / "strange/config.json").write_text(json.dumps(config))
    profile = run_profile([target, replace(strange, label="strange")], options(128, 256))
    first, second = (found.notes for found in profile.checkpoints)
    assert not any("bounds" in note or "positions" in note for note in first)
    assert second[0] == "run beyond the 200 positions of its config: context 256"
    assert second[1].startswith("no bounds: no formulas for model_type 'strange'")
    assert [point.bounds for point in profile.checkpoints[1].points] == [None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "vlm"}, "unknown backend 'vlm'; did you mean 'vllm'"),
        ({"contexts": ()}, "nothing to measure"),
        ({"contexts": (0,)}, "--contexts must be at least 1, got 0"),
        ({"throughput_contexts": (-1,)}, "--throughput-contexts must be at least 1, got -1"),
        ({"repeats": 0}, "--repeats must be at least 1"),
        ({"max_batch": 0}, "--max-batch must be at least 1"),
    ],
)
def test_mistakes(target: Target, change: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run_profile([target], replace(options(128), **change))


def test_which_checkpoints(target: Target) -> None:
    with pytest.raises(OptionError, match="nothing to profile"):
        run_profile([], options(128))
    with pytest.raises(OptionError, match="two checkpoints are called 'tiny'"):
        run_profile([target, target], options(128))
