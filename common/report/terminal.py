"""The verdicts on the terminal: a table where there is one, plain short lines in a log."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.report import tables, text

if TYPE_CHECKING:
    from rich.console import Console

_COLORS = {"reproduced": "bold green", "held": "green", "failed": "red", "inconclusive": "yellow"}


def print_verdicts(results: dict[str, Any], report_path: Path | None, console: "Console | None" = None) -> None:
    """Print each judged claim, the counts, and where the report is (relative to the current folder)."""
    from rich.console import Console

    console = console or Console()
    tables.check_version(results, "the results document")
    claims = tables.judged(results)
    if claims and console.is_terminal:
        _print_table(results, claims, console)
    for claim in claims if not console.is_terminal else []:
        _line(console, verdict_line(claim))
    unfinished = [run for run in results["runs"] if run["status"] != "finished"]
    for run in unfinished[:10]:
        where = f"{run['experiment']} {run['method']} seed {run['seed']}"
        _line(console, text.shorten(f"{where} {run['status']}: {run['error'] or 'no message'}", 200))
    if len(unfinished) > 10:
        _line(console, f"and {len(unfinished) - 10} more runs that did not finish: see the report")
    _line(console, f"{results['paper']} {results['preset']}: {tables.counts_text(results['claims'])}")
    _line(console, tables.chance_text(results))
    if any(claim["stand_in"] for claim in claims):
        _line(console, "A stand-in data set can support a claim's direction; it never reproduces the paper's number.")
    if report_path is not None:
        _line(console, f"report: {_relative(report_path)}")


def verdict_line(claim: dict[str, Any]) -> str:
    """`C1 held  paper 11.08  ours 12.3 [10.1, 14.5] % n=10  (digits, stand-in)`, with the note where it matters."""
    paper = text.plain(claim["paper_value"]) if claim["paper_value"] is not None else text.MISSING
    paper += "" if claim["verified"] or claim["paper_value"] is None else text.RECALLED
    ours = text.with_unit(text.interval(claim["measured"]), claim["unit"])
    count = tables.count_text(claim).replace("n = ", "n=")
    setting = ", ".join(word for word in (claim["data"], "stand-in" if claim["stand_in"] else "") if word)
    line = f"{claim['id']} {claim['verdict']}  paper {paper}  ours {ours} {count}".rstrip()
    line += f"  ({setting})" if setting else ""
    if claim["note"] and claim["verdict"] in ("inconclusive", "failed"):
        line += f"  {claim['note']}"
    return " ".join(line.split("\n"))


def _print_table(results: dict[str, Any], claims: list[dict[str, Any]], console: "Console") -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=None, pad_edge=False)
    table.add_column("")
    table.add_column("claim", overflow="fold", min_width=24)
    for heading in ("paper", "ours (95 % interval)", "gate", "verdict"):
        table.add_column(heading, overflow="fold")
    settings = {tables.setting_text(claim, results["preset"]) for claim in claims}
    for claim in claims:
        detail = Text(text.shorten(claim["statement"], 90))
        if len(settings) > 1:
            detail.append(f"\n{tables.setting_text(claim, results['preset'])}", style="dim")
        if claim["note"]:
            detail.append(f"\n{claim['note']}", style="dim italic")
        table.add_row(
            Text(claim["id"], style="bold"),
            detail,
            Text(tables.paper_number(claim)),
            Text(tables.ours_text(claim)),
            Text(tables.gate_text(claim)),
            Text(claim["verdict"], style=_COLORS.get(claim["verdict"], "")),
        )
    console.print(table)
    if len(settings) == 1:
        _line(console, f"All on {settings.pop()}.")
    if any(not claim["verified"] for claim in claims):
        _line(console, f"{text.RECALLED} recalled, not checked against the paper's text")


def _line(console: "Console", line: str) -> None:
    console.print(" ".join(line.split("\n")), markup=False, highlight=False, soft_wrap=True)


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir + os.sep + os.pardir) else relative
