"""The report's tables as plain data, drawn from a results document; Markdown, HTML and the terminal share them."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.claims import expected_by_chance
from common.errors import UserError
from common.report import text
from common.schemas import SCHEMA_VERSION
from common.statistics import Value, bounds, measure

Row = dict[str, Any]


def check_version(document: Row, what: str) -> None:
    """Refuse a document of another schema version (UserError)."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{what} has schema_version {version}, and this code reads {SCHEMA_VERSION}: "
            "rebuild it with this code (make report), or check out the commit that wrote it"
        )


@dataclass
class Table:
    """Header, rows of cells as plain text, the columns that hold numbers, and remarks printed below."""

    header: list[str]
    rows: list[list[str]]
    numeric: frozenset[int] = frozenset()
    title: str = ""
    remarks: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """A GitHub table, its remarks as a list below."""
        rule = ["---:" if column in self.numeric else "---" for column in range(len(self.header))]
        lines = [[text.markdown(cell) for cell in self.header], rule]
        lines += [[text.markdown(cell) for cell in row] for row in self.rows]
        parts = ["\n".join("| " + " | ".join(line) + " |" for line in lines)]
        if self.remarks:
            parts.append("\n".join(f"- {text.markdown(remark)}" for remark in self.remarks))
        return "\n\n".join(parts)


def judged(results: Row) -> list[Row]:
    """The claims with a verdict other than `not run`."""
    return [claim for claim in results["claims"] if claim["verdict"] != "not run"]


def not_run(results: Row) -> list[Row]:
    """The claims that this preset does not judge."""
    return [claim for claim in results["claims"] if claim["verdict"] == "not run"]


def verdict_counts(claims: list[Row]) -> dict[str, int]:
    """How many claims have each verdict, in the order from best to worst; verdicts nobody has are left out."""
    counts = Counter(claim["verdict"] for claim in claims)
    return {verdict: counts[verdict] for verdict in text.VERDICTS if counts[verdict]}


def counts_text(claims: list[Row]) -> str:
    """`8 held, 1 failed, 52 not run`."""
    return ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(claims).items()) or "no claims"


def chance_text(results: Row) -> str:
    """How many claims were judged, and how many of them would be expected to hold by chance alone."""
    claims = judged(results)
    if not claims:
        return "No claim was judged."
    were = "1 claim was" if len(claims) == 1 else f"{len(claims)} claims were"
    expected = expected_by_chance(claims)
    return f"{were} judged; about {expected:.2g} would be expected to hold by chance if no effect were real."


def paper_number(claim: Row) -> str:
    """The paper's number with its std; `in the claim` where it is not the quantity that was measured."""
    mark = "" if claim["verified"] else f" {text.RECALLED}"
    if claim["paper_value"] is None:
        return f"in the claim{mark}"
    number = text.plain(claim["paper_value"])
    if claim["paper_std"] is not None:
        number += f" ± {text.plain(claim['paper_std'])}"
    return number + mark


def gate_text(claim: Row) -> str:
    """`≥ 8, null 0`; `between 0.9 and 1.1` for an equivalence."""
    gate, null = claim["gate"], claim["null"]
    if isinstance(gate, list | tuple):
        words = f"between {text.plain(gate[0])} and {text.plain(gate[1])}"
    elif gate is None:
        return text.MISSING
    else:
        words = f"{'≥' if claim['better'] == 'higher' else '≤'} {text.plain(gate)}"
    return words if null is None else f"{words}, null {text.plain(null)}"


def count_text(claim: Row) -> str:
    """`n = 10`, `n = 9 of 10`, with the unit of resampling where it is not the seed."""
    measured = claim["measured"]
    if measured is None:
        return ""
    if claim["resampling"] == "exact":
        return "exact"
    words = f"n = {measured['n']}"
    if measured["attempted"] is not None and measured["attempted"] != measured["n"]:
        words += f" of {measured['attempted']}"
    return words if claim["resampling"] == "seed" else f"{words} {claim['resampling']}s"


def ours_text(claim: Row) -> str:
    """`14.7 [11.5, 17.9] points, n = 10`."""
    if claim["measured"] is None:
        return text.MISSING
    return f"{text.with_unit(text.interval(claim['measured']), claim['unit'])}, {count_text(claim)}"


def setting_text(claim: Row, preset: str) -> str:
    """`quick: digits, 2 labels per class (stand-in)`."""
    if not claim["data"]:
        return text.MISSING
    return f"{preset}: {claim['data']}" + (" (stand-in)" if claim["stand_in"] else "")


VERDICT_HEADER = ["", "Claim", "Paper", "Ours (95 % interval)", "Gate", "Preset, data", "Verdict", "Note"]


def verdict_table(results: Row, claims: list[Row]) -> Table:
    """One row per claim, with the quantity that was compared under the paper's sentence."""
    rows = []
    for claim in claims:
        statement = claim["statement"] + (f" — measured: {claim['quantity']}" if claim["quantity"] else "")
        source = f" ({claim['source']})" if claim["source"] else ""
        rows.append(
            [
                claim["id"],
                statement,
                paper_number(claim) + source,
                ours_text(claim),
                gate_text(claim),
                setting_text(claim, results["preset"]),
                claim["verdict"],
                claim["note"] or "",
            ]
        )
    recalled = any(not claim["verified"] for claim in claims)
    remark = f"{text.RECALLED} recalled, not checked against the paper's text; such a number never decides a verdict."
    return Table(VERDICT_HEADER, rows, remarks=[remark] if recalled else [])


def not_run_table(results: Row) -> Table:
    """The claims that were not judged, briefly: what the paper says, and why there is no verdict."""
    claims = not_run(results)
    rows = [
        [claim["id"], claim["statement"], paper_number(claim), claim["source"], claim["note"] or ""] for claim in claims
    ]
    return Table(["", "Claim", "Paper", "Source", "Note"], rows)


def experiments(results: Row) -> list[str]:
    """Experiments that have runs, in the order of the file."""
    return list(dict.fromkeys(run["experiment"] for run in results["runs"]))


def methods(results: Row, experiment: str | None = None) -> list[str]:
    """Methods that have runs (of one experiment), in the order of the file."""
    chosen = (run for run in results["runs"] if experiment in (None, run["experiment"]))
    return list(dict.fromkeys(run["method"] for run in chosen))


def over_seeds(values: Sequence[Value]) -> str:
    """`11.1 ± 2.3`: mean and half of the 95 % t interval; the interval itself where a value is censored."""
    if not values:
        return text.MISSING
    measured = measure(values)
    if measured.low is not None and measured.high is not None and measured.mean is not None:
        return text.with_spread(measured.mean, measured.high - measured.mean)
    if all(low == high for low, high in map(bounds, values)):
        return text.rounded(measured.mean, None)
    if len(values) == 1:
        low, high = bounds(values[0])
        return f"≥ {text.plain(low)}" if high is None else f"≤ {text.plain(high)}"
    return text.interval(measured.as_row())


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return math.fsum(values) / len(values) if values else None


def metric_heading(results: Row, name: str) -> str:
    """`test_error (%, lower is better)`."""
    about = results["metrics"].get(name)
    if about is None:
        return name
    words = [text.unit(about.get("unit")), f"{about['better']} is better" if about.get("better") else ""]
    inside = ", ".join(word for word in words if word)
    return f"{name} ({inside})" if inside else name


def problems(runs: list[Row]) -> Iterator[str]:
    """One line for each run that did not finish, and for stale and resumed ones."""
    for run in runs:
        if run["status"] != "finished":
            yield f"{run['method']} seed {run['seed']} {run['status']}: {run['error'] or 'no message'}"
    for key, words in (("stale", "trained by code other than today's (stale)"), ("resumed", "resumed on the way")):
        marked = [run for run in runs if run.get(key)]
        if marked:
            names = [f"{run['method']} {run['seed']}" for run in marked]
            shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
            yield f"{text.plural(len(marked), 'run')} {words}: {shown}"


def experiment_table(results: Row, experiment: str) -> Table:
    """Methods x metrics of the finished runs: mean ± half of the 95 % t interval over seeds, counts, cost."""
    every = [run for run in results["runs"] if run["experiment"] == experiment]
    present = {name for run in every for name in run["metrics"]}
    names = [name for name, about in results["metrics"].items() if name in present and about.get("shown", True)]
    names += sorted(present - set(results["metrics"]))
    rows = []
    for method in methods(results, experiment):
        runs = [run for run in every if run["method"] == method]
        finished = [run for run in runs if run["status"] == "finished"]
        cells = []
        for name in names:
            cells.append(over_seeds([run["metrics"][name] for run in finished if name in run["metrics"]]))
        others = Counter(run["status"] for run in runs if run["status"] != "finished")
        count = f"{len(finished)}" if not others else f"{len(finished)} of {len(runs)}"
        marks = [f"{number} {status}" for status, number in others.items()]
        marks += ["stale"] if any(run.get("stale") for run in runs) else []
        seconds = [run["seconds"] for run in finished if run["seconds"] is not None]
        rates = [run["samples_per_second"] for run in finished if run["samples_per_second"] is not None]
        rows.append(
            [
                method,
                *cells,
                count + (f" ({', '.join(marks)})" if marks else ""),
                text.duration(mean(seconds)),
                text.rate(mean(rates)),
            ]
        )
    header = ["Method", *(metric_heading(results, name) for name in names), "n", "time a run", "samples/s"]
    numeric = frozenset(range(1, len(header)))
    data = results.get("data", {}).get(experiment, "")
    title = f"{experiment}: {data}" if data else experiment
    return Table(header, rows, numeric, title, list(problems(every)))


def metric_table(results: Row) -> Table:
    """What each metric means."""
    columns = ["unit", "better", "split", "evaluation", "weights", "examples", "description"]
    rows = [
        [name, *("" if about.get(column) is None else str(about[column]) for column in columns)]
        for name, about in results["metrics"].items()
    ]
    return Table(["Metric", *columns], rows)


def bench_table(bench: Row) -> Table:
    """Speed: the fast path, the plain one, and the best physically possible."""
    rows = [
        [
            row["case"],
            row["device"],
            text.plain(row["threads"]),
            row["unit"],
            *(text.MISSING if row[key] is None else f"{row[key]:.3g}" for key in ("fast", "plain")),
            text.MISSING if row["ratio"] is None else f"{row['ratio']:.2f} x",
            *(text.MISSING if row[key] is None else f"{row[key]:.3g}" for key in ("floor", "equivalence")),
        ]
        for row in bench["rows"]
    ]
    header = ["Case", "Device", "Threads", "Unit", "Fast", "Plain", "Ratio", "Floor", "Largest difference"]
    remark = (
        "Medians. Ratio: how many times better the fast path is than the plain one. Floor: the best physically "
        "possible. Largest difference: between the two paths' results on the same input."
    )
    return Table(header, rows, frozenset({2, 4, 5, 6, 7, 8}), remarks=[remark])


def _distinct(runs: list[Row], key: str) -> str:
    values = Counter(_flat(run["provenance"].get(key)) for run in runs)
    values.pop("", None)
    return "; ".join(value if len(values) == 1 else f"{value} ({count} runs)" for value, count in values.most_common(6))


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(part) for part in value)
    return "" if value is None else str(value)


def provenance_table(results: Row) -> Table:
    """Where the numbers come from: commit, command, versions, hardware, code and data fingerprints, cost."""
    about, runs = results["provenance"], results["runs"]
    commit = str(about.get("commit") or "unknown") + (" with uncommitted changes" if about.get("dirty") else "")
    statuses = Counter(run["status"] for run in runs)
    seconds = math.fsum(run["seconds"] or 0 for run in runs)
    rows = [
        ["commit of the report", commit],
        ["command", _flat(about.get("command"))],
        ["versions", _flat(about.get("versions"))],
        ["runs", ", ".join(f"{count} {status}" for status, count in statuses.items()) or "none"],
        ["time of all runs together", text.duration(seconds) if runs else ""],
        ["commits of the runs", _distinct(runs, "commit")],
        ["runs with uncommitted changes", str(sum(bool(run["provenance"].get("dirty")) for run in runs) or "")],
        ["code of the runs", _distinct(runs, "code")],
        ["data of the runs", _distinct(runs, "data")],
        ["versions of the runs", _distinct(runs, "versions")],
        ["hardware of the runs", _distinct(runs, "hardware")],
    ]
    return Table(["", ""], [row for row in rows if row[1]])
