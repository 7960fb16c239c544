"""What a person sees while runs go on, and where the files say that numbers came from."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from common import progress, provenance
from common.codehash import ROOT
from common.engines import Event
from common.progress import Display
from common.runs import RunSpec
from tests import toy


@pytest.fixture
def specs(tmp_path: Path) -> list[RunSpec]:
    return [toy.spec_of(tmp_path / name, toy.PLAIN) for name in ("a", "b")]


def end(spec: RunSpec, **record: Any) -> Event:
    return Event("end", spec, record={"status": "finished", "error": None, "seconds": 61.4, "metrics": {}, **record})


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120, color_system=None), text


def test_plain_lines_where_there_is_no_terminal(specs: list[RunSpec]) -> None:
    where, text = console(terminal=False)
    with Display(specs, where) as display:
        display(Event("progress", specs[0], 5, 10, {"loss": 0.5}))
        display(end(specs[0], metrics={"error": 12.3456, "time": {"mean": 2.0, "std": 0.1, "n": 3}}))
        display(end(specs[1], status="failed", error="ValueError: [red]odd[/red]"))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("[1/2] line/a/seed-1000  finished  61 s  error 12.35  time 2  about 0:0")
    # Nothing in a message is taken as markup.
    assert lines[1].startswith("[2/2] line/b/seed-1000  failed  61 s  ValueError: [red]odd[/red]") and len(lines) == 2


def test_a_sign_of_life_now_and_then(specs: list[RunSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    where, text = console(terminal=False)
    with Display(specs, where) as display:
        display(Event("progress", specs[0], 5, 10, {"loss": 0.5}))
        assert text.getvalue() == ""
        monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
        display(Event("progress", specs[0], 7, 10, {"loss": 0.5}))
    assert "line/a/seed-1000 7/10" in text.getvalue()


def test_a_live_table_on_a_terminal(specs: list[RunSpec]) -> None:
    where, text = console(terminal=True)
    with Display(specs, where) as display:
        display(Event("progress", specs[0], 5, 10, {"loss": 0.25}))
        display(end(specs[1], metrics={"error": 1.0}))
    shown = text.getvalue()
    assert (
        "line/a/seed-1000" in shown and "5/10" in shown and "loss 0.25" in shown and "[1/2] line/b/seed-1000" in shown
    )
    assert "1/2" in shown.splitlines()[-1] or "1/2" in shown


def test_time_left(specs: list[RunSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    where, _ = console(terminal=False)
    display = Display(specs, where)
    assert display._left() == ""
    now[0] += 30
    display(Event("progress", specs[0], 5, 10, {}))
    assert display._left() == "about 1:30 left"  # a quarter of the work took 30 s
    display(end(specs[0]))
    assert display._left() == "about 0:30 left"


# ---------------------------------------------------------------- provenance


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["reproduce", "toy", "--seeds", "5"], "python -m papers reproduce toy --seeds 5"),
        (["reproduce", "toy", "--out", "/home/me/runs"], "python -m papers reproduce toy --out runs"),
        (["reproduce", "toy", "--out", "/home/me/runs/"], "python -m papers reproduce toy --out runs"),
        (["reproduce", "toy", "--out=/home/me/runs"], "python -m papers reproduce toy --out=runs"),
        (["reproduce", "toy", "--out", "../runs"], "python -m papers reproduce toy --out ../runs"),
    ],
)
def test_the_command_as_a_reader_would_type_it(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="papers.__main__")))
    monkeypatch.setattr(sys, "argv", ["/home/me/papers/__main__.py", *arguments])
    assert provenance.command_line() == line


def test_where_a_number_came_from() -> None:
    source = provenance.of_run("code", {"digits": "abc"}, "cpu")
    assert source["code"] == "code" and source["data"] == {"digits": "abc"} and source["hardware"]["device"] == "cpu"
    assert source["versions"]["python"] == ".".join(map(str, sys.version_info[:3])) and "torch" in source["versions"]
    assert source["hardware"]["cores"] >= 1 and source["hardware"]["processor"]
    text = json.dumps(source)
    assert str(ROOT) not in text and str(Path.home()) not in text


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    provenance.commit.cache_clear()
    try:
        assert provenance.commit() == (None, False)
        monkeypatch.setenv("PATH", "")
        provenance.commit.cache_clear()
        assert provenance.commit() == (None, False)
    finally:
        provenance.commit.cache_clear()
