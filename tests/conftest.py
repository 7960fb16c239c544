"""What the tests share: one thread for torch, a process to fork from that has imported everything, a toy front door."""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Start the server that LocalEngine forks its runs from; with all imported that tests run, a child costs 0.2 s."""
    from common.command import paper_names
    from common.engines import PRELOAD

    modules = ["sklearn.datasets", "tests.toy", "tests.faults", *(f"papers.{name}.module" for name in paper_names())]
    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOAD, *modules])
    forkserver.ensure_running()


class Answer(NamedTuple):
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def toy_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose only paper is the toy, as the front door sees it; the current folder is beside it."""
    from common import command, paper
    from tests import toy

    root = tmp_path / "repository"
    (root / "papers" / "toy").mkdir(parents=True)
    (root / "papers" / "toy" / "reproduce.py").touch()
    (root / "README.md").write_text("# All\n\n<!-- generated: papers -->\n<!-- end generated -->\n")
    (root / "papers" / "toy" / "README.md").write_text(
        "# Toy\n\n<!-- generated: results quick -->\n<!-- end generated -->\n"
    )
    monkeypatch.setattr(command, "ROOT", root)
    monkeypatch.setattr(paper, "ROOT", root)
    monkeypatch.setitem(sys.modules, "papers.toy.reproduce", SimpleNamespace(PAPER=toy.PAPER))
    monkeypatch.delenv("DATA_DIR", raising=False)
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    return root


@pytest.fixture
def papers(toy_repository: Path, capsys: pytest.CaptureFixture[str], fork_server: None) -> Command:
    """`python -m papers ...` in this process, on the repository of the toy."""
    from common.command import front_door
    from common.errors import main

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(lambda: front_door(arguments), debug="--debug" in arguments)
        printed = capsys.readouterr()
        return Answer(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a paper's command as the shell would: (exit status, stdout, stderr)."""
    from common.errors import main

    def call(command: Callable[[Sequence[str]], int], *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(lambda: command([str(argument) for argument in arguments]), debug=False)
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are a line of text, for tests that are about something else: drawing takes a second."""
    import common.report

    def write(document: dict, curves: Path, bench: dict | None, folder: Path, pictures: list) -> Path:
        (folder / "report.html").write_text(f"{len(document['runs'])} runs")
        return folder / "report.html"

    monkeypatch.setattr(common.report, "write_report", write)
