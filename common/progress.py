"""What a person sees while runs go on: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from common.engines import Event
from common.runs import RunSpec

PLAIN_EVERY = 30.0


def _numbers(values: Mapping[str, object], limit: int = 3) -> str:
    shown = []
    for name, value in list(values.items())[:limit]:
        number = value.get("mean") if isinstance(value, dict) else value
        shown.append(f"{name} {number:.4g}" if isinstance(number, int | float) else f"{name} -")
    return "  ".join(shown)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Display:
    """Follows events of jobs. The time left is the mean time of the finished runs times those that are left."""

    def __init__(self, specs: Sequence[RunSpec], console: Console | None = None):
        self.console = console or Console()
        self.total = len(specs)
        self.done = 0
        self.running: dict[str, tuple[int, int, str]] = {}
        self._runs: dict[str, set[str]] = {}  # of each job in `running`, those of its runs that have not ended
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self._task = self._bar.add_task("runs", total=self.total, left="")
        self._live = (
            Live(self._render(), console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        )

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._render())
            self._live.stop()

    def _end(self, run: str) -> None:
        """A run has ended, and with the last of its runs the job."""
        for job, names in list(self._runs.items()):
            names.discard(run)
            if not names:
                del self._runs[job], self.running[job]

    def _fraction(self) -> float:
        parts = (len(self._runs[job]) * step / total for job, (step, total, _) in self.running.items() if total)
        return self.done + sum(parts)

    def _left(self) -> str:
        fraction = self._fraction()
        if fraction < 0.05 or self.done == self.total:
            return ""
        return f"about {_clock((time.monotonic() - self._started) / fraction * (self.total - fraction))} left"

    def _render(self) -> Group:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, (step, total, text) in self.running.items():
            table.add_row(name, f"{step}/{total}", text)
        self._bar.update(self._task, completed=self.done, left=self._left())
        return Group(table, self._bar)

    def __call__(self, event: Event) -> None:
        name = event.spec.name
        if event.kind == "progress":
            self.running[name] = (event.step, event.total, _numbers(event.values, 5))
            self._runs[name] = {run.name for run in event.spec.runs}
        else:
            self._end(name)
            self.done += 1
            record = event.record
            text = record["error"] if record["status"] != "finished" else _numbers(record["metrics"])
            spent = f"{record['status']}  {record['seconds']:.0f} s"
            self._say(f"[{self.done}/{self.total}] {name}  {spent}  {text}  {self._left()}")
        if self._live:
            self._live.update(self._render())
        elif self.running and time.monotonic() - self._last_line > PLAIN_EVERY:
            going = ", ".join(f"{name} {step}/{total}" for name, (step, total, _) in self.running.items())
            if self.total == 1:
                going += f"  {self.running[name][2]}"
            self._say(f"[{self.done}/{self.total}] {going}  {self._left()}")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)
