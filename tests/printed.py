"""The commands and the code in a paper's README, run as printed, and their output beside the one that is shown."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTION = "Use it on your data"
NUMBER = re.compile(r"\d[\d,.]*")
Blocks = list[tuple[str, str]]


def blocks_of(paper: str) -> Blocks:
    """The fenced blocks below the heading SECTION, up to the next heading of its level: (language, text)."""
    page = (ROOT / "papers" / paper / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {SECTION}\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


def shape(output: str) -> list[str]:
    """Output with every number masked, line by line: numbers differ between machines. Without the lines that a slow
    machine prints on the way."""
    lines = [line for line in output.strip().splitlines() if not line.startswith("[0/1]")]
    return [NUMBER.sub("N", " ".join(line.split())) for line in lines]


def run_as_printed(printed: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Run every block in its order in an empty folder: all that was printed, and the folder.

    Fails where a command does, or where a `text` block is not what the block before it printed, but for numbers.
    """
    work = tmp_path / "work"
    for name in ("bin/python", "work/.venv/bin/python"):
        # A link to the interpreter would not know its environment.
        interpreter = tmp_path / name
        interpreter.parent.mkdir(parents=True)
        interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        interpreter.chmod(0o755)
    monkeypatch.chdir(work)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    output, everything = "", ""
    for language, text in printed:
        if language == "text":
            assert shape(output) == shape(text)
            continue
        if language == "python":
            # In this process, which has imported torch already.
            captured = io.StringIO()
            with contextlib.redirect_stdout(captured):
                exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
            output = captured.getvalue()
        else:
            done = subprocess.run(["bash", "-ec", text], cwd=work, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
            output = done.stdout
        everything += output
    return everything, work
