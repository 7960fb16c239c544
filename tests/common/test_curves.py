"""Curve files: appended, cut back on resume, torn by a kill, gathered."""

import gzip
from pathlib import Path

import pytest

from common.curves import Curves, gather, read_rows


@pytest.fixture
def curves(tmp_path: Path) -> Curves:
    curves = Curves(tmp_path / "curves.csv")
    for step in (1, 2, 3, 4):
        curves.append(step, 10 * step, step / 3, {"loss": 1 / step, "error": 0.1 * step})
    curves.close()
    return curves


def test_rows_keep_every_digit(curves: Curves) -> None:
    assert curves.path.read_text().splitlines()[0] == "step,samples,seconds,name,value"
    rows = read_rows(curves.path)
    assert rows[4] == {"step": "3", "samples": "30", "seconds": "1.000", "name": "loss", "value": repr(1 / 3)}
    assert curves.values("error") == [0.1 * step for step in (1, 2, 3, 4)] and curves.values("none") == []


def test_values_sees_rows_that_are_not_on_the_disk_yet(curves: Curves) -> None:
    curves.append(5, 50, 2.0, {"loss": 9.0})
    assert curves.values("loss")[-1] == 9.0


def test_sync_puts_rows_on_the_disk(curves: Curves) -> None:
    curves.append(5, 50, 2.0, {"loss": 9.0})
    curves.sync()
    assert read_rows(curves.path)[-1]["value"] == "9.0"


@pytest.mark.parametrize("step", [-1, 0, 2, 4, 100])
def test_cut_drops_the_rows_after_a_step_and_appending_goes_on(curves: Curves, step: int) -> None:
    before = curves.path.read_bytes().splitlines(keepends=True)
    curves.append(5, 50, 2.0, {"loss": 9.0})  # still open, as when a run is resumed in the same process
    curves.cut(step)
    kept = before[: 1 + 2 * min(max(step, 0), 4)] + ([b"5,50,2.000,loss,9.0\n"] if step > 4 else [])
    assert curves.path.read_bytes() == b"".join(kept)
    curves.append(step + 1, 0, 0.0, {"loss": 7.0})
    curves.close()
    assert curves.path.read_bytes() == b"".join(kept) + f"{step + 1},0,0.000,loss,7.0\n".encode()


def test_a_torn_last_row_is_left_out_wherever_it_was_torn(curves: Curves) -> None:
    whole = curves.path.read_bytes()
    rows = read_rows(curves.path)
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for length in range(last, len(whole)):
        curves.path.write_bytes(whole[:length])
        assert read_rows(curves.path) == rows[:-1]
        curves.cut(4)
        assert curves.path.read_bytes() == whole[:last]


@pytest.mark.parametrize("content", [b"", b"step,sam", b"step,samples,seconds,name,value\n"])
def test_an_empty_or_torn_file_is_cut_to_its_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "curves.csv").write_bytes(content)
    curves = Curves(tmp_path / "curves.csv")
    assert curves.values("loss") == []
    curves.cut(-1)
    assert curves.path.read_bytes() == b"step,samples,seconds,name,value\n"


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.csv") == [] and Curves(tmp_path / "none.csv").values("loss") == []
    assert not (tmp_path / "none.csv").exists()


def test_gathering_gives_the_same_bytes_again(curves: Curves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    awkward = 'comma, quote"'
    runs = [("e", "m", 1000, curves.path), ("e", awkward, 1001, curves.path), ("e", "none", 1000, tmp_path / "no")]
    gather(runs, tmp_path / "one.csv.gz")
    monkeypatch.setattr("time.time", lambda: 1e9)  # at another time
    gather(runs, tmp_path / "another-name.csv.gz")
    content = (tmp_path / "one.csv.gz").read_bytes()
    assert content == (tmp_path / "another-name.csv.gz").read_bytes()
    lines = gzip.decompress(content).decode().splitlines()
    assert lines[0] == "experiment,method,seed,step,samples,seconds,name,value" and len(lines) == 1 + 2 * 8
    rows = read_rows(tmp_path / "one.csv.gz")
    assert rows[8]["method"] == awkward and rows[8]["seed"] == "1001" and float(rows[2]["value"]) == 0.5
