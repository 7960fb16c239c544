"""The commands and the code in the README's section on the user's own data run as printed, and print what it shows."""

import re
from pathlib import Path

import pytest

from tests.printed import Blocks, blocks_of, run_as_printed


@pytest.fixture(scope="module")
def printed() -> Blocks:
    return blocks_of("coordconv")


def test_the_section_has_both_commands_and_short_library_examples(printed: Blocks) -> None:
    commands = "".join(text for language, text in printed if language == "bash")
    assert "-m papers.coordconv.train " in commands and "-m papers.coordconv.predict " in commands
    library = [text for language, text in printed if language == "python" and "import " in text]
    assert all(len(text.splitlines()) <= 40 for text in library) and "convert_model(" in "".join(library)


def test_everything_runs_as_printed(printed: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything, work = run_as_printed(printed, tmp_path, monkeypatch)
    assert float(re.search(r"validation error: ([\d.]+) pixels", everything)[1]) < 4
    assert float(re.search(r"mean error: ([\d.]+) pixels", everything)[1]) < 4
    assert len((work / "predictions.csv").read_text().splitlines()) == 1 + len(list((work / "drawn").iterdir()))
    assert "torch.Size([4, 6, 40, 64])" in everything and "\nTrue\n" in everything
