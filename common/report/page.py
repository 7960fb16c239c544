"""report.md, report.html and plots/*.png of one results document."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from common.files import write_bytes, write_text
from common.report import plots, tables, text
from common.report.curves import read_curves
from common.report.readme import result_parts

LEVEL_NOTE = "Mean ± half of the 95 % Student t interval over the seeds of the finished runs."


@dataclass
class Picture:
    """A plot as the pages show it: inline SVG for HTML, a file in `plots/` for Markdown."""

    name: str
    alt: str
    svg: str
    caption: str = ""


@dataclass
class Section:
    """One experiment: its table, the curves of its metrics, and the other curves."""

    anchor: str
    table: tables.Table
    curves: list[Picture] = field(default_factory=list)
    more: list[Picture] = field(default_factory=list)


def write_report(results: dict[str, Any], curves: Path | None, bench: dict[str, Any] | None, folder: Path) -> Path:
    """Write report.md, report.html (self-contained) and plots/*.png to `folder`; the path of report.html.

    `results` and `bench` are the documents results.json and bench.json; `curves` is the gathered curve file. Raises
    UserError for a document of another schema version or a damaged curve file. Every file is written atomically.
    """
    tables.check_version(results, "the results document")
    if bench is not None:
        tables.check_version(bench, "the bench document")
    grouped = read_curves(curves) if curves is not None else {}
    alt = "Claims: our interval, gate, null and the paper's number"
    forest = _picture(plots.forest(results), "forest", alt, folder)
    sections = []
    for number, experiment in enumerate(tables.experiments(results), 1):
        section = Section(f"experiment-{number}", tables.experiment_table(results, experiment))
        known, others = plots.curve_names(grouped, results, experiment)
        for names, pictures in ((known, section.curves), (others, section.more)):
            for name in names:
                figure = plots.learning_curves(results, grouped, experiment, name)
                file = f"{text.slug(experiment)}--{text.slug(name)}"
                picture = _picture(figure, file, f"{experiment}: {name} over the steps, by method", folder)
                pictures += [picture] if picture else []
        sections.append(section)
    write_text(folder / "report.md", _markdown(results, sections, forest, bench))
    page = folder / "report.html"
    write_text(page, _html(results, sections, forest, bench))
    return page


def _picture(figure: Any, name: str, alt: str, folder: Path) -> Picture | None:
    if figure is None:
        return None
    write_bytes(folder / "plots" / f"{name}.png", plots.png(figure, name))
    return Picture(name, alt, plots.svg(figure, name))


def reproduce_lines(results: dict[str, Any]) -> list[str]:
    """The commands that make these results again."""
    commit = results["provenance"].get("commit")
    return [
        *([f"git checkout {commit}"] if commit else []),
        f"make reproduce PAPER={results['paper']} PRESET={results['preset']}",
        f"make report PAPER={results['paper']} PRESET={results['preset']}",
    ]


def _title(results: dict[str, Any]) -> str:
    return str(results.get("title") or results["paper"])


def _markdown(
    results: dict[str, Any], sections: list[Section], forest: Picture | None, bench: dict[str, Any] | None
) -> str:
    def show(picture: Picture) -> str:
        return f"![{text.markdown(picture.alt)}](plots/{picture.name}.png)"

    parts = [f"# {text.markdown(_title(results))}", f"Paper `{results['paper']}`, preset `{results['preset']}`."]
    parts += ["## Verdicts", *result_parts(results, "###")]
    if forest:
        parts += ["## Claims at a glance", show(forest), f"*{text.markdown(plots.FOREST_CAPTION)}*"]
    pictures = [picture for section in sections for picture in (*section.curves, *section.more)]
    if pictures:
        parts += ["## Learning curves", f"*{text.markdown(plots.BAND)}*", *map(show, pictures)]
    if bench is not None and bench["rows"]:
        parts += ["## Speed", tables.bench_table(bench).markdown()]
    if results["metrics"]:
        parts += ["## Metrics", tables.metric_table(results).markdown()]
    parts += ["## Provenance", tables.provenance_table(results).markdown()]
    parts += ["## Reproduce", "```\n" + "\n".join(reproduce_lines(results)) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _html(
    results: dict[str, Any], sections: list[Section], forest: Picture | None, bench: dict[str, Any] | None
) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("common.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    template = environment.from_string(source)
    claims = tables.judged(results)
    return template.render(
        title=_title(results),
        results=results,
        verdicts=tables.verdict_table(results, claims),
        counts=tables.verdict_counts(results["claims"]),
        chance=tables.chance_text(results),
        stand_in=any(claim["stand_in"] for claim in claims),
        waiting=tables.not_run_table(results),
        forest=forest,
        forest_caption=plots.FOREST_CAPTION,
        sections=sections,
        level_note=LEVEL_NOTE,
        band=plots.BAND,
        bench=tables.bench_table(bench) if bench is not None and bench["rows"] else None,
        metrics=tables.metric_table(results) if results["metrics"] else None,
        provenance=tables.provenance_table(results),
        commands=reproduce_lines(results),
    ) + "\n"  # fmt: skip
