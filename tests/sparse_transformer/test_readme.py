"""The commands and the code in the README's section on the user's own data run as printed, and print what it shows."""

import re
from pathlib import Path

import pytest

from tests.printed import Blocks, blocks_of, run_as_printed


@pytest.fixture(scope="module")
def printed() -> Blocks:
    return blocks_of("sparse_transformer")


def test_the_section_has_both_commands_and_short_library_examples(printed: Blocks) -> None:
    commands = "".join(text for language, text in printed if language == "bash")
    assert "-m papers.sparse_transformer.train " in commands and "-m papers.sparse_transformer.sample " in commands
    library = [text for language, text in printed if language == "python" and "import " in text]
    assert all(len(text.splitlines()) <= 40 for text in library)
    used = "".join(library)
    assert "sparse_attention(" in used and "SparseSelfAttention(" in used and "register(" in used


def test_everything_runs_as_printed(printed: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything, work = run_as_printed(printed, tmp_path, monkeypatch)
    assert float(re.search(r"test: ([\d.]+) bits per byte", everything)[1]) < 1.5
    assert "The " in (work / "stories.txt").read_text()
    assert float(re.search(r"bits per byte after 40 steps: ([\d.]+)", everything)[1]) < 1
