"""The paper's pictures, part by part, in the order of the claims."""

from pathlib import Path
from typing import Any

from common.report.pictures import Picture
from papers.coordconv import pictures
from papers.coordconv.detection import pictures as detection
from papers.coordconv.gan import pictures as gan


def draw(document: dict[str, Any], folder: Path) -> list[Picture]:
    """Every picture that the artifacts below `folder` allow."""
    return [picture for part in (pictures, detection, gan) for picture in part.draw(document, folder)]
