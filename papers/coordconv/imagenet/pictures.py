"""Pictures of the ImageNet experiments: the learning curves, which the report draws by itself, say all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.report.pictures import Picture


def draw(document: Mapping[str, Any], folder: Path) -> list[Picture]:
    """No further pictures."""
    return []
