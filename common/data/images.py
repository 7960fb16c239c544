"""The user's own image files: which there are, and what one shows. Used by the papers' `own_data`; loads no torch."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def image_files(folder: Path) -> list[Path]:
    """Every file below `folder` that is not hidden, sorted; links to folders are followed, each folder once."""
    found: list[Path] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        if os.path.exists(folder):
            raise UserError(f"{error.filename} cannot be read ({error.strerror}): correct its permissions or remove it")

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        names = [] if real in seen else names
        seen.add(real)
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def readable_name(name: object) -> str:
    """A name as text that can be written as UTF-8, whatever bytes the file system holds."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@functools.cache
def formats() -> list[str]:
    """All of Pillow's formats but EPS, for which it would start another program on the file."""
    from PIL import Image

    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _eight_bits(image: "Image") -> "Image":
    """16-bit values lose their lower byte, floats in [0, 1] become 0..255; ValueError for anything wider."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    highest = 1 if image.mode == "F" else 65_535
    if not (values.min() >= 0 and values.max() <= highest):
        raise ValueError(f"its values lie outside 0..{highest}")
    return Image.fromarray((values * 255).round().astype(np.uint8) if highest == 1 else (values >> 8).astype(np.uint8))


def open_image(path: Path, mode: str = "RGB", smallest: int | None = None) -> "Image":
    """One file as an upright image of the mode "RGB" or "L". What Pillow raises for a broken file goes through.

    It is turned as its EXIF tag says and put on white where it is transparent. smallest: a JPEG may be decoded at a
    half, a quarter or an eighth of its size as long as no side gets shorter than this.
    """
    from PIL import Image, ImageOps

    with Image.open(path, formats=formats()) as file:
        if smallest is not None:
            file.draft(None, (smallest, smallest))
        image = _eight_bits(ImageOps.exif_transpose(file))
    if "A" in image.mode.upper() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def why_unreadable(path: Path, error: Exception) -> str:
    """In words, for what `open_image` raised."""
    from PIL import UnidentifiedImageError

    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is empty" if path.stat().st_size == 0 else "it has no known image format"
    return f"{readable_name(path)} cannot be read as an image ({reason})"
