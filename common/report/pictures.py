"""A paper's own pictures: what curves and intervals cannot show (samples, predictions, boxes).

A paper names a function `draw(results document, folder of the preset's runs) -> list[Picture]`. It reads the artifacts
that runs left and returns an empty list where there are none; the report and the README show what it returns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.paper import Paper
from common.report.plots import new_figure
from common.runs import resolve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "new_figure", "of_paper"]


@dataclass(frozen=True)
class Picture:
    """One picture. name: letters, digits and hyphens, its file name. caption: one or two sentences for a reader."""

    name: str
    caption: str
    figure: "Figure"


def of_paper(paper: Paper, results: dict[str, Any], folder: Path) -> list[Picture]:
    """The paper's pictures of these results, from the artifacts below `folder` (<out>/<paper>/<preset>)."""
    return resolve(paper.pictures)(results, folder) if paper.pictures else []
