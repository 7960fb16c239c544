"""The one way: Paper -> Runs -> Results -> Verdicts -> Report.

Each stage reads only what the one before it wrote, so each can be run again alone: `reproduce` does all, `report`
draws again without training, `record` copies results into the paper's folder, `verify` recomputes the verdicts and
tables from what is committed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from common import results
from common.engines import LocalEngine, cores, probe_devices
from common.errors import UserError, describe
from common.files import check_writable, write_bytes, write_text
from common.jobs import Find, arrange
from common.paper import DataSource, Paper, Preset, expand, parse_seeds
from common.progress import Display
from common.runs import FIRST_CONFIRMING_SEED, Data, Execution, RunSpec, settled_status
from common.scheduler import Outcome, schedule
from common.schemas import dump_json, validate
from common.stacking import Sizes

ENGINES = ("local", "serial")
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Options:
    """What a user can choose; the command line mirrors these one to one. None means the preset's own choice."""

    preset: str = "quick"
    seeds: str | None = None
    methods: str | None = None
    experiments: str | None = None
    device: str = "auto"
    engine: str = "local"
    out: str = "runs"
    precision: str = "auto"
    compile: str = "auto"
    deterministic: bool = False
    time_limit: float | None = None
    tensorboard: bool = False
    parallel: int | None = None

    def check(self) -> None:
        """UserError for a value outside the known ones."""
        for name, known in (
            ("device", DEVICES),
            ("engine", ENGINES),
            ("precision", ("auto", "float32", "bfloat16")),
            ("compile", ("auto", "yes", "no")),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"no {name} '{getattr(self, name)}'; there is {', '.join(known)}")
        if self.time_limit is not None and self.time_limit <= 0:
            raise UserError(f"the time limit is {self.time_limit} seconds; it must be above 0")
        if self.parallel is not None and self.parallel < 1:
            raise UserError(f"cannot run {self.parallel} at once; give 1 or more")


def _list(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def choose_execution(preset: Preset, options: Options, found: Mapping[str, Any]) -> Execution:
    """Device, precision and compilation for this machine (`found` as `probe_devices` gives it).

    Raises UserError when a device is not there, or a preset made for a GPU would run on a CPU unasked.
    """
    device = options.device
    if device == "auto":
        device = "cuda" if found["cuda"] else "mps" if found["mps"] else "cpu"
        if preset.name in ("smoke", "quick", "cpu"):
            # Small networks: a GPU would be slower, and the numbers must not depend on the machine.
            device = "cpu"
    if (device == "cuda" and not found["cuda"]) or (device == "mps" and not found["mps"]):
        raise UserError(f"no {device} device on this machine: leave DEVICE out, or give DEVICE=cpu")
    if preset.needs_gpu and device == "cpu" and options.device != "cpu":
        raise UserError(
            f"the preset '{preset.name}' is made for a GPU and none was found: use PRESET=quick, or give "
            "DEVICE=cpu to run it here all the same"
        )
    precision = options.precision
    if precision == "auto":
        able = device == "cuda" or (device == "cpu" and found["amx_bf16"])
        precision = "bfloat16" if preset.bf16 and able else "float32"
    compiled = options.compile == "yes" or (options.compile == "auto" and device == "cuda")
    return Execution(device=device, precision=precision, compile=compiled, deterministic=options.deterministic)


class _Locator:
    """Locates each data set once; remembers what is missing instead of ending the command."""

    def __init__(self, data_dir: Path | None):
        self.data_dir = data_dir
        self.found: dict[DataSource, Data] = {}
        self.missing: dict[DataSource, str] = {}

    def __call__(self, source: DataSource) -> Data:
        from common.data import corpora, folders, locate

        for kind in (folders, corpora):
            if source.name in kind.SETS and source not in self.found:
                self.found[source] = Data(source.name, *kind.locate(source.name, self.data_dir))
        if source not in self.found:
            location = locate(source.name, self.data_dir, source.split)
            self.found[source] = Data(source.name, location.label, location.fingerprint)
        return self.found[source]

    def experiments_with_data(self, preset: Preset, wanted: list[str] | None) -> list[str]:
        """Names of the wanted experiments whose data is there; the others' reasons go to `missing`."""
        able = []
        for experiment in preset.experiments:
            if wanted and experiment.name not in wanted:
                continue
            for source in experiment.data:
                try:
                    self(source)
                except UserError as error:
                    self.missing[source] = str(error)
            if not any(source in self.missing for source in experiment.data):
                able.append(experiment.name)
        return able


@dataclass(frozen=True)
class Plan:
    """The runs that a command asks for, how many GPUs are there, and any other run of the preset by its name.

    find: None for a run whose experiment, method or data is not there.
    """

    specs: list[RunSpec]
    gpus: int
    find: Find


def plan(paper: Paper, options: Options, console: Console) -> Plan:
    """What a command asks for. UserError before anything is trained or written."""
    options.check()
    preset = paper.preset(options.preset)
    seeds = parse_seeds(options.seeds)
    data_dir = Path(os.environ["DATA_DIR"]) if os.environ.get("DATA_DIR") else None
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"DATA_DIR is {data_dir}, which is not a folder: correct it or leave it out")
    out, wanted, methods = Path(options.out), _list(options.experiments), _list(options.methods)

    def runs_of(
        execution: Execution,
        experiments: list[str] | None,
        locate: Any,
        seeds: list[int] | None = seeds,
        methods: list[str] | None = methods,
    ) -> list[RunSpec]:
        return expand(paper, preset, out, execution, locate, seeds, methods, experiments, data_dir, options.tensorboard)

    # Names first, on nothing but the paper: a misspelt method is answered at once.
    runs_of(Execution(), wanted, lambda source: Data(source.name, source.name, ""))
    locator = _Locator(data_dir)
    able = locator.experiments_with_data(preset, wanted)
    for reason in dict.fromkeys(locator.missing.values()):
        console.print(f"not run: {reason}", markup=False, highlight=False, soft_wrap=True)
    if not able:
        raise UserError(f"nothing left to run in preset '{preset.name}': no experiment has its data")
    found = probe_devices()
    execution = choose_execution(preset, options, found)
    specs = runs_of(execution, able, locator)
    if not specs:
        raise UserError("nothing to run: no chosen experiment has a chosen method")

    def find(experiment: str, method: str, seed: int) -> RunSpec | None:
        try:
            return runs_of(execution, [experiment], locator, [seed], [method])[-1]
        except UserError:
            return None

    return Plan(specs, int(found["cuda"]), find)


def train(planned: Plan, options: Options, console: Console) -> Outcome:
    """Execute what is not settled yet. Raises what kept a run from being attempted (locked, disk full)."""
    specs, gpus = planned.specs, planned.gpus
    settled = {spec.folder: status for spec in specs if (status := settled_status(spec))}
    left = [spec for spec in specs if spec.folder not in settled]
    outcome = Outcome(settled)
    if len(left) < len(specs):
        console.print(f"{len(settled)} of {len(specs)} runs are there already", highlight=False)
    if left:
        on_gpu = left[0].execution.device == "cuda"
        slots = 1 if options.engine == "serial" else options.parallel or (gpus if on_gpu else cores())
        engine = LocalEngine(slots, gpus if on_gpu else 0, (spec.function.partition(":")[0] for spec in left))
        sizes = Sizes(
            Path(options.out) / "stacking.json",
            lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        )
        jobs = arrange(left, slots, sizes, planned.find)
        with Display([run for job in jobs for run in job.runs], console) as display:
            outcome = schedule(jobs, engine, display, options.time_limit, outcome)
    if isinstance(outcome.error, OSError):
        raise UserError(describe(outcome.error)) from outcome.error
    if outcome.error is not None:
        raise outcome.error
    return outcome


def report(paper: Paper, preset: Preset, root: Path, console: Console) -> Path:
    """Collect, judge and draw what stands in the run folders; path of the HTML report. Trains nothing."""
    from common.report import pictures, print_verdicts, write_report

    folder = root / paper.name / preset.name
    check_writable(folder)
    document = results.collect(paper, preset, root)
    if not document["runs"]:
        raise UserError(f"nothing to report: no run of {paper.name} {preset.name} in {root}: run make reproduce first")
    results.write(paper, preset, root, document)
    bench = root / paper.name / "bench.json"
    own = pictures.of_paper(paper, document, folder)
    page = write_report(document, folder / f"{preset.name}.curves.csv.gz", read_bench(bench), folder, own)
    print_verdicts(document, page, console)
    return page


def read_bench(path: Path) -> dict[str, Any] | None:
    """A bench file, or None when there is none."""
    from common.files import read_json

    if not path.exists():
        return None
    document = read_json(path)
    validate(document, "bench")
    return document


def reproduce(paper: Paper, options: Options, console: Console | None = None) -> int:
    """All stages. Exit status: 0 when every run finished or diverged, 1 when one failed or the time limit came, 130
    after Ctrl-C. Raises UserError (status 2) before or instead of training."""
    console = console or Console()
    planned = plan(paper, options, console)
    specs = planned.specs
    preset = paper.preset(options.preset)
    exploring = specs[-1].seed < FIRST_CONFIRMING_SEED
    root = Path(options.out)
    check_writable(root)
    if not exploring:
        # A results file that another version wrote is a reason to stop before hours of training, not after.
        previous = root / paper.name / preset.name / "results.json"
        if previous.exists():
            results.read(previous)
    outcome = train(planned, options, console)
    if exploring:
        console.print(
            f"seeds below {FIRST_CONFIRMING_SEED} explore: nothing is judged; runs are in "
            f"{specs[-1].folder.parents[2]}",
            highlight=False,
        )
    elif outcome.records:
        report(paper, preset, root, console)
    if outcome.stopped:
        console.print(f"stopped ({outcome.stopped}): the same command resumes", highlight=False)
    return 130 if outcome.stopped == "interrupted" else 1 if outcome.stopped or outcome.failed else 0


def record(paper: Paper, options: Options, console: Console) -> int:
    """Copy a preset's results, curves and bench rows from `out` into the paper's folder and redraw the READMEs."""
    from common.report import pictures, readme, record_plots

    preset, source = paper.preset(options.preset), Path(options.out) / paper.name
    if not (source / preset.name / "results.json").exists() and not (source / "bench.json").exists():
        raise UserError(
            f"nothing to record: {source / preset.name / 'results.json'} is not there; run "
            f"make reproduce PAPER={paper.name} PRESET={preset.name} first"
        )
    target = paper.folder / "results"
    target.mkdir(exist_ok=True)
    if (source / preset.name / "results.json").exists():
        document = results.read(source / preset.name / "results.json")
        if not document["runs"]:
            raise UserError(f"nothing to record: no run of {paper.name} {preset.name} has ended")
        write_text(target / f"{preset.name}.json", dump_json(document))
        gathered = source / preset.name / f"{preset.name}.curves.csv.gz"
        write_bytes(target / gathered.name, gathered.read_bytes())
        own = pictures.of_paper(paper, document, source / preset.name)
        record_plots(document, gathered, target / "plots", own)
    fresh = read_bench(source / "bench.json")
    if fresh is not None:
        old = read_bench(target / "bench.json")
        write_text(target / "bench.json", dump_json(merge_bench(old, fresh)))
    for page in (paper.folder / "README.md", paper.folder.parents[1] / "README.md"):
        if readme.redraw(page):
            console.print(f"redrew {page.relative_to(paper.folder.parents[1])}", highlight=False)
    return 0


def merge_bench(old: dict[str, Any] | None, fresh: dict[str, Any]) -> dict[str, Any]:
    """Fresh rows replace old ones of the same case, device and threads; all other old rows stay."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["case"], row["device"], row["threads"]

    rows = {key(row): row for row in (old["rows"] if old else [])} | {key(row): row for row in fresh["rows"]}
    return {**fresh, "rows": [rows[k] for k in sorted(rows, key=str)]}


def verify(paper: Paper, console: Console) -> int:
    """Recompute every verdict and README table from the committed results; 1 when one differs."""
    from common.report import readme

    problems = []
    recorded = sorted(path for path in (paper.folder / "results").glob("*.json") if path.name != "bench.json")
    for path in recorded:
        document = results.read(path)
        if dump_json(results.rejudge(paper, document)) != dump_json(document):
            problems.append(f"{path.name}: verdicts differ from what the code computes from its runs")
    read_bench(paper.folder / "results" / "bench.json")
    problems += readme.check(paper.folder / "README.md")
    for problem in problems:
        console.print(problem, highlight=False, markup=False)
    console.print(f"{paper.name}: {len(recorded)} results files, {len(problems)} problems", highlight=False)
    return 1 if problems else 0
