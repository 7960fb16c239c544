"""The commands and the code in the paper's README run as printed, and print what the README shows (but for numbers)."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "papers/mixmatch/README.md"
SECTIONS = ("Use it on your data", "Use it as a library")
NUMBER = re.compile(r"\d[\d,.]*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a section: its language and text."""

    section: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks under the headings SECTIONS, in the page's order."""
    found, section = [], ""
    for part in re.split(r"^(?=#{1,6} )", page, flags=re.MULTILINE):
        heading = re.match(r"#{1,2} (.*)", part)
        section = heading.group(1).strip() if heading else section
        if section in SECTIONS:
            fences = re.findall(r"^```(\w+)\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
            found += [Block(section, language, text) for language, text in fences]
    return found


def commands(text: str) -> list[tuple[str, str]]:
    """The `$` commands of a console block (a backslash at a line's end continues it), each with the output below it."""
    parts = re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def shape(output: str) -> list[str]:
    """Output with every number masked, line by line: numbers differ between machines. Without the lines that a slow
    machine prints on the way."""
    lines = [line for line in output.strip().splitlines() if not line.startswith("[0/1]")]
    return [NUMBER.sub("N", " ".join(line.split())) for line in lines]


@pytest.fixture(scope="module")
def printed() -> list[Block]:
    return blocks(README.read_text(encoding="utf-8")) if README.exists() else []


def test_the_sections_have_commands_and_code(printed: list[Block]) -> None:
    kinds = [(block.section, block.language) for block in printed]
    assert ("Use it on your data", "console") in kinds and ("Use it as a library", "python") in kinds
    run = [command for block in printed if block.language == "console" for command, _ in commands(block.text)]
    for module in ("train", "predict"):
        assert any(f"python -m papers.mixmatch.{module} " in command for command in run)
    (library,) = [block.text for block in printed if block.section == "Use it as a library"]
    assert len(library.splitlines()) <= 40


def test_everything_runs_as_printed(printed: list[Block], tmp_path: Path) -> None:
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    (tmp_path / "work").mkdir()

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout

    for block in printed:
        if block.language == "python":
            run("python", "-c", block.text)
        elif block.language == "console":
            for command, shown in commands(block.text):
                assert shape(run("bash", "-o", "pipefail", "-c", command)) == shape(shown), command
