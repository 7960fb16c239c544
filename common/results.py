"""Results of a preset: gathered from run folders, judged, written; and judged again from a committed file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common import claims, curves, provenance
from common.codehash import code_hash
from common.errors import UserError
from common.files import read_json, write_text
from common.paper import Paper, Preset
from common.runs import FIRST_CONFIRMING_SEED, read_record
from common.schemas import SCHEMA_VERSION, dump_json, validate

ROW = (
    "experiment",
    "method",
    "seed",
    "status",
    "stale",
    "error",
    "metrics",
    "seconds",
    "samples_per_second",
    "stacked",
    "resumed",
    "key",
    "provenance",
)


def _folders(preset_folder: Path, preset: Preset) -> Iterable[tuple[str, str, int, Path]]:
    """Every run folder of a confirming seed, in the preset's own order; folders moved aside are left out."""
    for experiment in preset.experiments:
        for method in experiment.methods:
            seeds = sorted(
                int(path.name.removeprefix("seed-"))
                for path in (preset_folder / experiment.name / method).glob("seed-*")
                if path.name.removeprefix("seed-").isdigit()
            )
            for seed in seeds:
                if seed >= FIRST_CONFIRMING_SEED:
                    yield experiment.name, method, seed, preset_folder / experiment.name / method / f"seed-{seed}"


def collect(paper: Paper, preset: Preset, root: Path) -> dict[str, Any]:
    """The results document of what stands in the folders below `root`/<paper>/<preset>, judged."""
    rows = []
    for _, _, _, folder in _folders(root / paper.name / preset.name, preset):
        record = read_record(folder)
        if record is None:
            continue
        if record.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{folder / 'run.json'} has schema version {record.get('schema_version')}, this code writes "
                f"{SCHEMA_VERSION}: move the folder away, or use the code that wrote it"
            )
        # A run that is going on in another process has no result yet.
        status = "stopped" if record["status"] == "running" else record["status"]
        stale = code_hash(record["function"]) != record["provenance"]["code"]
        rows.append({name: record.get(name) for name in ROW} | {"status": status, "stale": stale})
    return assemble(paper, preset, rows, provenance.of_results())


def assemble(paper: Paper, preset: Preset, rows: list[dict[str, Any]], source: Mapping[str, Any]) -> dict[str, Any]:
    """A results document from run rows; every claim of the paper is in it."""
    used = {name for row in rows for name in row["metrics"]}
    return {
        "schema_version": SCHEMA_VERSION,
        "paper": paper.name,
        "title": paper.title,
        "preset": preset.name,
        "provenance": dict(source),
        "data": {experiment.name: experiment.described for experiment in preset.experiments},
        "metrics": {name: metric.as_row() for name, metric in paper.metrics.items() if name in used},
        "runs": rows,
        "claims": claims.judge_all(paper.claims, preset.name, rows),
    }


def write(paper: Paper, preset: Preset, root: Path, document: dict[str, Any]) -> Path:
    """Write results.json and the gathered curves; the path of the first."""
    validate(document, "results")
    folder = root / paper.name / preset.name
    path = folder / "results.json"
    curves.gather(
        [(e, m, s, f / "curves.csv") for e, m, s, f in _folders(folder, preset)],
        folder / f"{preset.name}.curves.csv.gz",
    )
    # Last, so that where it stands its curves stand, too.
    write_text(path, dump_json(document))
    return path


def read(path: Path) -> dict[str, Any]:
    """A results file, checked against its schema; UserError for a broken one or another version."""
    document = read_json(path)
    validate(document, "results")
    return document


def rejudge(paper: Paper, document: Mapping[str, Any]) -> dict[str, Any]:
    """The same results with every verdict computed anew from the runs in the document."""
    return assemble(paper, paper.preset(document["preset"]), list(document["runs"]), document["provenance"])
