"""Faults and misuse: each is one clear line that says what to do, exit status 2, no traceback, and nothing is lost."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import command, errors
from common.codehash import ROOT
from common.errors import Diverged, UserError
from common.runs import read_record
from tests import faults, toy
from tests.conftest import Answer, Command
from tests.faults import FULL_DISK, Fault, arm

Contents = dict[Path, bytes]


def refused(answer: Answer, *words: str) -> None:
    """One line that begins with `error:` and holds the words; status 2."""
    assert answer.status == 2, answer
    assert re.fullmatch(r"error: [^\n]+\n", answer.err), answer.err
    assert "Traceback" not in answer.out + answer.err
    for word in words:
        assert word in answer.err, answer.err


def contents(folder: Path) -> Contents:
    """Every file below a folder but the locks, which hold the number of the last process."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.fixture
def written(papers: Command, undrawn: None) -> Contents:
    """What stands in runs/ after a whole command."""
    assert papers("reproduce", "toy", "--experiments", "plain", "--seeds", "1").status == 0
    return contents(Path("runs"))


# ---------------------------------------------------------------- misspelt

MISUSE = {
    "action": (["reproduse", "toy"], ["no action 'reproduse'", "reproduce"]),
    "paper": (["reproduce", "toys"], ["no paper 'toys'; there is toy"]),
    "no paper": (["reproduce"], ["which paper?", "toy"]),
    "preset": (["reproduce", "toy", "--preset", "fast"], ["no preset 'fast'", "quick"]),
    "method": (["reproduce", "toy", "--methods", "good,best"], ["no method 'best'", "good, bad"]),
    "experiment": (["reproduce", "toy", "--experiments", "plane"], ["no experiment 'plane'", "plain"]),
    "method elsewhere": (["reproduce", "toy", "--experiments", "chain", "--methods", "good"], ["nothing to run"]),
    "device": (["reproduce", "toy", "--device", "tpu"], ["no device 'tpu'", "cuda"]),
    "engine": (["reproduce", "toy", "--engine", "slurm"], ["no engine 'slurm'", "serial"]),
    "precision": (["reproduce", "toy", "--precision", "int8"], ["no precision 'int8'", "bfloat16"]),
    "compile": (["reproduce", "toy", "--compile", "maybe"], ["no compile 'maybe'", "auto"]),
    "seeds": (["reproduce", "toy", "--seeds", "1-5"], ["bad seeds '1-5'", "1000,1003"]),
    "mixed seeds": (["reproduce", "toy", "--seeds", "1,1000"], ["run them apart"]),
    "one seed": (["reproduce", "toy", "--seeds", "1003"], ["write '1003,'"]),
    "time limit": (["reproduce", "toy", "--time_limit", "-1"], ["time limit", "above 0"]),
    "time limit type": (["reproduce", "toy", "--time_limit", "soon"], ["time_limit"]),
    "parallel": (["reproduce", "toy", "--parallel", "0"], ["1 or more"]),
    "parallel type": (["reproduce", "toy", "--parallel", "two"], ["parallel"]),
    "option": (["reproduce", "toy", "--sedes", "5"], ["--sedes"]),
    "option without a value": (["reproduce", "toy", "--seeds"], ["--seeds"]),
    "too many words": (["reproduce", "toy", "quick"], ["quick"]),
    "preset of a report": (["report", "toy", "--preset", "fast"], ["no preset 'fast'"]),
    "no benchmark": (["bench", "toy"], ["no benchmark"]),
    "nothing to report": (["report", "toy"], ["nothing to report", "make reproduce"]),
    "nothing to record": (["record", "toy"], ["nothing to record", "make reproduce PAPER=toy PRESET=quick"]),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_answered_at_once(name: str, papers: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, words = MISUSE[name]
    refused(papers(*arguments), *words)
    assert not list(Path("runs").rglob("run.json"))
    shown = papers(*arguments, "--debug")
    assert shown.status == 2 and "Traceback" in shown.err and shown.err.splitlines()[-1].startswith("error: ")


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_a_gpu_that_is_not_there(papers: Command) -> None:
    refused(papers("reproduce", "toy", "--device", "cuda"), "no cuda device", "DEVICE=cpu")
    refused(papers("reproduce", "toy", "--preset", "gpu"), "made for a GPU and none was found", "DEVICE=cpu")
    assert not Path("runs").exists()


def test_a_preset_for_a_gpu_on_a_cpu_when_told(papers: Command, undrawn: None) -> None:
    assert papers("reproduce", "toy", "--preset", "gpu", "--device", "cpu", "--seeds", "1").status == 0


# ---------------------------------------------------------------- data


def test_a_data_dir_that_does_not_exist(papers: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in (tmp_path / "none", Path(__file__)):
        monkeypatch.setenv("DATA_DIR", str(path))
        refused(papers("reproduce", "toy", "--preset", "data"), "DATA_DIR", str(path), "not a folder")
    assert not Path("runs").exists()


def test_nothing_left_to_run(papers: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.location._reachable", lambda *_: False)
    answer = papers("reproduce", "toy", "--preset", "data", "--experiments", "absent,present")
    refused(answer, "nothing left to run", "no experiment has its data")
    missing = [line for line in answer.out.splitlines() if line.startswith("not run: ")]
    assert len(missing) == 2 and all("DATA_DIR" in line for line in missing) and not Path("runs").exists()


def test_a_data_set_that_nobody_knows(papers: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.paper import DataSource

    unknown = replace(toy.of_plain("unknown", good={}), data=(DataSource("cifar11"),))
    paper = replace(toy.PAPER, presets=(replace(toy.PAPER.preset("quick"), experiments=(unknown,)),))
    monkeypatch.setattr(command, "load_paper", lambda name: paper)
    answer = papers("reproduce", "toy")
    refused(answer, "nothing left to run")
    assert "cifar11" in answer.out and "cifar10" in answer.out


def test_a_corrupt_file_found_later_fails_its_run(
    papers: Command, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(toy.of_plain("plain", bad={"do": "user error"}, good={}), seeds=1)
    paper = replace(toy.PAPER, presets=(replace(toy.PAPER.preset("quick"), experiments=(broken,)),))
    monkeypatch.setattr(command, "load_paper", lambda name: paper)
    answer = papers("reproduce", "toy")
    assert answer.status == 1 and answer.err == "" and "the toy is not wound up: wind it up" in answer.out
    assert "good/seed-1000  finished" in answer.out


# ---------------------------------------------------------------- the output folder


def _file_at(path: str) -> Callable[[], str]:
    def prepare() -> str:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("a file")
        return "out"

    return prepare


UNWRITABLE: dict[str, Callable[[], str]] = {
    "a file is in the way": _file_at("out"),
    "a file is in the way of the paper": _file_at("out/toy"),
    "a file is in the way of a run": _file_at("out/toy/quick/plain/good"),
    "a device": lambda: "/dev/null/out",
    "no folder can be made there": lambda: "/proc/out",
    "the name is too long": lambda: "x" * 300,
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_an_output_folder_that_cannot_be_written(name: str, papers: Command, undrawn: None) -> None:
    out = UNWRITABLE[name]()
    before = contents(Path())
    answer = papers("reproduce", "toy", "--experiments", "plain", "--seeds", "1", "--methods", "good", "--out", out)
    refused(answer, out)
    assert {path: content for path, content in contents(Path()).items() if path in before} == before


def test_a_folder_without_permission(papers: Command, undrawn: None) -> None:
    # As root every folder can be written, so the system call itself refuses.
    with arm(Fault("tempfile:TemporaryFile", number=-errno.EACCES)):
        answer = papers("reproduce", "toy", "--out", "locked")
    refused(answer, "cannot write the output folder locked", "Permission denied")
    assert not list(Path("locked").rglob("*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_disk_that_fails_while_the_report_is_written(
    number: int, papers: Command, written: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = number in (errno.ENOSPC, errno.EDQUOT)
    with arm(Fault("common.files:os.replace", 1, number=-number)):
        answer = papers("report", "toy")
    refused(answer, "the disk is full (some/file)" if full else "cannot write some/file", "free" if full else "OUT=")
    assert contents(Path("runs")) == written


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB; not everybody may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_fills_up_while_a_run_is_training(papers: Command, undrawn: None, small_disk: Path) -> None:
    arguments = (
        "reproduce",
        "toy",
        "--preset",
        "trained",
        "--seeds",
        "1",
        "--engine",
        "serial",
        "--out",
        str(small_disk),
    )
    ballast = small_disk / "ballast"
    # Enough for the first run, not for the second.
    ballast.write_bytes(bytes(180 * 1024))
    answer = papers(*arguments)
    refused(answer, "the disk is full", str(small_disk), "run the same command again")
    first, second = (small_disk / "toy/trained/line" / method / "seed-1000" for method in ("wet", "dry"))
    kept = read_record(first)
    assert kept is not None and kept["status"] == "finished", answer
    ballast.unlink()
    before = contents(first)
    answer = papers(*arguments)
    assert answer.status == 0 and "1 of 2 runs are there already" in answer.out and contents(first) == before
    whole = toy.spec_of(small_disk.parent / "whole", dropout=0.0)
    assert faults.run_with(whole) == 0
    assert toy.end_state(second)["module"] == toy.end_state(whole.folder)["module"]


def test_a_disk_that_is_full_at_the_start(papers: Command, undrawn: None) -> None:
    with arm(Fault("tempfile:TemporaryFile", number=FULL_DISK)):
        refused(papers("reproduce", "toy"), "cannot write the output folder runs", "No space left on device")


# ---------------------------------------------------------------- two at once, other versions, broken files


def test_two_processes_on_one_run(papers: Command, undrawn: None, written: Contents) -> None:
    import multiprocessing

    receiver, sender = multiprocessing.Pipe(duplex=False)
    holder = faults.start(faults.hold, Path("runs/toy/quick/plain/bad/.seed-1001.lock").absolute(), sender)
    assert receiver.recv() == "held"
    answer = papers("reproduce", "toy", "--experiments", "plain", "--seeds", "1001,1002", "--engine", "serial")
    refused(answer, f"in use by process {holder.pid}", "wait for it, or stop it")
    # What was finished before the trouble stays, and the same command goes on from there.
    record = read_record(Path("runs/toy/quick/plain/good/seed-1001"))
    assert record is not None and record["status"] == "finished"
    holder.kill()
    holder.join()
    again = papers("reproduce", "toy", "--experiments", "plain", "--seeds", "1001,1002", "--engine", "serial")
    assert again.status == 0 and "1 of 4 runs are there already" in again.out
    now = contents(Path("runs"))
    assert all(now[path] == content for path, content in written.items() if "seed-1000" in str(path))


def _other_version(text: str) -> str:
    return json.dumps({**json.loads(text), "schema_version": 2})


def _no_version(text: str) -> str:
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "schema_version"})


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "another version": (_other_version, "schema version 2"),
    "no version": (_no_version, "no schema version"),
    "a list": (lambda text: "[]", "no schema version"),
    "cut short": (lambda text: text[: len(text) // 2], "not valid JSON"),
    "empty": (lambda text: "", "not valid JSON"),
    "another structure": (lambda text: text.replace('"status"', '"state"', 1), "results.json is not valid at runs[0]"),
    "a verdict that is none": (lambda text: text.replace('"not run"', '"perhaps"', 1), "perhaps"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_results_file_that_cannot_be_read(name: str, papers: Command, written: Contents) -> None:
    breaks, words = BROKEN[name]
    path = Path("runs/toy/quick/results.json")
    path.write_text(breaks(path.read_text()))
    before = contents(Path("runs"))
    for arguments in (("reproduce", "toy", "--experiments", "plain", "--seeds", "2"), ("record", "toy")):
        refused(papers(*arguments), "results.json", words)
    assert contents(Path("runs")) == before  # nothing trained, nothing lost
    path.unlink()  # what the line advises: move it away
    assert papers("report", "toy").status == 0 and contents(Path("runs")) == written


def test_a_recorded_file_that_cannot_be_read(papers: Command, written: Contents, toy_repository: Path) -> None:
    recorded = toy_repository / "papers/toy/results/quick.json"
    recorded.parent.mkdir()
    recorded.write_text(_other_version(Path("runs/toy/quick/results.json").read_text()))
    refused(papers("verify", "toy"), "schema version 2")


@pytest.mark.parametrize(
    ("content", "words"),
    [(lambda text: text[:50], "not valid JSON"), (_other_version, "schema version 2")],
)
def test_a_record_that_cannot_be_read(
    content: Callable[[str], str], words: str, papers: Command, written: Contents
) -> None:
    path = Path("runs/toy/quick/plain/good/seed-1000/run.json")
    path.write_text(content(path.read_text()))
    refused(papers("report", "toy"), "run.json", words)


@pytest.mark.parametrize("content", ["{", '{"schema_version": 2}'])
def test_a_bench_file_that_cannot_be_read(content: str, papers: Command, written: Contents) -> None:
    Path("runs/toy/bench.json").write_text(content)
    refused(papers("report", "toy"), "bench.json")
    refused(papers("record", "toy"), "bench.json")


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_stops_cleanly_and_the_same_command_resumes(
    papers: Command, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = toy.Experiment("line", {"slow": {"pause": 0.05}}, toy.SETTINGS, seeds=1)
    paper = replace(toy.PAPER, presets=(replace(toy.PAPER.preset("quick"), experiments=(slow,)),))
    monkeypatch.setattr(command, "load_paper", lambda name: paper)
    folder = Path("runs/toy/quick/line/slow/seed-1000")

    def press() -> None:
        faults.wait_for(folder / "checkpoints" / "step-5.sha256")
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    answer = papers("reproduce", "toy")
    finger.join()
    assert answer.status == 130 and "stopped (interrupted): the same command resumes" in answer.out
    record = read_record(folder)
    assert record is not None and record["status"] == "stopped"
    assert json.loads(Path("runs/toy/quick/results.json").read_text())["runs"][0]["status"] == "stopped"
    assert papers("reproduce", "toy").status == 0
    record = read_record(folder)
    assert record is not None and record["status"] == "finished" and record["resumed"][0] >= 5


def test_ctrl_c_before_anything_has_begun(papers: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.scheduler import Outcome

    monkeypatch.setattr("common.reproduce.schedule", lambda *_: Outcome(stopped="interrupted"))
    answer = papers("reproduce", "toy")
    assert answer.status == 130 and answer.err == ""


# ---------------------------------------------------------------- how commands end


def ended(error: BaseException | None, capsys: pytest.CaptureFixture[str], debug: bool = False) -> Answer:
    def run() -> int:
        if error is not None:
            raise error
        return 3

    with pytest.raises(SystemExit) as ending:
        errors.main(run, debug=debug)
    printed = capsys.readouterr()
    return Answer(ending.value.code, printed.out, printed.err)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("this is\n  wrong"), "error: this is wrong\n"),
        (Diverged(12), "error: the loss is not finite at step 12\n"),
        (OSError(errno.ENOSPC, "No space", "a/b"), "error: the disk is full (a/b): free some space"),
        (OSError(errno.ENOSPC, "No space"), "error: the disk is full (while writing): free some space"),
        (PermissionError(errno.EACCES, "no", "a/b"), "error: cannot write a/b: choose another folder with OUT="),
        (OSError(errno.EROFS, "read-only"), "error: cannot write a file: choose another folder"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ended(error, capsys)
    refused(answer)
    assert answer.err.startswith(words)
    shown = ended(error, capsys, debug=True)
    assert shown.status == 2 and "Traceback" in shown.err and shown.err.endswith(answer.err)


def test_other_endings(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(None, capsys) == (3, "", "")
    assert ended(KeyboardInterrupt(), capsys) == (130, "", "interrupted: run the same command again to resume\n")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "broken"), KeyError("x")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    def broken() -> int:
        raise error

    with pytest.raises(type(error)):
        errors.main(broken, debug=False)


# ---------------------------------------------------------------- help is quick

FIRST_PAPER = command.paper_names()[0]
LIGHT: dict[str, tuple[list[str], int]] = {
    "help": (["papers", "--help"], 0),
    "help of a paper": ([f"papers.{FIRST_PAPER}.reproduce", "--help"], 0),
    "list": (["papers", "list"], 0),
    "unknown paper": (["papers", "reproduce", "none"], 2),
    "unknown method": (["papers", "reproduce", FIRST_PAPER, "--methods", "none"], 2),
    "bad seeds": ([f"papers.{FIRST_PAPER}.reproduce", "--seeds", "none"], 2),
}
SAYS = {"help": ["--seeds", "reproduce"], "help of a paper": ["--preset", "--out"], "list": [FIRST_PAPER, "quick"]}


@pytest.mark.parametrize("name", LIGHT)
def test_help_and_a_users_error_take_no_time_and_import_nothing_heavy(name: str) -> None:
    arguments, status = LIGHT[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-X", "importtime", "-m", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "200"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    rest = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == status and "argparse" in imported
    assert not imported & {"torch", "pytorch_lightning", "lightning_fabric", "sklearn", "matplotlib", "scipy", "pandas"}
    # Its own time and not the clock's: other tests may be using the cores.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3.0
    assert len(rest) == (1 if status else 0) and all(line.startswith("error: ") for line in rest)
    assert all(word in done.stdout for word in SAYS.get(name, ()))


def test_papers_are_found_by_their_folders() -> None:
    names: list[Any] = command.paper_names()
    assert names == sorted(names) and all((ROOT / "papers" / name / "reproduce.py").exists() for name in names)
    assert command.load_paper(FIRST_PAPER).name == FIRST_PAPER
