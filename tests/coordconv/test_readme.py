"""The commands and the code in the README's section on the user's own data run as printed, and print what it shows."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "papers/coordconv/README.md"
SECTION = "Use it on your data"
NUMBER = re.compile(r"\d[\d,.]*")


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks below the heading SECTION, up to the next heading of its level: (language, text)."""
    (section,) = re.findall(rf"^## {SECTION}\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


def shape(output: str) -> list[str]:
    """Output with every number masked, line by line: numbers differ between machines. Without the lines that a slow
    machine prints on the way."""
    lines = [line for line in output.strip().splitlines() if not line.startswith("[0/1]")]
    return [NUMBER.sub("N", " ".join(line.split())) for line in lines]


@pytest.fixture(scope="module")
def printed() -> list[tuple[str, str]]:
    return blocks(README.read_text(encoding="utf-8"))


def test_the_section_has_both_commands_and_short_library_examples(printed: list[tuple[str, str]]) -> None:
    commands = "".join(text for language, text in printed if language == "bash")
    assert "-m papers.coordconv.train " in commands and "-m papers.coordconv.predict " in commands
    library = [text for language, text in printed if language == "python" and "import " in text]
    assert all(len(text.splitlines()) <= 40 for text in library) and "convert_model(" in "".join(library)


def test_everything_runs_as_printed(
    printed: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert float(re.search(r"validation error: ([\d.]+) pixels", everything)[1]) < 4
    assert float(re.search(r"mean error: ([\d.]+) pixels", everything)[1]) < 4
    assert len((work / "predictions.csv").read_text().splitlines()) == 1 + len(list((work / "drawn").iterdir()))
    assert "torch.Size([4, 6, 40, 64])" in everything and "\nTrue\n" in everything
