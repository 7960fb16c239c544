"""`make new-paper`: what it writes runs and keeps the rules of the house as it is; what it refuses leaves nothing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import command
from common.errors import UserError, main
from common.new_paper import LONGEST, NEXT_STEPS, write_paper

ROOT = Path(__file__).resolve().parents[2]
README = "# All\n\n<!-- generated: papers -->\n\n*Not recorded yet.*\n\n<!-- end generated -->\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The outline of a repository: folders, README and the settings of ruff."""
    root = tmp_path / "repository"
    for folder in ("papers/taken", "tests/common", "tests/half"):
        (root / folder).mkdir(parents=True)
    (root / "tests" / "helper.py").touch()
    (root / "README.md").write_text(README, encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", root)
    # So that ruff knows which imports are the repository's own.
    (root / "common").symlink_to(ROOT / "common")
    return root


def everything(root: Path) -> dict[str, bytes]:
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in files.items()}


def call(root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(command, "ROOT", root)
    with pytest.raises(SystemExit) as ended:
        main(lambda: command.front_door(arguments), debug=False)
    return int(ended.value.code or 0)


def test_a_new_paper_passes_all_tests_but_for_the_results_that_only_a_run_can_write(tmp_path: Path) -> None:
    """Its smoke preset is among its own tests."""
    shutil.copytree(ROOT / "common", tmp_path / "common")
    for folder, files in {
        "": ["pyproject.toml"],
        "papers": ["__init__.py", "__main__.py"],
        "tests": ["conftest.py", "test_repository.py"],
    }.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        for file in files:
            shutil.copy(ROOT / folder / file, tmp_path / folder)
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    write_paper("demo", tmp_path)
    assert "| [Demo](papers/demo/README.md) | `demo` |" in (tmp_path / "README.md").read_text(encoding="utf-8")

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)

    listed = python("-m", "papers", "list")
    assert listed.returncode == 0, listed.stderr
    for preset in ("smoke", "quick", "gpu", "paper"):
        assert re.search(rf"^ demo +{preset} ", listed.stdout, re.MULTILINE), listed.stdout

    tests = ("tests/demo", "tests/test_repository.py", "-k", "demo or test_generated_tables")
    done = python("-m", "pytest", "--basetemp=temporary", *tests)
    missing = [line for line in done.stdout.splitlines() if line.startswith("E ")]
    assert missing[0].split() == ["E", "AssertionError:", "results/quick.json"], done.stdout
    assert re.search(r"^1 failed, \d+ passed(, \d+ deselected)? in", done.stdout, re.MULTILINE), done.stdout
    assert list((tmp_path / "temporary").glob("*/demo/smoke/results.json"))


@pytest.mark.skipif(shutil.which("ruff", path=Path(sys.executable).parent) is None, reason="ruff is not installed")
def test_what_is_written_passes_the_lint_whatever_the_length_of_its_name(root: Path) -> None:
    for name in ("x", "ten_chars_", "z" * LONGEST):
        write_paper(name, root)
    ruff = [sys.executable, "-m", "ruff"]
    for action in (["check"], ["format", "--diff"]):
        command_line = [*ruff, *action, "--no-cache", "papers", "tests"]
        done = subprocess.run(command_line, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_says_what_comes_next(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(root)
    assert call(root, monkeypatch, "new-paper", "deep_sets") == 0
    printed = capsys.readouterr().out
    new = {name for name, content in everything(root).items() if content and name not in before}
    assert new == set(re.findall(r"^wrote (.*)$", printed, re.MULTILINE)) - {"papers/deep_sets/__init__.py"}
    assert printed.endswith(NEXT_STEPS.replace("NAME", "deep_sets") + "\n")
    for step in ("reproduce PAPER=deep_sets PRESET=smoke", "reproduce PAPER=deep_sets ", "record PAPER=deep_sets"):
        assert f"make {step}" in printed
    assert (root / "papers/deep_sets/README.md").read_text(encoding="utf-8").startswith("# Deep sets\n")
    assert not [name for name in everything(root) if "tmp" in name or "new-paper" in name]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "what is the new paper's name?"),
        ("Demo", "lower-case"),
        ("1st", "a letter first"),
        ("_demo", "a letter first"),
        ("a-b", "lower-case"),
        ("a b", "lower-case"),
        ("a\n", "lower-case"),
        ("../up", "lower-case"),
        ("café", "a-z"),
        ("a" * (LONGEST + 1), f"at most {LONGEST} characters"),
        ("lambda", "a keyword of Python"),
        ("papers", "another folder of the repository"),
        ("common", "another folder of the repository"),
        ("taken", "papers/taken is there already"),
        ("half", "tests/half is there already"),
        ("helper", "tests/helper.py is there already"),
    ],
)
def test_a_bad_name_is_one_line_and_leaves_nothing(
    name: str, complaint: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(root)
    assert call(root, monkeypatch, "new-paper", name) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert complaint in printed.err
    assert everything(root) == before


def test_without_a_name_it_asks_for_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root, monkeypatch, "new-paper") == 2
    assert "NAME=demo" in capsys.readouterr().err


def test_a_broken_readme_leaves_nothing(root: Path) -> None:
    (root / "README.md").write_text("<!-- generated: papers -->\n", encoding="utf-8")
    before = everything(root)
    with pytest.raises(UserError, match="end generated"):
        write_paper("demo", root)
    assert everything(root) == before


@pytest.mark.parametrize("failing", ["write_text", "rename"])
def test_a_full_disk_half_way_leaves_nothing(failing: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(root)
    working, calls = getattr(Path, failing), []

    def second_fails(path: Path, *arguments: object, **options: object) -> object:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return working(path, *arguments, **options)

    monkeypatch.setattr(Path, failing, second_fails)
    with pytest.raises(OSError, match="No space left"):
        write_paper("demo", root)
    monkeypatch.undo()
    assert everything(root) == before
