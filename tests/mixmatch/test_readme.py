"""The commands and the code in the README's section on the user's own data run as printed, and print what it shows."""

import re
from pathlib import Path

import pytest

from tests.printed import Blocks, blocks_of, run_as_printed


@pytest.fixture(scope="module")
def printed() -> Blocks:
    return blocks_of("mixmatch")


def test_the_section_has_both_commands_and_a_short_library_example(printed: Blocks) -> None:
    commands = "".join(text for language, text in printed if language == "bash")
    assert "-m papers.mixmatch.train " in commands and "-m papers.mixmatch.predict " in commands
    (library,) = [text for language, text in printed if language == "python" and "MixMatch(" in text]
    assert len(library.splitlines()) <= 40


def test_everything_runs_as_printed(printed: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything, work = run_as_printed(printed, tmp_path, monkeypatch)
    assert float(re.search(r"test error: ([\d.]+) %", everything)[1]) < 30
    images = list((work / "digits" / "unlabeled").iterdir())
    assert len((work / "predictions.csv").read_text().splitlines()) == 1 + len(images)
    assert float(re.search(r"accuracy on the unlabelled part: ([\d.]+)", everything)[1]) > 0.6
