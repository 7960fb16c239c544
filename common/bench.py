"""`make bench`: the fast path beside a plain one, case by case, written to `<out>/<paper>/bench.json`.

A paper names a function `rows(setting)` that yields rows made by `compare` or `row`. Both paths of a case run in turns
within one process, so that whatever else the machine does slows both alike; what is compared are medians. Every
number of threads gets a process of its own, forked from a server that has executed nothing.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common import provenance
from common.engines import cores, keep_memory, probe_devices, set_threads
from common.errors import UserError
from common.files import write_text
from common.paper import Paper
from common.reproduce import Options, merge_bench, read_bench
from common.runs import Execution, resolve
from common.schemas import dump_json, validate
from common.timing import interleaved

Row = dict[str, Any]
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class Setting:
    """Where rows are measured. execution: device, threads, and the precision and compilation that are fastest there.
    small: a check that everything runs (`--preset smoke`): tiny shapes, one repeat; its cases say so."""

    execution: Execution
    label: str
    small: bool = False


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def compare(
    setting: Setting,
    case: str,
    unit: str,
    fast: Callable[[], object],
    plain: Callable[[], object],
    equivalence: float,
    repeats: int = 5,
    warm_up: int = 1,
    per_call: int = 1,
    floor: float | None = None,
) -> Row:
    """The row of two paths, timed in turns.

    unit: "s", "ms" or "us", with more words after a slash ("us/view"). per_call: how many such things (views, steps)
    one call does. equivalence: largest difference between their results. floor: in the row's unit. With
    `setting.small` everything is called once.
    """
    if setting.small:
        repeats, warm_up = 1, 0
    times = interleaved((fast, plain), repeats, warm_up, setting.execution.device)
    quick, slow = (value / per_call * UNITS[unit.partition("/")[0]] for value in times)
    return row(setting, case, unit, quick, slow, floor, equivalence)


def row(
    setting: Setting,
    case: str,
    unit: str,
    fast: float,
    plain: float | None = None,
    floor: float | None = None,
    equivalence: float | None = None,
) -> Row:
    """A row as `bench.json` holds it, numbers to four digits; without `plain` a lone measurement."""
    return {
        "case": f"{case} (smoke)" if setting.small else case,
        "device": setting.label,
        "threads": setting.execution.threads,
        "unit": unit,
        "fast": _rounded(fast),
        "plain": None if plain is None else _rounded(plain),
        "ratio": None if plain is None else _rounded(plain / fast),
        "floor": floor,
        "equivalence": None if equivalence is None else _rounded(equivalence),
    }


def settings(options: Options, found: dict[str, Any], cores: int) -> list[Setting]:
    """Where to measure: one GPU, or the CPU with one thread and with two. UserError for a device that is not there.

    `found` is as `common.engines.probe_devices` gives it.
    """
    options.check()
    device = options.device
    if device == "auto":
        device = "cuda" if found["cuda"] else "cpu"
    if (device == "cuda" and not found["cuda"]) or (device == "mps" and not found["mps"]):
        raise UserError(f"no {device} device on this machine: leave DEVICE out, or give DEVICE=cpu")
    precision = options.precision
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" or (device == "cpu" and found["amx_bf16"]) else "float32"
    compiled = options.compile == "yes" or (options.compile == "auto" and device == "cuda")
    hardware = provenance.hardware(device)
    name = hardware.get("gpu", hardware["processor"])
    if device == "cpu" and found["amx_bf16"]:
        name += ", AMX"
    small = options.preset == "smoke"
    threads = [1, 2] if device == "cpu" and cores > 1 and not small else [1]
    return [
        Setting(Execution(device, precision, n, compiled, options.deterministic), f"{device} ({name})", small)
        for n in threads
    ]


def _child(function: str, setting: Setting, sender: Connection) -> None:
    try:
        keep_memory()
        set_threads(setting.execution.threads)
        for found in resolve(function)(setting):
            sender.send(found)
        sender.send(None)
    except UserError as error:
        sender.send(error)
    except Exception as error:
        sender.send(RuntimeError("".join(traceback.format_exception(error))))


def measure(function: str, setting: Setting) -> Iterator[Row]:
    """The rows of one setting, from a fresh process, as they come. What is raised there is raised here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pytorch_lightning", function.partition(":")[0]])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, setting, sender))
    process.start()
    sender.close()
    try:
        while (message := receiver.recv()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message
    except EOFError:
        process.join()
        raise RuntimeError(f"the benchmark's process died (exit status {process.exitcode})") from None
    finally:
        process.kill()
        process.join()


def show(rows: Sequence[Row], console: Console) -> None:
    """Print rows as a table for each device."""
    for device in dict.fromkeys(each["device"] for each in rows):
        console.print(device, highlight=False)
        table = Table("case", "unit", box=None)
        for name in ("threads", "fast", "plain", "ratio", "floor", "difference"):
            table.add_column(name, justify="right", no_wrap=True)
        for each in rows:
            if each["device"] == device:
                cells = [each[name] for name in ("fast", "plain", "ratio", "floor", "equivalence")]
                numbers = ("-" if cell is None else f"{cell:.3g}" for cell in cells)
                table.add_row(each["case"], each["unit"], str(each["threads"]), *numbers)
        console.print(table)


def run_bench(paper: Paper, options: Options, console: Console) -> int:
    """Measure every case of a paper here and merge the rows into `<out>/<paper>/bench.json`; 0.

    Rows are written after each number of threads, so an interrupted benchmark keeps what it has. Raises UserError for a
    device that is not there or an old file of another schema version.
    """
    if paper.bench is None:
        raise UserError(f"{paper.name} has no benchmark")
    path = Path(options.out) / paper.name / "bench.json"
    document = read_bench(path)
    places = settings(options, probe_devices(), cores())
    path.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * cores():
        console.print("other programs use this machine now: trust the ratios more than the times", highlight=False)
    measured: list[Row] = []
    for setting in places:
        fresh = []
        for found in measure(paper.bench, setting):
            fresh.append(found)
            ratio = "" if found["ratio"] is None else f", {found['ratio']:.3g} times better than plain"
            words = f"{found['case']}, {found['threads']} threads: {found['fast']:.4g} {found['unit']}{ratio}"
            console.print(words, highlight=False, soft_wrap=True)
        source = {**provenance.of_results(), "hardware": provenance.hardware(setting.execution.device)}
        new = {"schema_version": 1, "paper": paper.name, "title": paper.title, "provenance": source, "rows": fresh}
        document = merge_bench(document, new)
        validate(document, "bench")
        write_text(path, dump_json(document))
        measured += fresh
    show(measured, console)
    console.print(f"wrote {path}", highlight=False)
    return 0
