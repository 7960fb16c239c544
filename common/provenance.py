"""Where a number came from: commit, command, versions, hardware. No absolute path and no host name goes in."""

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from common.codehash import ROOT

LIBRARIES = ("torch", "pytorch-lightning", "numpy", "scipy", "scikit-learn")


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


@functools.cache
def commit() -> tuple[str | None, bool]:
    """Commit hash of the checkout (None outside git) and whether tracked files differ from it."""
    return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--untracked-files=no"))


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def hardware(device: str) -> dict[str, Any]:
    """Processor, cores this process may use and, for a run on a GPU, the GPU's name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    found: dict[str, Any] = {
        "device": device,
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def command_line() -> str:
    """The command as a reader would type it: `python -m module arguments`, with every absolute path cut to its name."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    words = [os.path.basename(word.rstrip("/")) if os.path.isabs(word) else word for word in sys.argv[1:]]
    words = ["=".join([w.partition("=")[0], os.path.basename(w.partition("=")[2])]) if "=/" in w else w for w in words]
    return " ".join(["python -m", module, *words])


def of_run(code: str, data: dict[str, str], device: str) -> dict[str, Any]:
    """Provenance of one run, as results.json holds it."""
    revision, dirty = commit()
    return {
        "commit": revision,
        "dirty": dirty,
        "code": code,
        "data": data,
        "versions": versions(),
        "hardware": hardware(device),
    }


def of_results() -> dict[str, Any]:
    """Provenance of a results file."""
    revision, dirty = commit()
    return {"commit": revision, "dirty": dirty, "command": command_line(), "versions": versions()}
