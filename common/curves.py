"""Curves of a run: rows (step, samples, seconds, name, value) in a CSV file that only grows, or is cut on resume."""

import csv
import gzip
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.files import write_bytes

COLUMNS = ("step", "samples", "seconds", "name", "value")
RUN_COLUMNS = ("experiment", "method", "seed")


class Curves:
    """The open curve file of one run. Values are finite floats; steps never fall."""

    def __init__(self, path: Path):
        self.path = path
        self._file: io.TextIOWrapper | None = None

    def append(self, step: int, samples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add one row a name. Rows reach the disk for certain only at `sync`."""
        if self._file is None:
            new = not self.path.exists() or self.path.stat().st_size == 0
            self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - it stays open
            if new:
                self._file.write(",".join(COLUMNS) + "\n")
        for name, value in values.items():
            self._file.write(f"{step},{samples},{seconds:.3f},{name},{float(value)!r}\n")

    def sync(self) -> None:
        """Flush every row to the disk; called before a checkpoint counts as written."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close; `append` opens it again."""
        self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None

    def cut(self, step: int) -> None:
        """Drop the rows after `step`, and a last row that a kill tore."""
        self.close()
        rows = [row for row in read_rows(self.path) if int(row["step"]) <= step]
        text = "".join(",".join(row[column] for column in COLUMNS) + "\n" for row in rows)
        write_bytes(self.path, (",".join(COLUMNS) + "\n" + text).encode())

    def values(self, name: str) -> list[float]:
        """All values of one curve in order of step, e.g. for a median over the last 20 evaluations."""
        if self._file is not None:
            self._file.flush()
        return [float(row["value"]) for row in read_rows(self.path) if row["name"] == name]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a curve file (plain, or gathered with gzip), as texts; a torn last row is left out."""
    if not path.exists():
        return []
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw[: raw.rfind(b"\n") + 1].decode()
    return [row for row in csv.DictReader(io.StringIO(text)) if None not in row.values()]


def gather(runs: Iterable[tuple[str, str, int, Path]], path: Path) -> None:
    """Write the curves of (experiment, method, seed, file) as one gzip CSV; the same input gives the same bytes."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*RUN_COLUMNS, *COLUMNS))
    for experiment, method, seed, file in runs:
        for row in read_rows(file):
            writer.writerow((experiment, method, seed, *(row[column] for column in COLUMNS)))
    write_bytes(path, gzip.compress(buffer.getvalue().encode(), compresslevel=9, mtime=0))
