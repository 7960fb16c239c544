"""report.md, report.html and plots/*.png of one results document."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from common.files import write_bytes, write_text
from common.report import plots, tables, text
from common.report.curves import read_curves
from common.report.pictures import Picture
from common.report.readme import result_parts

LEVEL_NOTE = "Mean ± half of the 95 % Student t interval over the seeds of the finished runs."


@dataclass
class Drawn:
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
    curves: list[Drawn] = field(default_factory=list)
    more: list[Drawn] = field(default_factory=list)


def write_report(
    results: dict[str, Any],
    curves: Path | None,
    bench: dict[str, Any] | None,
    folder: Path,
    pictures: Sequence[Picture] = (),
) -> Path:
    """Write report.md, report.html (self-contained) and plots/*.png to `folder`; the path of report.html.

    `results` and `bench` are the documents results.json and bench.json; `curves` is the gathered curve file; `pictures`
    are the paper's own. Raises
    UserError for a document of another schema version or a damaged curve file. Every file is written atomically.
    """
    tables.check_version(results, "the results document")
    if bench is not None:
        tables.check_version(bench, "the bench document")
    grouped = read_curves(curves) if curves is not None else {}
    alt = "Claims: our interval, gate, null and the paper's number"
    forest = _picture(plots.forest(results), "forest", alt, folder)
    own = [_own(picture, folder) for picture in pictures]
    sections = []
    for number, experiment in enumerate(tables.experiments(results), 1):
        section = Section(f"experiment-{number}", tables.experiment_table(results, experiment))
        known, others = plots.curve_names(grouped, results, experiment)
        for names, drawn in ((known, section.curves), (others, section.more)):
            for name in names:
                figure = plots.learning_curves(results, grouped, experiment, name)
                file = f"{text.slug(experiment)}--{text.slug(name)}"
                picture = _picture(figure, file, f"{experiment}: {name} over the steps, by method", folder)
                drawn += [picture] if picture else []
        sections.append(section)
    write_text(folder / "report.md", _markdown(results, sections, forest, own, bench))
    page = folder / "report.html"
    write_text(page, _html(results, sections, forest, own, bench))
    return page


def _picture(figure: Any, name: str, alt: str, folder: Path) -> Drawn | None:
    if figure is None:
        return None
    write_bytes(folder / "plots" / f"{name}.png", plots.png(figure, name))
    return Drawn(name, alt, plots.svg(figure, name))


def _own(picture: Picture, folder: Path) -> Drawn:
    """A picture of the paper's own, as PNG in both pages: many are photographs, which SVG would only carry."""
    content = plots.png(picture.figure, picture.name)
    write_bytes(folder / "plots" / f"{picture.name}.png", content)
    source = base64.b64encode(content).decode()
    style = f"max-width: {72 * picture.figure.get_figwidth():.0f}pt; width: 100%"
    alt = html.escape(picture.caption, quote=True)
    markup = f'<img class="plot" alt="{alt}" style="{style}" src="data:image/png;base64,{source}">'
    return Drawn(picture.name, picture.caption, markup, picture.caption)


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
    results: dict[str, Any],
    sections: list[Section],
    forest: Drawn | None,
    own: list[Drawn],
    bench: dict[str, Any] | None,
) -> str:
    def show(picture: Drawn) -> str:
        return f"![{text.markdown(picture.alt)}](plots/{picture.name}.png)"

    parts = [f"# {text.markdown(_title(results))}", f"Paper `{results['paper']}`, preset `{results['preset']}`."]
    parts += ["## Verdicts", *result_parts(results, "###")]
    if forest:
        parts += ["## Claims at a glance", show(forest), f"*{text.markdown(plots.FOREST_CAPTION)}*"]
    if own:
        parts += ["## Pictures", *(f"{show(each)}\n\n*{text.markdown(each.caption)}*" for each in own)]
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
    results: dict[str, Any],
    sections: list[Section],
    forest: Drawn | None,
    own: list[Drawn],
    bench: dict[str, Any] | None,
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
        own=own,
        forest_caption=plots.FOREST_CAPTION,
        sections=sections,
        level_note=LEVEL_NOTE,
        band=plots.BAND,
        bench=tables.bench_table(bench) if bench is not None and bench["rows"] else None,
        metrics=tables.metric_table(results) if results["metrics"] else None,
        provenance=tables.provenance_table(results),
        commands=reproduce_lines(results),
    ) + "\n"  # fmt: skip
