"""The commands and the code in the README's section on the user's own environment run as printed, and print what it
shows."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from tests import printed as printing
from tests.printed import Blocks, blocks_of, run_as_printed

MODULE = "# my_env.py\n"


@pytest.fixture(scope="module")
def printed() -> Iterator[Blocks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(printing, "SECTION", "Use it on your own environment")
        # Returns have signs, which may differ between machines as numbers do.
        patch.setattr(printing, "NUMBER", re.compile(r"-?\d[\d,.]*(e[-+]\d+)?"))
        yield blocks_of("diayn")


def test_the_section_has_both_commands_and_short_library_examples(printed: Blocks) -> None:
    commands = "".join(text for language, text in printed if language == "bash")
    assert "-m papers.diayn.train " in commands and "-m papers.diayn.rollout " in commands
    library = [text for language, text in printed if language == "python"]
    assert library[0].startswith(MODULE) and all(len(text.splitlines()) <= 40 for text in library)
    used = "".join(library[1:])
    assert all(name in used for name in ("load_skills(", "make_environments(", ".act(", "select_skill(", "learn("))


def test_everything_runs_as_printed(printed: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, module), *others = printed
    (tmp_path / "work").mkdir()
    (tmp_path / "work/my_env.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path / "work")
    try:
        everything, work = run_as_printed(others, tmp_path, monkeypatch)
    finally:
        sys.modules.pop("my_env", None)
        gymnasium.registry.pop("Puck-v0", None)
    assert float(re.search(r"names the skill in (\d+) % of the states", everything)[1]) > 50
    table = json.loads((work / "seen/skills.json").read_text())
    assert table["skills"][table["best"]]["return_mean"] > 5
    assert {"skills.png", "skill-00.gif", "skill-03-plot.png"} <= {path.name for path in (work / "seen").iterdir()}
    low, high, best = map(float, re.search(r"returns of (\S+) to (\S+), the best skill's (\S+)", everything).groups())
    assert low < 0 < high and best > 5
