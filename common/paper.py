"""What a paper is: experiments, methods, presets, metrics and claims, all of it data.

Importing a paper's `reproduce.py` loads no torch: run functions are named as text.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.claims import Claim
from common.codehash import ROOT
from common.errors import UserError
from common.runs import FIRST_CONFIRMING_SEED, Data, Execution, RunSpec, Stackable


@dataclass(frozen=True)
class Metric:
    """What a number in the results is. weights: "raw" or "EMA". examples: how many the number was measured on. shown:
    whether tables and curves of a report have it; the results always do."""

    unit: str
    better: str
    split: str
    evaluation: str
    description: str
    weights: str = "raw"
    examples: int | None = None
    shown: bool = True

    def as_row(self) -> dict[str, Any]:
        """As the results file has it; `shown` only where it is false."""
        return {name: value for name, value in vars(self).items() if name != "shown" or not value}

    def __post_init__(self) -> None:
        if self.evaluation.startswith("best on ") and self.evaluation.removeprefix("best on ").strip() == self.split:
            raise ValueError(f"a metric reported on {self.split} must not be selected on it")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better is higher or lower, not {self.better}")


@dataclass(frozen=True)
class DataSource:
    """A data set an experiment reads with `common.data.load(name, split)`. No source: built in or generated."""

    name: str
    split: str = "official"


@dataclass(frozen=True)
class Need:
    """Another run of the same paper and preset whose folder a run reads. seed None: the same seed."""

    experiment: str
    method: str
    seed: int | None = None


@dataclass(frozen=True)
class Stacking:
    """How runs of an experiment are trained several at once, as one batched model (`common.jobs`).

    function: the stack's run function. shape: of a config, a text that is equal where tensors are. size: runs in a
    stack at the most; None: measured on this machine with `probe` (see `common.runs.Stackable`).
    """

    function: str
    shape: Callable[[Mapping[str, Any]], str]
    size: int | None = None
    probe: str | None = None

    def __post_init__(self) -> None:
        if self.size is None and self.probe is None:
            raise ValueError("a stack whose size is to be measured needs a probe")

    def of(self, config: Mapping[str, Any]) -> Stackable:
        """What a run with this config can be stacked with."""
        return Stackable(self.function, self.shape(config), self.size, self.probe)


@dataclass(frozen=True)
class Experiment:
    """One question on one data set.

    methods: name to what it changes in `config`. data: the sets it reads, or none. described: the data in words, as the
    report shows it. seeds: how many confirming seeds the preset runs. needs: method to {name: Need}. function: the run
    function when it is not the paper's. threads: per run. check_config: raises on a key nobody reads, where it is
    not the paper's own. stacking: how its runs are trained several at once, where that is faster.
    """

    name: str
    methods: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[DataSource, ...] = ()
    described: str = ""
    seeds: int = 5
    needs: Mapping[str, Mapping[str, Need]] = field(default_factory=dict)
    function: str | None = None
    functions: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    exclusive: bool = False
    check_config: Callable[[Mapping[str, Any]], object] | None = None
    stacking: Stacking | None = None


@dataclass(frozen=True)
class Preset:
    """A scale of reproduction. cost: in words, for `list`. bf16: allowed where the device is fast at it."""

    name: str
    experiments: tuple[Experiment, ...]
    cost: str
    description: str
    needs_gpu: bool = False
    bf16: bool = False

    def experiment(self, name: str) -> Experiment:
        return next(experiment for experiment in self.experiments if experiment.name == name)


@dataclass(frozen=True)
class Paper:
    """One paper. function: its run function, "package.module:name". check_config: raises on a key nobody reads.

    bench: "package.module:name" of the benchmark's rows. pictures: the same of a function (results document, folder of
    the preset's runs) -> list of `common.report.pictures.Picture`, for what curves and intervals cannot show.
    """

    name: str
    title: str
    citation: str
    function: str
    presets: tuple[Preset, ...]
    claims: tuple[Claim, ...]
    metrics: Mapping[str, Metric]
    check_config: Callable[[Mapping[str, Any]], object] = dict
    bench: str | None = None
    pictures: str | None = None

    def preset(self, name: str) -> Preset:
        """The preset of this name; UserError names the known ones."""
        for preset in self.presets:
            if preset.name == name:
                return preset
        raise UserError(f"{self.name} has no preset '{name}'; it has {', '.join(p.name for p in self.presets)}")

    @property
    def folder(self) -> Path:
        return ROOT / "papers" / self.name


def parse_seeds(text: str | None) -> list[int] | None:
    """`5` is the first five confirming seeds (1000-1004), `0,4` a list, nothing the preset's own number.

    UserError for anything else, a seed that NumPy would refuse (2^32 and above) and a count that must be a seed.
    """
    if text is None or text == "":
        return None
    try:
        numbers = [int(part) for part in text.split(",") if part.strip() or "," not in text]
    except ValueError:
        numbers = []
    unfit = not numbers or min(numbers) < 0 or max(numbers) >= 2**32 or len(set(numbers)) != len(numbers)
    if unfit or ("," not in text and numbers == [0]):
        raise UserError(f"bad seeds '{text}': give a count such as 5, or a list of different seeds such as 1000,1003")
    if "," not in text and numbers[0] >= FIRST_CONFIRMING_SEED:
        raise UserError(f"seeds '{text}' would be {numbers[0]} seeds: for the one seed write '{text},' with a comma")
    if "," not in text:
        return list(range(FIRST_CONFIRMING_SEED, FIRST_CONFIRMING_SEED + numbers[0]))
    if min(numbers) < FIRST_CONFIRMING_SEED <= max(numbers):
        raise UserError(
            f"seeds '{text}' mix exploring (below {FIRST_CONFIRMING_SEED}) and confirming ones: run them apart"
        )
    return numbers


def choose(kind: str, wanted: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """`wanted` in the order of `known`, or all; UserError for a name nobody knows."""
    known = list(dict.fromkeys(known))
    for name in wanted or ():
        if name not in known:
            raise UserError(f"no {kind} '{name}' here; there is {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def expand(
    paper: Paper,
    preset: Preset,
    root: Path,
    execution: Execution,
    locate: Callable[[DataSource], Data],
    seeds: list[int] | None = None,
    methods: Sequence[str] | None = None,
    experiments: Sequence[str] | None = None,
    data_dir: Path | None = None,
    tensorboard: bool = False,
) -> list[RunSpec]:
    """The runs of a preset: experiments x seeds x methods, with the runs that they need, each once, needs first.

    root: the folder `runs` (or OUT). locate: finds a data set without reading it. Seeds below 1000 go to the folder
    `<preset>-explore`. Raises UserError for unknown names.
    """
    chosen_experiments = choose("experiment", experiments, (e.name for e in preset.experiments))
    chosen_methods = choose("method", methods, (m for e in preset.experiments for m in e.methods))
    specs: dict[Path, RunSpec] = {}

    def build(experiment: Experiment, method: str, seed: int) -> RunSpec:
        scale = preset.name if seed >= FIRST_CONFIRMING_SEED else f"{preset.name}-explore"
        folder = root / paper.name / scale / experiment.name / method / f"seed-{seed}"
        if folder in specs:
            return specs[folder]
        config = {**experiment.config, **experiment.methods[method]}
        (experiment.check_config or paper.check_config)(config)
        needs = {
            name: build(preset.experiment(need.experiment), need.method, seed if need.seed is None else need.seed)
            for name, need in experiment.needs.get(method, {}).items()
        }
        function = experiment.functions.get(method) or experiment.function or paper.function
        specs[folder] = RunSpec(
            paper=paper.name,
            preset=scale,
            experiment=experiment.name,
            method=method,
            seed=seed,
            function=function,
            config=config,
            folder=folder,
            execution=replace(execution, threads=experiment.threads),
            data=tuple(locate(source) for source in experiment.data),
            needs=needs,
            exclusive=experiment.exclusive,
            data_dir=data_dir,
            tensorboard=tensorboard,
            stackable=None if experiment.stacking is None else experiment.stacking.of(config),
        )
        return specs[folder]

    for name in chosen_experiments:
        experiment = preset.experiment(name)
        wanted = seeds if seeds is not None else range(FIRST_CONFIRMING_SEED, FIRST_CONFIRMING_SEED + experiment.seeds)
        for seed in wanted:
            for method in experiment.methods:
                if method in chosen_methods:
                    build(experiment, method, seed)
    return list(specs.values())
