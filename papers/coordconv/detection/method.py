"""Boxes, anchors, sampling, loss and scores of the region-proposal network (spec, section 4, RPN).

Boxes are (centre i, centre j, height, width) in pixels, i downwards. Everything works on a batch with fixed shapes:
what a plain implementation would pick with indices of varying number is picked here by sorting random keys and masked.
So batches, CUDA graphs and batch size 1 are the same computation, and an image's choices do not depend on its batch.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.random import Stream

TEMPLATES = ((15, 15), (20, 20), (25, 25), (15, 20), (20, 25), (20, 15), (25, 20), (15, 25), (25, 15))
"""Heights and widths of the nine anchors of a cell."""
CENTRES = {"valid": range(8, 57, 4), "same": range(2, 63, 4)}
"""Where the cells of the feature map look, in pixels, by the convolutions' padding."""
POSITIVES = NEGATIVES = 6
HIGH, LOW = 0.5, 0.1
PROPOSALS, OVERLAP = 10, 0.8
LAST = torch.iinfo(torch.int64).max


def make_anchors(padding: str = "valid", layout: str = "correct") -> Tensor:
    """Anchors in the order of the network's outputs (cell row, cell column, template): float32 [cells^2 * 9, 4].

    layout "released": the array of the public code, laid out (coordinate, template) and read as (template,
    coordinate). Of a cell's nine "boxes" the first two are (i, i, i, i), then come (i, j, j, j), (j, j, j, j) and
    (j, j, 15, 20), and the last four, e.g. (25, 15, 20, 20), are the same in every cell (spec, section 8).
    """
    centres = torch.tensor(CENTRES[padding], dtype=torch.float32)
    sizes = torch.tensor(TEMPLATES, dtype=torch.float32)
    cells, templates = len(centres), len(sizes)
    i = centres[:, None, None].expand(cells, cells, templates)
    j = centres[None, :, None].expand(cells, cells, templates)
    height, width = (size.expand(cells, cells, templates) for size in sizes.unbind(1))
    if layout == "released":
        # The 36 numbers of a cell, coordinate by coordinate, cut into nine fours.
        return torch.cat([i, j, height, width], dim=2).reshape(-1, 4)
    return torch.stack([i, j, height, width], dim=3).reshape(-1, 4)


def move(boxes: Tensor, transform: Tensor) -> Tensor:
    """Boxes moved by (ti, tj, th, tw): centre + t * size, size * exp(t). Both broadcast, [..., 4]."""
    size = boxes[..., 2:]
    return torch.cat([boxes[..., :2] + transform[..., :2] * size, size * transform[..., 2:].exp()], dim=-1)


def transform_between(before: Tensor, after: Tensor) -> Tensor:
    """The transform that moves `before` to `after`, the inverse of `move`: [..., 4]."""
    shift = (after[..., :2] - before[..., :2]) / before[..., 2:]
    return torch.cat([shift, (after[..., 2:] / before[..., 2:]).log()], dim=-1)


def corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(first i and j, last i and j), each [..., 2]."""
    half = boxes[..., 2:] / 2
    return boxes[..., :2] - half, boxes[..., :2] + half


def clip(boxes: Tensor, canvas: int) -> Tensor:
    """Boxes cut to [0, canvas - 1], at least a pixel in size, as the released code does where asked to: [..., 4]."""
    low, high = corners(boxes)
    low, high = low.clamp(0, canvas - 2), high.clamp(1, canvas - 1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of each with each: [..., N, 4] and [..., P, 4] give [..., N, P]."""
    low, high = (edge.unsqueeze(-2) for edge in corners(first))
    other_low, other_high = (edge.unsqueeze(-3) for edge in corners(second))
    sides = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    areas = first[..., 2:].prod(-1).unsqueeze(-1) + second[..., 2:].prod(-1).unsqueeze(-2)
    return intersection / (areas - intersection)


class Sample(NamedTuple):
    """The boxes of one step, per image.

    positive, truth: int64 [B, 6], the box and the true box it is paired with; found: bool [B, 6], false where there
    were fewer positives. negative: int64 [B, 6]; usable: bool [B, 6], false only where every box is positive.
    """

    positive: Tensor
    truth: Tensor
    found: Tensor
    negative: Tensor
    usable: Tensor


def draw_keys(stream: Stream, keys: Tensor, boxes: int, truths: int) -> Tensor:
    """What `sample` needs at random, a function of the numbers in `keys` (int64 [B]): int64 [B, boxes*(truths+1)+6].

    Non-negative and below `LAST`, which marks what is no candidate.
    """
    return (stream.bits(keys, boxes * (truths + 1) + NEGATIVES) >> 1) & (LAST >> 1)


def candidates(overlap: Tensor, moved: Tensor, canvas: int, seen: bool = False) -> tuple[Tensor, Tensor]:
    """Which (box, true box) pairs may be positive, bool [B, N, P], and which boxes negative, bool [B, N].

    Positive: IOU > 0.5 and inside the canvas, or the first of the boxes with the greatest IOU with a true box.
    Negative: IOU < 0.1 with every true box, inside, and nobody's best box; where an image has none of these, any box
    that is not positive. Inside means within [0, canvas - 1], as in the released code.

    A true box that no box overlaps still has a first box of greatest IOU, 0: box 0, as in the released code. Three in
    ten lie outside the image, so box 0 is positive in most images. seen: without those pairs.
    """
    low, high = corners(moved)
    inside = ((low >= 0) & (high <= canvas - 1)).all(-1)
    boxes = torch.arange(overlap.shape[1], device=overlap.device)
    greatest = overlap.max(1, keepdim=True)
    best = boxes[:, None] == greatest.indices
    if seen:
        best = best & (greatest.values > 0)
    positive = best | ((overlap > HIGH) & inside[..., None])
    negative = ((overlap < LOW) & ~best).all(-1) & inside
    negative = negative | (~positive.any(-1) & ~negative.any(-1, keepdim=True))
    return positive, negative


def sample(overlap: Tensor, moved: Tensor, keys: Tensor, canvas: int, seen: bool = False) -> Sample:
    """Up to six positive pairs and six negative boxes of each image, without replacement.

    Fewer than six negatives are drawn with replacement. overlap: IOU of the moved boxes, [B, N, P] with N >= 6. moved:
    [B, N, 4]. keys: of `draw_keys`; candidates are taken in the order of their keys. seen: as in `candidates`.
    """
    positive, negative = candidates(overlap, moved, canvas, seen)
    pairs = positive[0].numel()
    pair_keys = torch.where(positive.flatten(1), keys[:, :pairs], LAST)
    box_keys = torch.where(negative, keys[:, pairs : pairs + len(negative[0])], LAST)
    pair_keys, pair = pair_keys.topk(POSITIVES, largest=False)
    box_keys, box = box_keys.topk(NEGATIVES, largest=False)
    count = (box_keys < LAST).sum(1, keepdim=True)
    again = ((keys[:, -NEGATIVES:] >> 31) * count) >> 31
    order = torch.arange(NEGATIVES, device=keys.device)
    slot = torch.where(count < NEGATIVES, again, order)
    truths = positive.shape[2]
    return Sample(
        pair // truths, pair % truths, pair_keys < LAST, box.gather(1, slot), (count > 0).expand(-1, NEGATIVES)
    )


def smooth_l1(difference: Tensor) -> Tensor:
    """The released one: x^2 up to 1, |x| above (no factor 1/2, hence a break of slope at 1); elementwise."""
    size = difference.abs()
    return torch.where(size > 1, size, difference.square())


class Losses(NamedTuple):
    """Per image, float [B]: of the boxes, of the scores; and the mean IOU of the sampled positives."""

    boxes: Tensor
    scores: Tensor
    positive_iou: Tensor


def proposal_losses(
    scores: Tensor,
    transform: Tensor,
    anchors: Tensor,
    truths: Tensor,
    keys: Tensor,
    canvas: int,
    cut: bool = False,
    seen: bool = False,
) -> Losses:
    """The loss of each image: smooth-L1 of the positives' transforms, summed over 4 and averaged over the positives,
    and the two-way cross entropy averaged over positives and negatives.

    scores: logits [B, N, 2], the first for "an object". transform: [B, N, 4]. anchors: [N, 4]. truths: [B, P, 4].
    keys: of `draw_keys`. cut: clip predicted and true boxes to the canvas. seen: as in `candidates`. No gradient flows
    through the choice.
    """
    with torch.no_grad():
        moved = move(anchors, transform)
        if cut:
            moved, truths = clip(moved, canvas), clip(truths, canvas)
        overlap = iou(moved, truths)
        chosen = sample(overlap, moved, keys, canvas, seen)
        target = transform_between(anchors[chosen.positive], _rows(truths, chosen.truth))
        pair = chosen.positive * truths.shape[1] + chosen.truth
        positive_iou = _masked_mean(overlap.flatten(1).gather(1, pair), chosen.found)
    box_loss = _masked_mean(smooth_l1(_rows(transform, chosen.positive) - target).sum(-1), chosen.found)
    logits = _rows(scores, torch.cat([chosen.positive, chosen.negative], dim=1))
    labels = (torch.arange(POSITIVES + NEGATIVES, device=scores.device) >= POSITIVES).long().expand(len(scores), -1)
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    score_loss = _masked_mean(entropy, torch.cat([chosen.found, chosen.usable], dim=1))
    return Losses(box_loss, score_loss, positive_iou)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: [B, N, C] and int64 [B, K] give [B, K, C]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def propose(scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression of each image: at most ten boxes, the most certain first, no two with an IOU above 0.8.

    scores: logits [B, N, 2]; boxes: [B, N, 4]. Returns index int64 [B, 10], probability [B, 10], found bool [B, 10].
    """
    probability = scores.softmax(-1)[..., 0]
    left = probability.clone()
    index, found = [], []
    for _ in range(PROPOSALS):
        value, best = left.max(1)
        overlap = iou(boxes, boxes.gather(1, best[:, None, None].expand(-1, 1, 4)))[..., 0]
        # The box itself goes in any case: one without a size has no IOU with itself.
        left = left.masked_fill(overlap > OVERLAP, -1.0).scatter(1, best[:, None], -1.0)
        index.append(best)
        found.append(value >= 0)
    chosen = torch.stack(index, dim=1)
    return chosen, probability.gather(1, chosen), torch.stack(found, dim=1)


def proposal_scores(proposals: Tensor, found: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    """Test IOU-average and Test IOU-select of each image, float [B] each.

    Over the proposals found of ten ([B, 10, 4] with bool [B, 10]) and all true boxes [B, P, 4]: the mean of the whole
    IOU matrix, and the mean over the proposals of the greatest IOU with a true box.
    """
    overlap = iou(proposals, truths)
    return _masked_mean(overlap.mean(2), found), _masked_mean(overlap.amax(2), found)


def plain_sample(
    overlap: np.ndarray, moved: np.ndarray, keys: np.ndarray, canvas: int, seen: bool = False
) -> tuple[list[tuple[int, int]], list[int]]:
    """`sample` for one image in plain words, as its oracle: (positive pairs, negative boxes).

    overlap [N, P], moved [N, 4], keys as one row of `draw_keys`.
    """
    boxes, truths = overlap.shape
    best = [int(overlap[:, truth].argmax()) for truth in range(truths)]
    if seen:
        best = [box if overlap[box, truth] > 0 else -1 for truth, box in enumerate(best)]
    inside = []
    for i, j, height, width in moved:
        edges = (i - height / 2, j - width / 2, i + height / 2, j + width / 2)
        inside.append(min(edges) >= 0 and max(edges) <= canvas - 1)
    pairs = [
        (box, truth)
        for box in range(boxes)
        for truth in range(truths)
        if best[truth] == box or (overlap[box, truth] > HIGH and inside[box])
    ]
    taken = {box for box, _ in pairs}
    empty = [box for box in range(boxes) if inside[box] and box not in best and max(overlap[box]) < LOW]
    empty = empty or [box for box in range(boxes) if box not in taken]
    pairs.sort(key=lambda pair: keys[pair[0] * truths + pair[1]])
    empty.sort(key=lambda box: keys[boxes * truths + box])
    if len(empty) < NEGATIVES:
        empty = [empty[(int(key) >> 31) * len(empty) >> 31] for key in keys[-NEGATIVES:] if empty]
    return pairs[:POSITIVES], empty[:NEGATIVES]
