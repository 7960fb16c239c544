"""Where the keys of a pattern lie: a cover of its (query, key) pairs by disjoint tiles, each a small dense problem.

A sparse pattern of n positions is a few families of equal problems: "every 64 queries and the 192 keys before and
among them", "every residue of l and the earlier positions of that residue". A `Tile` is one such family, as strides
into the sequence, so a kernel reads its queries and keys as views and all problems of the family in one call
(spec, 11.1). No pair is in two tiles, and every query of a tile has a key in it.

    band(s, lo, hi)   offsets lo s, (lo+1) s, ..., hi s: the sequence taken s apart, a band within each part
    own block         F1: causal attention inside each block of l
    earlier blocks    F2: the summary cells of earlier blocks, as rectangles that need no mask (see `_earlier`)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from papers.sparse_transformer.method import Pattern

Axes = tuple[tuple[int, int], ...]
"""(size, step in positions) of each axis, outermost first."""
Mask = tuple[str, int, int]
"""("offsets", lo, hi): lo <= i - j <= hi. ("earlier", l, 0): the key's block of l lies before the query's."""
Rectangle = tuple[int, int, int, int, int, int]
"""In units of blocks: first query block, query blocks, first key block, key blocks, problems, blocks between these."""
ROWS = 32
"""Fewest queries in a problem of a band: with fewer, calling a kernel costs more than computing."""
TRIANGLE = 128
"""Rows of a causal problem that is computed whole, both halves of it: kernels are that much faster at full squares."""
GROUP = 8
"""Blocks whose mutual summaries are one masked problem; beyond them rectangles without a mask take over."""
ALIGNED = 16
"""Kernels are about a fifth slower at 63 or 127 rows than at 64 or 128."""
FOREVER = 1 << 60
"""An offset that no sequence has."""


@dataclass(frozen=True)
class Grid:
    """Positions `start + problem + row`, problem and row each running over the sums of their axes."""

    start: int
    problems: Axes
    rows: Axes

    @property
    def num_problems(self) -> int:
        return _size(self.problems)

    @property
    def num_rows(self) -> int:
        return _size(self.rows)

    def view(self, x: Tensor) -> Tensor:
        """The positions of x [N, n, D], a contiguous tensor: a view [N, *problem axes, *row axes, D]."""
        size = x.shape[-1]
        axes = self.problems + self.rows
        sizes = (x.shape[0], *(count for count, _ in axes), size)
        strides = (x.shape[1] * size, *(step * size for _, step in axes), 1)
        return x.as_strided(sizes, strides, x.storage_offset() + self.start * size)

    def take(self, x: Tensor) -> Tensor:
        """The same as [N, problems, rows, D], a view where strides allow."""
        return self.view(x).reshape(x.shape[0], self.num_problems, self.num_rows, x.shape[-1])

    def put(self, x: Tensor, part: Tensor) -> None:
        """Write part [N, problems, rows, D] to the positions of x [N, n, D]; the rows of problems must not overlap."""
        view = self.view(x)
        view.copy_(part.reshape(view.shape))

    def add(self, x: Tensor, part: Tensor) -> None:
        """Add part [N, problems, rows, D] at the positions of x [N, n, D]; neighbouring problems may share rows."""
        for first, last, grid in self._apart():
            view = grid.view(x)
            view.add_(part[:, :, first:last].reshape(view.shape))

    def _apart(self) -> Iterator[tuple[int, int, "Grid"]]:
        """Ranges of rows of which no two problems share one, each with its grid."""
        rows, (_, step) = self.num_rows, self.problems[-1]
        overlapping = len(self.rows) == 1 and self.problems[-1][0] > 1 and 0 < step < rows * self.rows[0][1]
        row_step = self.rows[0][1]
        if not overlapping or step < row_step:
            yield 0, rows, self
            return
        chunk = step // row_step
        for first in range(0, rows, chunk):
            last = min(rows, first + chunk)
            yield first, last, Grid(self.start + first * row_step, self.problems, ((last - first, row_step),))

    def positions(self, device: torch.device | None = None) -> Tensor:
        """The positions themselves: int64 [problems, rows]."""
        problem = _sums(self.problems, device)
        return self.start + problem[:, None] + _sums(self.rows, device)


def _size(axes: Axes) -> int:
    size = 1
    for count, _ in axes:
        size *= count
    return size


def _sums(axes: Axes, device: torch.device | None) -> Tensor:
    total = torch.zeros(1, dtype=torch.int64, device=device)
    for count, step in axes:
        total = (total[:, None] + torch.arange(count, device=device) * step).flatten()
    return total


@dataclass(frozen=True)
class Tile:
    """Equal problems of queries against keys. causal: query row a sees the key rows 0..a. mask: which positions it
    sees, where that is not simply causal or all; the same for every problem. window: with `causal`, how many key rows
    back a query row sees beside its own, for kernels that skip what lies outside a band. fresh: no tile before this
    one in the pattern has these queries. skip: leading query rows of each problem that see nothing and only make the
    number of rows a round one."""

    queries: Grid
    keys: Grid
    causal: bool = False
    mask: Mask | None = None
    window: int | None = None
    fresh: bool = False
    skip: int = 0

    def allowed(self, device: torch.device | None = None) -> Tensor | None:
        """What each query row sees of the key rows: bool [rows, key rows], or None for everything."""
        if self.causal:
            rows = torch.arange(self.queries.num_rows, device=device)
            offset = rows[:, None] - torch.arange(self.keys.num_rows, device=device)
            return offset >= 0 if self.window is None else (offset >= 0) & (offset <= self.window)
        if self.mask is None:
            return None
        i, j = self.queries.positions(device)[0][:, None], self.keys.positions(device)[0]
        kind, first, second = self.mask
        if kind == "earlier":
            return j // first < i // first
        return (i - j >= first) & (i - j <= second)


def tiles_of(pattern: Pattern, n: int, head: int = 0, banded: bool = False) -> tuple[Tile, ...]:
    """The tiles of a pattern on n positions. head: which head, where each has its own summary cells (`rotate`).

    banded: whether the kernel skips what lies outside a band by itself (`Tile.window`) and knows no masks, as flash
    attention on a GPU; else bands are cut into problems.
    """
    first = last = 0
    if pattern.has_summaries:
        first, last = pattern.summary_cells(head)
    return _tiles(pattern.kind, pattern.stride, pattern.inclusive, first, last, n, banded)


@lru_cache(maxsize=256)
def _tiles(kind: str, stride: int, inclusive: bool, first: int, last: int, n: int, banded: bool) -> tuple[Tile, ...]:
    bands: dict[str, tuple[tuple[int, int, int | None], ...]] = {
        "dense": ((1, 0, None),),
        "window": ((1, 0, stride if inclusive else stride - 1),),
        "columns": ((stride, 0, None),),
        "strided": ((1, 0, stride - 1), (stride, 1, None)),
        "cubic": ((1, 0, stride - 1), (stride, 1, stride - 1), (stride * stride, 1, None)),
    }
    if kind == "cubic" and stride == 1:
        return _tiles("dense", 1, True, 0, 0, n, banded)
    if kind in bands:
        own, *others = ([*_band(n, step, lo, hi, banded)] for step, lo, hi in bands[kind])
        # What is neither causal nor masked is a rectangle beside a triangle, whose queries have seen themselves before.
        marked = (replace(tile, fresh=tile.causal or tile.mask is not None) for tile in own)
        return (*marked, *(tile for band in others for tile in band))
    own = [*(_own_summary(n, stride, first, last) if kind == "summaries" else _own_block(n, stride))]
    found = [replace(tile, fresh=True) for tile in own]
    if kind in ("summaries", "fixed"):
        found += _earlier(n, stride, first, last, 1 if banded else GROUP)
    return tuple(found)


def _band(n: int, step: int, lo: int, hi: int | None, banded: bool) -> Iterator[Tile]:
    """Offsets lo..hi (None: all) times step, lo being 0 or 1, in every part of the sequence taken `step` apart."""
    whole, rest = divmod(n, step)
    # The first `rest` parts have one position more than the others.
    for start, count, length in ((0, rest, whole + 1), (rest, step - rest, whole)):
        if count and length > lo and (hi is None or hi >= lo):
            yield from _band_of_parts(start, count, length, step, lo, length if hi is None else hi, banded)


def _band_of_parts(start: int, count: int, length: int, step: int, lo: int, hi: int, banded: bool) -> Iterator[Tile]:
    parts = (count, 1)
    if banded:
        axes = ((length - lo, step),)
        window = hi - lo if hi < length - 1 else None
        yield Tile(Grid(start + lo * step, (parts,), axes), Grid(start, (parts,), axes), causal=True, window=window)
        return
    if hi >= length - 1:
        yield from _triangles(start, parts, length, step, lo)
        return
    # The first rows see all before them, the others have a whole band behind them. Either hi or hi + 1 rows do as
    # the first ones: the even number makes rounder problems.
    head = hi + hi % 2
    if head > lo:
        yield from _triangles(start, parts, head, step, lo)
    rows = max(ROWS, head // 4 // ROWS * ROWS)
    mask = ("offsets", lo * step, hi * step)
    for at, many, size in _problems(length - head, rows):
        problems, first = (parts, (many, rows * step)), start + at * step
        queries = Grid(first + head * step, problems, ((size, step),))
        yield Tile(queries, Grid(first, problems, ((size + head, step),)), mask=mask)


def _problems(length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """`length` cut into pieces of `size` and a rest: first one, how many, size of each."""
    whole, rest = divmod(length, size)
    if whole:
        yield 0, whole, size
    if rest:
        yield whole * size, 1, rest


def _triangles(start: int, parts: tuple[int, int], length: int, step: int, lo: int) -> Iterator[Tile]:
    """Every row against itself (lo = 0) and all rows before it."""
    size = length if length < 2 * TRIANGLE else TRIANGLE
    for at, many, rows in _problems(length, size):
        problems, first = (parts, (many, size * step)), start + at * step
        whole = Grid(first, problems, ((rows, step),))
        if lo == 0:
            yield Tile(whole, whole, causal=True)
        elif rows % ALIGNED == 0:
            yield Tile(whole, whole, mask=("offsets", step, FOREVER), skip=1)
        elif rows > 1:
            # Shifted by one, "at least one back" is plainly causal.
            axes = ((rows - 1, step),)
            yield Tile(Grid(first + step, problems, axes), Grid(first, problems, axes), causal=True)
    for block, _, keys, num_keys, many, apart, rows in _whole_and_rest(
        _rectangles(1, -(-length // size)), length, size
    ):
        problems = (parts, (many, apart * size * step))
        queries = Grid(start + block * size * step, problems, ((rows, step),))
        yield Tile(queries, Grid(start + keys * size * step, problems, ((num_keys * size, step),)))


def _rectangles(group: int, blocks: int) -> Iterator[Rectangle]:
    """The pairs (block, earlier block) that lie in different groups of `group` blocks, without a mask.

    Two neighbouring groups at a time: the second sees all of the first, and the pair is the group of the next round.
    Hence log2(blocks / group) families whose problems double in size, and no score is computed in vain.
    """
    while group < blocks:
        pairs, left = divmod(blocks, 2 * group)
        if pairs:
            yield group, group, 0, group, pairs, 2 * group
        if left > group:
            at = pairs * 2 * group
            yield at + group, left - group, at, group, 1, 2 * group
        group *= 2


def _whole_and_rest(
    rectangles: Iterable[Rectangle], length: int, size: int
) -> Iterator[tuple[int, int, int, int, int, int, int]]:
    """Rectangles with their number of query rows, the last row of all being row length - 1: a problem that ends in a
    block that is not whole is one of its own."""
    for block, num_blocks, keys, num_keys, many, apart in rectangles:
        last = block + (many - 1) * apart
        cut = (last + num_blocks) * size > length
        if many > cut:
            yield block, num_blocks, keys, num_keys, many - cut, apart, num_blocks * size
        if cut:
            yield last, num_blocks, keys + (many - 1) * apart, num_keys, 1, apart, length - last * size


def _own_block(n: int, stride: int) -> Iterator[Tile]:
    for at, many, size in _problems(n, stride):
        grid = Grid(at, ((many, stride),), ((size, 1),))
        yield Tile(grid, grid, causal=True)


def _own_summary(n: int, stride: int, first: int, last: int) -> Iterator[Tile]:
    """The summary cells of a query's own block up to itself: causal among the cells, all of them after the last."""
    for at, many, size in _problems(n, stride):
        blocks, cells = ((many, stride),), min(last, size) - first
        if cells <= 0:
            continue
        keys = Grid(at + first, blocks, ((cells, 1),))
        yield Tile(keys, keys, causal=True)
        if size > last:
            yield Tile(Grid(at + last, blocks, ((size - last, 1),)), keys)


def _earlier(n: int, stride: int, first: int, last: int, group: int) -> Iterator[Tile]:
    """Queries against the summary cells of all blocks before their own: inside groups of `group` blocks with a mask,
    between groups as `_rectangles`."""
    blocks = -(-n // stride)
    inside: list[Rectangle] = []
    if group > 1:
        # The first block of a group sees nothing in it, and nobody in it sees the last.
        full, left = divmod(blocks, group)
        if full:
            inside.append((1, group - 1, 0, group - 1, full, group))
        if left > 1:
            inside.append((full * group + 1, left - 1, full * group, left - 1, 1, group))
    for rectangles, mask in ((inside, ("earlier", stride, 0)), (_rectangles(group, blocks), None)):
        for block, _, keys, num_keys, many, apart, rows in _whole_and_rest(rectangles, n, stride):
            problems = ((many, apart * stride),)
            cells = ((num_keys, stride), (last - first, 1))
            queries = Grid(block * stride, problems, ((rows, 1),))
            yield Tile(queries, Grid(keys * stride + first, problems, cells), mask=mask)
