"""Tables of key points: a CSV file beside a folder of images, checked cell by cell; loads no torch.

    file,nose_x,nose_y,tail_x,tail_y        one pair of columns for each key point, or just x,y
    cats/1.jpg,120.5,88,310,95              pixels of that image; 0,0 is the middle of its upper left pixel
    cats/2.jpg,64,70.25,,                   empty cells: the point cannot be seen, and nothing is learnt of it

Files are named relative to the folder. Pixels are counted in the upright image, as its EXIF tag says and viewers show.
"""

import csv
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from common.data.images import formats, why_unreadable
from common.errors import UserError
from common.runs import Stopped


@dataclass(frozen=True)
class Table:
    """Key points of images. files: names relative to `root`; columns: x and y of each key point in turn.

    points: float64 [n, K, 2], pixels of the original image, NaN where a point is missing; sizes: int64 [n, 2], width
    and height of the upright image.
    """

    root: Path
    path: Path
    files: tuple[str, ...]
    columns: tuple[str, ...]
    points: np.ndarray
    sizes: np.ndarray

    def paths(self) -> list[Path]:
        """The image files, in order."""
        return [self.root / name for name in self.files]

    def rows(self, index: np.ndarray) -> "Table":
        """Only the rows at index."""
        names = tuple(self.files[i] for i in index)
        return Table(self.root, self.path, names, self.columns, self.points[index], self.sizes[index])


def _cells(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of a CSV file that are not blank, with their numbers (the header is row 1), split at commas, semicolons or
    tabs: whichever the header has."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save the table as CSV with UTF-8 encoding") from None
    except csv.Error as error:
        raise UserError(f"{path} row {reader.line_num} is not CSV ({error}): correct its quotes") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a CSV file with columns file,x,y") from None
    return [(number, row) for number, row in rows if any(row)]


def _key_points(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    """The columns of the pairs, x before y, in the order in which the key points first appear."""
    if "file" not in header:
        raise UserError(f"{path} row 1 has no column 'file': the first row names the columns, such as file,x,y")
    for column in header:
        if header.count(column) > 1:
            raise UserError(f"{path} row 1 names the column '{column}' twice: give each its own name")
    columns: list[str] = []
    for column in header:
        stem, axis = column[:-1], column[-1:]
        if column == "file" or column in columns:
            continue
        if axis not in ("x", "y") or not (stem == "" or stem.endswith("_")):
            raise UserError(
                f"{path} row 1: the column '{column}' is no half of a key point (x,y or nose_x,nose_y): rename or "
                "remove it"
            )
        pair = [f"{stem}x", f"{stem}y"]
        if missing := set(pair) - set(header):
            raise UserError(f"{path} row 1 has the column '{column}' without '{missing.pop()}': a key point needs both")
        columns += pair
    if not columns:
        raise UserError(f"{path} row 1 names no key point: add a pair of columns, such as x,y or nose_x,nose_y")
    return tuple(columns)


def _point(path: Path, number: int, columns: Sequence[str], texts: Sequence[str]) -> tuple[float, float]:
    """One pair of cells as numbers, NaN where both are empty."""
    if not any(texts):
        return float("nan"), float("nan")
    values = []
    for column, text in zip(columns, texts, strict=True):
        where = f"{path} row {number}, column {column}"
        if not text:
            raise UserError(f"{where} is empty and its partner is not: give both, or leave both empty")
        try:
            values.append(float(text))
        except ValueError:
            raise UserError(f"{where}: '{text}' is not a number: write it as 12.5, or leave both cells empty") from None
        if not isfinite(values[-1]):
            raise UserError(f"{where}: {text} is not finite: leave both cells of a missing point empty")
    return values[0], values[1]


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height as a viewer shows the image; only its header is read."""
    from PIL import ExifTags, Image

    with Image.open(path, formats=formats()) as file:
        width, height = file.size
        turned = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if turned else (width, height)


def read_table(path: Path, root: Path) -> Table:
    """The key points of images below the folder `root`, checked against the images' sizes.

    Raises UserError in one line that names file, row (the header is row 1) and column: for what is not a table of key
    points, a file that is missing, twice there or no image, a cell that is no number, half a point, a point outside.
    """
    rows = _cells(path)
    if not rows:
        raise UserError(f"{path} is empty: its first row names the columns, such as file,x,y")
    header = rows[0][1]
    columns = _key_points(path, header)
    places = [header.index(column) for column in columns]
    first_row: dict[str, int] = {}
    points = np.empty((len(rows) - 1, len(columns) // 2, 2))
    for i, (number, row) in enumerate(rows[1:]):
        if len(row) != len(header):
            raise UserError(f"{path} row {number} has {len(row)} cells and the header {len(header)}: correct the row")
        name = posixpath.normpath(row[header.index("file")] or "/")
        if name.startswith(("/", "../")) or name in (".", ".."):
            raise UserError(
                f"{path} row {number}, column file: '{row[header.index('file')]}' is no file below {root}: name it "
                "relative to that folder"
            )
        if name in first_row:
            raise UserError(f"{path} row {number}: {name} is there already in row {first_row[name]}: remove one")
        if not (root / name).is_file():
            raise UserError(f"{path} row {number}, column file: there is no file {root / name}: correct the name")
        first_row[name] = number
        cells = [row[place] for place in places]
        for k in range(points.shape[1]):
            pair = slice(2 * k, 2 * k + 2)
            points[i, k] = _point(path, number, columns[pair], cells[pair])
    if not first_row:
        raise UserError(f"{path} has no rows below its header: add one for each image")
    for k in range(points.shape[1]):
        if np.isnan(points[:, k]).all():
            raise UserError(f"{path}, column {columns[2 * k]}: every cell is empty: remove this key point's columns")
    sizes = np.array(
        map_files(list(first_row), lambda name: _image_size(root / name), lambda name: root / name, str(path))
    )
    # Tools that count from a pixel's corner, and points on an edge, are up to a pixel outside.
    outside = ((points < -1) | (points > sizes[:, None])).any(2)
    if outside.any():
        i, k = (int(number) for number in np.argwhere(outside)[0])
        name, number = list(first_row.items())[i]
        x, y = points[i, k]
        raise UserError(
            f"{path} row {number}, columns {columns[2 * k]} and {columns[2 * k + 1]}: the point ({x:g}, {y:g}) lies "
            f"outside {name}, which has {sizes[i, 0]}x{sizes[i, 1]} pixels: correct it, or leave both cells empty"
        )
    return Table(root, path, tuple(first_row), columns, points, sizes)


def map_files(
    items: Sequence[Any], read: Callable[[Any], Any], path_of: Callable[[Any], Path], where: str = ""
) -> list[Any]:
    """`read` of every item, several at once, in order; the first that fails is a UserError that names its file."""

    def attempt(item: Any) -> Any:
        try:
            return read(item)
        except (MemoryError, Stopped):
            raise
        except Exception as error:  # a broken file can raise nearly anything
            return UserError(why_unreadable(path_of(item), error) + (f", named in {where}" if where else ""))

    results = []
    pool = ThreadPoolExecutor()
    try:
        for result in pool.map(attempt, items):
            if isinstance(result, UserError):
                raise UserError(f"{result}: repair the file, or remove it and its row")
            results.append(result)
    finally:
        pool.shutdown(cancel_futures=True)
    return results
