"""Generated blocks in READMEs: tables between markers, drawn from the committed results and nothing else.

    <!-- generated: results quick -->
    ... whatever stands here is replaced ...
    <!-- end generated -->

Blocks of a paper's README: `results <preset>` (claims and methods), `output <preset>` (what the command printed),
`bench`, `plots <preset>` (the recorded pictures).
In the README at the root a paper's name comes first (`results mixmatch quick`), `papers` lists every paper with its
verdicts, and `data` is the table of data sets and licences.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data import corpora, folders
from common.data.catalog import licence_table
from common.errors import UserError
from common.files import read_json, write_bytes, write_json, write_text
from common.report import plots, tables, text
from common.report.curves import read_curves
from common.report.pictures import Picture
from common.report.terminal import print_verdicts

_MARKER = re.compile(r"^<!-- (generated: (?P<name>[^>]*?)|end generated) -->[ \t]*$", re.MULTILINE)
OWN, CAPTIONS = "picture--", "captions.json"
NOT_RECORDED = "*Not recorded yet.*"
PRESETS = ("quick", "cpu", "gpu", "paper")


def redraw(readme: Path) -> bool:
    """Draw every generated block of a README anew; whether the file changed. UserError for a broken marker."""
    before = _read(readme)
    after = _redrawn(before, readme)
    if after != before:
        write_text(readme, after)
    return after != before


def check(readme: Path) -> list[str]:
    """One line for each block that differs from what the committed results say; empty when all is well."""
    try:
        before = _read(readme)
        after = _redrawn(before, readme)
    except UserError as error:
        return [str(error)]
    pairs = zip(_blocks(before, readme), _blocks(after, readme), strict=True)
    return [
        f"{readme}:{before.count(chr(10), 0, start) + 1}: the block '{name}' differs from the recorded results: "
        "run make record, and edit nothing between the markers"
        for (name, start, end), (_, new_start, new_end) in pairs
        if before[start:end] != after[new_start:new_end]
    ]


def _read(readme: Path) -> str:
    try:
        return readme.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{readme} does not exist: restore it with git checkout") from None


def _blocks(document: str, readme: Path) -> list[tuple[str, int, int]]:
    """Name, start and end of the text between each pair of markers."""
    blocks: list[tuple[str, int, int]] = []
    name, start = None, 0
    for match in _MARKER.finditer(document):
        if (match["name"] is None) == (name is None):
            line = document.count("\n", 0, match.start()) + 1
            raise UserError(f"{readme}:{line}: '{match[0].strip()}' has no partner: end each block with one end marker")
        if name is None:
            name, start = match["name"].strip(), match.end()
        else:
            blocks.append((name, start, match.start()))
            name = None
    if name is not None:
        raise UserError(f"{readme}: the block '{name}' has no '<!-- end generated -->': add it")
    return blocks


def _redrawn(document: str, readme: Path) -> str:
    parts, position = [], 0
    for name, start, end in _blocks(document, readme):
        parts += [document[position:start], f"\n\n{render(name, readme.parent)}\n\n"]
        position = end
    return "".join([*parts, document[position:]])


def render(name: str, folder: Path) -> str:
    """The Markdown of one block for the README in `folder`. UserError for a name that is no block."""
    kind, *words = name.split()
    if kind == "papers" and not words:
        return papers(folder)
    if kind == "data" and not words:
        return licence_table() + folders.licence_rows() + corpora.licence_rows()
    count = 0 if kind == "bench" else 1
    if kind not in ("results", "output", "bench", "plots") or len(words) not in (count, count + 1):
        raise UserError(
            f"{folder / 'README.md'}: no block is called '{name}': write results, output or plots <preset>, bench, "
            "papers or data (at the root with the paper's name first: results mixmatch quick)"
        )
    paper = folder
    if len(words) > count:
        paper = folder / "papers" / words[0]
        if not paper.is_dir():
            raise UserError(f"{folder / 'README.md'}: block '{name}': there is no paper in {paper}")
    if kind == "bench":
        return bench(paper / "results" / "bench.json")
    if kind == "output":
        return output(paper / "results" / f"{words[-1]}.json")
    if kind == "plots":
        return pictures(paper / "results" / "plots" / words[-1], folder)
    return claims_and_methods(paper / "results" / f"{words[-1]}.json")


def _load(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    document = read_json(path)
    tables.check_version(document, str(path))
    return dict(document)


def claims_and_methods(path: Path) -> str:
    """The `results` block: counts, judged claims, one table of methods an experiment."""
    results = _load(path)
    if results is None:
        return NOT_RECORDED
    return "\n\n".join(result_parts(results, heading="####", list_not_run=False))


def result_parts(results: dict[str, Any], heading: str, list_not_run: bool = True) -> list[str]:
    """Markdown of verdicts and methods; `heading` is the level of an experiment's title.

    list_not_run: whether the claims that the preset does not test are listed, which would bury a README.
    """
    claims, waiting = tables.judged(results), tables.not_run(results)
    parts = [f"**{text.markdown(tables.counts_text(results['claims']))}.** {tables.chance_text(results)}"]
    if claims:
        parts.append(tables.verdict_table(results, claims).markdown())
    summary = f"{text.plural(len(waiting), 'claim')} not run with this preset"
    if waiting and list_not_run:
        listed = tables.not_run_table(results).markdown()
        parts += [f"<details><summary>{summary}</summary>", listed, "</details>"]
    elif waiting:
        parts.append(f"*{summary}: the report lists them.*")
    for experiment in tables.experiments(results):
        table = tables.experiment_table(results, experiment)
        parts += [f"{heading} {text.markdown(table.title)}", "Mean ± half of the 95 % t interval over seeds."]
        parts.append(table.markdown())
    if not results["runs"]:
        parts.append("*No run is recorded.*")
    return parts


def output(path: Path) -> str:
    """The `output` block: what the command prints at its end where there is no terminal."""
    results = _load(path)
    if results is None:
        return NOT_RECORDED
    from rich.console import Console

    printed = io.StringIO()
    print_verdicts(results, None, Console(file=printed, width=120))
    return f"```text\n{printed.getvalue().rstrip()}\n```"


def bench(path: Path) -> str:
    """The `bench` block."""
    document = _load(path)
    return NOT_RECORDED if document is None else tables.bench_table(document).markdown()


def pictures(folder: Path, base: Path) -> str:
    """The `plots` block: recorded pictures as links relative to the README's folder.

    First the forest plot, then the paper's own pictures, then the learning curves.
    """
    files = sorted(folder.glob("*.png"), key=lambda file: (file.name != "forest.png", file.name))
    if not files:
        return NOT_RECORDED
    captions = read_json(folder / CAPTIONS) if (folder / CAPTIONS).exists() else {}
    parts: list[str] = []
    curves: list[str] = []
    for file in files:
        link = f"![{file.stem}]({file.relative_to(base).as_posix()})"
        caption = plots.FOREST_CAPTION if file.name == "forest.png" else captions.get(file.name)
        if caption is None:
            curves.append(link)
        else:
            parts += [link, f"*{text.markdown(caption)}*"]
    return "\n\n".join([*parts, *curves, *([f"*{text.markdown(plots.BAND)}*"] if curves else [])])


def papers(root: Path) -> str:
    """The `papers` block: every paper folder below `root/papers`, with its verdicts per recorded preset."""
    rows = []
    recorded: list[str] = []
    folders = [path.parent for path in sorted((root / "papers").glob("*/reproduce.py"))]
    loaded = {folder: _presets(folder) for folder in folders}
    for presets in loaded.values():
        recorded += [preset for preset in presets if preset not in recorded]
    recorded.sort(key=lambda preset: (PRESETS.index(preset) if preset in PRESETS else len(PRESETS), preset))
    for folder, presets in loaded.items():
        title = next((document["title"] for document in presets.values() if document.get("title")), _heading(folder))
        link = f"[{text.markdown(title)}](papers/{folder.name}/README.md)"
        cells = [
            text.markdown(tables.counts_text(presets[preset]["claims"])) if preset in presets else "not recorded yet"
            for preset in recorded
        ]
        rows.append([link, f"`{folder.name}`", *cells])
    if not rows:
        return NOT_RECORDED
    header = ["Paper", "Name", *(f"`{preset}`" for preset in recorded)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _presets(folder: Path) -> Mapping[str, dict[str, Any]]:
    files = [file for file in sorted((folder / "results").glob("*.json")) if file.name != "bench.json"]
    return {file.stem: document for file in files if (document := _load(file)) is not None}


def _heading(folder: Path) -> str:
    readme = folder / "README.md"
    lines = readme.read_text(encoding="utf-8").splitlines() if readme.exists() else []
    return next((line.removeprefix("# ").strip() for line in lines if line.startswith("# ")), folder.name)


def record_plots(results: dict[str, Any], curves: Path | None, folder: Path, own: Sequence[Picture] = ()) -> list[Path]:
    """Write small PNGs for the README to `folder/<preset>/`, in place of those that stood there.

    The forest plot, the paper's own pictures with their captions in `captions.json`, and a learning curve per
    experiment and metric (of an experiment with more than 18 methods, a sweep, none). The same input gives the same
    bytes.
    """
    tables.check_version(results, "the results document")
    pictures: dict[str, bytes] = {}
    figure = plots.forest(results)
    if figure is not None:
        pictures["forest.png"] = plots.png(figure, "forest", dpi=100)
    captions = {}
    for picture in own:
        pictures[f"{OWN}{picture.name}.png"] = plots.png(picture.figure, picture.name, dpi=100)
        captions[f"{OWN}{picture.name}.png"] = picture.caption
    grouped = read_curves(curves) if curves is not None else {}
    for experiment in tables.experiments(results):
        if len({run["method"] for run in results["runs"] if run["experiment"] == experiment}) > plots.MANY:
            continue
        for name in plots.curve_names(grouped, results, experiment)[0]:
            figure = plots.learning_curves(results, grouped, experiment, name)
            if figure is not None:
                file = f"{text.slug(experiment)}--{text.slug(name)}.png"
                pictures[file] = plots.png(figure, file, dpi=100)
    target = folder / results["preset"]
    for file, content in pictures.items():
        write_bytes(target / file, content)
    for path in target.glob("*.png"):
        if path.name not in pictures:
            path.unlink()
    if captions:
        write_json(target / CAPTIONS, captions)
    else:
        (target / CAPTIONS).unlink(missing_ok=True)
    return [target / file for file in pictures]
