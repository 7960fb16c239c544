"""What a benchmark file holds, where it is measured and how rows merge; no test asserts a time."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from common import bench
from common.bench import Setting, compare, measure, row, run_bench, settings
from common.errors import UserError
from common.reproduce import Options
from common.runs import Execution
from common.schemas import validate
from common.timing import interleaved

NOTHING = {"cuda": 0, "mps": False, "amx_bf16": False}
PLACE = Setting(Execution(), "cpu (test)")


def rows(setting):
    yield compare(setting, "sum", "us/item", lambda: sum(range(10)), lambda: sum(range(100)), 0.0, 3, per_call=10)
    yield row(setting, "threads", "us", float(os.environ["OMP_NUM_THREADS"]))


def broken(setting):
    yield row(setting, "first", "s", 1.0)
    raise ArithmeticError("in the child")


def misused(setting):
    yield from ()
    raise UserError("mend it")


def dying(setting):
    yield row(setting, "first", "s", 1.0)
    os._exit(7)


def paper(name: str):
    return SimpleNamespace(name="toy", title="A toy", bench=f"tests.common.test_bench:{name}")


def test_paths_are_called_in_turns_and_medians_are_compared():
    calls = []
    assert len(interleaved([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3, warm_up=2)) == 2
    assert calls == ["a", "b"] * 5


def test_a_smoke_row_says_so_and_calls_once():
    calls = []
    found = compare(replace(PLACE, small=True), "x", "ms", lambda: calls.append(1), lambda: calls.append(2), 0.5, 9)
    assert calls == [1, 2] and found["case"] == "x (smoke)" and found["equivalence"] == 0.5


def test_rows_keep_four_digits_and_units():
    found = row(PLACE, "x", "ms", 1.23456, 12.3456, 0.5, 1.23456e-7)
    assert (found["fast"], found["plain"], found["ratio"], found["floor"]) == (1.235, 12.35, 10.0, 0.5)
    assert found["equivalence"] == 1.235e-7 and found["threads"] == 1 and found["device"] == "cpu (test)"
    assert row(PLACE, "x", "ms", 1.0)["ratio"] is None


def test_where_it_is_measured():
    found = settings(Options(), NOTHING, cores=4)
    assert [s.execution.threads for s in found] == [1, 2] and {s.execution.precision for s in found} == {"float32"}
    assert found[0].label.startswith("cpu (")
    assert [s.execution.threads for s in settings(Options(), NOTHING, cores=1)] == [1]
    (small,) = settings(Options(preset="smoke"), NOTHING, cores=4)
    assert small.small
    fast = settings(Options(), {**NOTHING, "amx_bf16": True}, cores=2)
    assert fast[1].execution.precision == "bfloat16" and "AMX" in fast[1].label
    with pytest.raises(UserError, match="no cuda device"):
        settings(Options(device="cuda"), NOTHING, 2)
    with pytest.raises(UserError, match="tpu"):
        settings(Options(device="tpu"), NOTHING, 2)


def test_a_gpu_is_taken_with_its_fastest_settings(monkeypatch):
    monkeypatch.setattr(bench.provenance, "hardware", lambda device: {"processor": "p", "gpu": "G"})
    (setting,) = settings(Options(), {**NOTHING, "cuda": 1}, cores=8)
    assert setting.label == "cuda (G)"
    assert setting.execution == Execution("cuda", "bfloat16", compile=True)


def test_the_file_follows_the_schema_and_keeps_other_devices(tmp_path, monkeypatch, fork_server):
    monkeypatch.setattr(bench, "cores", lambda: 2)
    path = tmp_path / "toy" / "bench.json"
    path.parent.mkdir()
    elsewhere = row(replace(PLACE, label="cuda (G)"), "sum", "ms", 1.0)
    old = row(settings(Options(), NOTHING, 1)[0], "sum", "us/item", 123.0)
    document = {"schema_version": 1, "paper": "toy", "provenance": {}, "rows": [elsewhere, old]}
    path.write_text(json.dumps(document))
    with open(tmp_path / "output.txt", "w", encoding="utf-8") as output:
        assert run_bench(paper("rows"), Options(out=str(tmp_path), device="cpu"), Console(file=output, width=100)) == 0
    document = json.loads(path.read_text())
    validate(document, "bench")
    assert elsewhere in document["rows"] and old not in document["rows"] and len(document["rows"]) == 5
    threads = {(r["case"], r["threads"]): r["fast"] for r in document["rows"] if r["device"] != "cuda (G)"}
    assert threads[("threads", 1)] == 1.0 and threads[("threads", 2)] == 2.0
    assert set(document["provenance"]) == {"commit", "dirty", "command", "versions", "hardware"}
    text = (tmp_path / "output.txt").read_text()
    assert "us/item" in text and f"wrote {path}".replace("\n", "") in text.replace("\n", "")


def test_what_goes_wrong_in_the_child_is_raised_here(tmp_path, fork_server):
    with pytest.raises(RuntimeError, match="in the child"):
        list(measure("tests.common.test_bench:broken", PLACE))
    with pytest.raises(UserError, match="mend it"):
        list(measure("tests.common.test_bench:misused", PLACE))
    with pytest.raises(RuntimeError, match="exit status 7"):
        list(measure("tests.common.test_bench:dying", PLACE))
    with pytest.raises(UserError, match="no benchmark"):
        run_bench(SimpleNamespace(name="toy", bench=None), Options(out=str(tmp_path)), Console())
