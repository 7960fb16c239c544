"""Boxes, anchors, the sampler, the loss, suppression and scores of detection, and the networks' sizes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.random import Stream
from papers.coordconv.detection import method
from papers.coordconv.detection.networks import RegionProposal

CANVAS = 64


def boxes(seed: int, *shape: int) -> Tensor:
    """Boxes around the canvas, some of them partly or wholly outside."""
    drawn = Stream(seed, "boxes").uniform(0, math.prod(shape) * 4).view(*shape, 4)
    return torch.cat([drawn[..., :2] * 100 - 18, 4 + drawn[..., 2:] * 30], dim=-1)


def transforms(seed: int, *shape: int) -> Tensor:
    return Stream(seed, "transforms").normal(0, (*shape, 4)) * 0.3


# ---------------------------------------------------------------- anchors and boxes


def test_spec_12_anchors_count_and_centres() -> None:
    anchors = method.make_anchors()
    assert anchors.shape == (1521, 4)
    assert sorted(set(anchors[:, 0].tolist())) == list(range(8, 57, 4)) == sorted(set(anchors[:, 1].tolist()))
    assert [tuple(map(int, size)) for size in anchors[:9, 2:]] == list(method.TEMPLATES)
    # The second cell of the first row is one stride to the right.
    assert anchors[9].tolist() == [8, 12, 15, 15]
    assert anchors[13 * 9].tolist() == [12, 8, 15, 15]
    same = method.make_anchors("same")
    assert same.shape == (16 * 16 * 9, 4) and same[0, 0] == 2 and same[-1, 0] == 62


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_released_anchors_are_the_array_read_in_the_wrong_order(padding: str) -> None:
    released = method.make_anchors(padding, "released")
    cells, k = len(method.CENTRES[padding]), 9
    # As the public code builds it: (coordinate, template, row, column), reshaped, channels last, reshaped again.
    array = np.empty((4, k, cells, cells), np.float32)
    centres = np.array(method.CENTRES[padding], np.float32)
    array[0], array[1] = centres[None, :, None], centres[None, None, :]
    sizes = np.array(method.TEMPLATES, np.float32)
    array[2], array[3] = sizes[:, 0, None, None], sizes[:, 1, None, None]
    expected = array.reshape(4 * k, cells, cells).transpose(1, 2, 0).reshape(-1, 4)
    assert np.array_equal(released.numpy(), expected)


def test_released_anchors_of_two_cells() -> None:
    fixed = [[25, 15, 20, 20], [25, 15, 25, 15], [20, 25, 20, 25], [15, 20, 25, 15]]
    released = method.make_anchors(layout="released").view(13, 13, 9, 4)
    assert released[0, 0].tolist() == [[8, 8, 8, 8]] * 4 + [[8, 8, 15, 20], *fixed]
    i, j = 8 + 4 * 2, 8 + 4 * 5
    expected = [[i] * 4, [i] * 4, [i, j, j, j], [j] * 4, [j, j, 15, 20], *fixed]
    assert released[2, 5].tolist() == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_spec_12_transform_and_inverse(seed: int) -> None:
    before, wanted = boxes(seed, 7), transforms(seed, 7)
    torch.testing.assert_close(method.transform_between(before, method.move(before, wanted)), wanted, rtol=0, atol=1e-5)


def test_spec_8_iou_of_shifted_squares() -> None:
    square = torch.tensor([[20.0, 20.0, 9.0, 9.0]])
    shifts = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 2.0], [30.0, 0.0], [0.0, 0.0]])
    shifted = torch.cat([square[:, :2] + shifts, square[:, 2:].expand(5, 2)], dim=1)
    expected = torch.tensor([[0.8, 0.653061, 0.636364, 0.0, 1.0]])
    torch.testing.assert_close(method.iou(square, shifted), expected, rtol=0, atol=1e-6)


def test_spec_11_released_smooth_l1() -> None:
    assert method.smooth_l1(torch.tensor([0.1, -0.2, 0.3, -0.1])).sum().item() == pytest.approx(0.15)
    assert method.smooth_l1(torch.tensor([1.5, -1.0, 0.7, 0.1])).sum().item() == pytest.approx(3.0)


def test_clipped_boxes_lie_on_the_canvas() -> None:
    clipped = method.clip(boxes(3, 200), CANVAS)
    low, high = method.corners(clipped)
    assert low.min() >= 0 and high.max() <= CANVAS - 1 and clipped[:, 2:].min() >= 1 - 1e-5
    inner = torch.tensor([[30.0, 31.0, 12.0, 15.0]])
    torch.testing.assert_close(method.clip(inner, CANVAS), inner)


# ---------------------------------------------------------------- networks


def test_spec_5_parameter_counts() -> None:
    for coordinates, count in ((False, 81_590), (True, 83_838)):
        for padding in ("valid", "same"):
            network = RegionProposal(coordinates, padding)
            assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("coordinates", [False, True])
def test_spec_12_the_mover_leaves_anchors_alone_at_first(coordinates: bool, padding: str) -> None:
    images = Stream(0, "images").uniform(0, 2 * 64 * 64).view(2, 1, 64, 64)
    network, plain = RegionProposal(coordinates, padding), RegionProposal(coordinates, padding, plain=True)
    scores, transform = network(images)
    anchors = method.make_anchors(padding)
    assert scores.shape == (2, len(anchors), 2)
    assert torch.equal(method.move(anchors, transform), anchors.expand(2, -1, -1))
    # Pooling before ReLU is the same function; the mover's last layer is made visible.
    with torch.no_grad():
        network.transform.weight.normal_()
    plain.load_state_dict(network.state_dict())
    for fast, slow in zip(network(images), plain(images), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_outputs_are_in_the_order_of_the_anchors() -> None:
    network = RegionProposal(False)
    outputs = torch.arange(36 * 13 * 13.0).view(1, 36, 13, 13)
    rows = network._by_anchor(outputs, 4).view(13, 13, 9, 4)
    assert torch.equal(rows[2, 5, 7], outputs[0, 28:32, 2, 5])


def test_unit_coordinates_span_zero_to_one() -> None:
    for coordinate_range, low in (("symmetric", -1.0), ("unit", 0.0)):
        network = RegionProposal(True, coordinate_range=coordinate_range)
        added = network._with_coordinates(torch.rand(1, 1, 5, 7))[:, 1:]
        assert added.min() == low and added.max() == 1.0 and added.shape == (1, 2, 5, 7)
        assert torch.equal(added[0, 0, 0], added[0, 0, 4])  # x varies along the width


# ---------------------------------------------------------------- the sampler


def drawn_case(seed: int, moved: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    overlap = method.iou(moved, truths)
    keys = method.draw_keys(Stream(seed, "sampler"), torch.arange(len(moved)), moved.shape[1], truths.shape[1])
    return overlap, keys


def check_against_plain(moved: Tensor, truths: Tensor, seed: int, seen: bool = False) -> method.Sample:
    overlap, keys = drawn_case(seed, moved, truths)
    batch = method.sample(overlap, moved, keys, CANVAS, seen)
    for b in range(len(moved)):
        pairs, negatives = method.plain_sample(overlap[b].numpy(), moved[b].numpy(), keys[b].numpy(), CANVAS, seen)
        found = batch.found[b]
        assert list(zip(batch.positive[b, found].tolist(), batch.truth[b, found].tolist(), strict=True)) == pairs
        assert (batch.negative[b].tolist() if batch.usable[b].all() else []) == negatives
    return batch


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(6, 40), st.integers(1, 5), st.booleans())
def test_the_batched_sampler_is_the_plain_one(seed: int, count: int, truths: int, seen: bool) -> None:
    moved = boxes(seed, 3, count)
    near = method.move(boxes(seed + 1, 3, truths), 0.2 * transforms(seed, 3, truths))
    check_against_plain(torch.cat([moved, near], dim=1), boxes(seed + 1, 3, truths), seed, seen)


def test_the_sampler_on_real_anchors_takes_six_and_six() -> None:
    for layout in ("correct", "released"):
        anchors = method.make_anchors(layout=layout)
        moved = method.move(anchors, 0.3 * transforms(5, 2, len(anchors)))
        truths = torch.tensor(
            [[20.0, 20, 20, 20], [40, 40, 18, 24], [-20, 30, 20, 20], [60, 61, 22, 22], [30, 8, 15, 15]]
        )
        batch = check_against_plain(moved, truths.expand(2, -1, -1), 5)
        assert batch.usable.all() and batch.found.sum(1).min() >= 5
        assert len(set(batch.negative[0].tolist())) == 6


def test_negatives_fall_back_and_repeat() -> None:
    truth = torch.tensor([[[30.0, 30.0, 20.0, 20.0]]])
    close = [[30.0, 30.0 + shift, 20.0, 20.0] for shift in range(5)]
    # Nothing is below 0.1: the one box that is neither best nor above 0.5 is taken six times.
    batch = check_against_plain(torch.tensor([[*close, [30.0, 42, 20, 20]]]), truth, 0)
    assert batch.negative.tolist() == [[5] * 6] and batch.usable.all()
    assert batch.found.tolist() == [[True] * 5 + [False]]
    # Two true negatives: drawn with replacement from them; the one that sticks out is none.
    far = torch.tensor([[*close[:3], [10, 50, 9, 9], [50, 10, 9, 9], [4, 4, 9, 9]]])
    assert set(check_against_plain(far, truth, 1).negative[0].tolist()) <= {3, 4}
    # A best box outside the canvas is positive all the same; boxes above 0.5 that stick out are not.
    outside = torch.tensor([[[30.0, 9.0 + shift, 20.0, 20.0] for shift in range(-1, 5)]])
    batch = check_against_plain(outside - torch.tensor([0, 9, 0, 0]), truth - torch.tensor([0, 30, 0, 0]), 0)
    assert batch.found.sum() == 1 and batch.positive[0, 0] == 1
    # Every box positive: no negative, and nothing divided by 0.
    batch = check_against_plain(torch.tensor([[*close, close[0]]]), truth, 0)
    assert batch.found.all() and not batch.usable.any()


def test_a_true_box_that_nothing_overlaps_has_a_best_box_only_in_the_released_sampler() -> None:
    moved = method.make_anchors().expand(1, -1, -1)
    truths = torch.tensor([[[-30.0, -30, 20, 20], [90.0, 30, 20, 20]]])
    batch = check_against_plain(moved, truths, 0)
    assert batch.found.sum() == 2 and (batch.positive[batch.found] == 0).all()
    batch = check_against_plain(moved, truths, 0, seen=True)
    assert not batch.found.any() and batch.usable.all()
    keys = method.draw_keys(Stream(0, "sampler"), torch.arange(1), 1521, 2)
    zeros = torch.zeros(1, 1521, 4)
    losses = method.proposal_losses(zeros[..., :2], zeros, moved[0], truths, keys, CANVAS, seen=True)
    assert losses.boxes.item() == 0 and losses.scores.item() == pytest.approx(math.log(2))


def test_choices_depend_on_seed_and_key_and_are_spread() -> None:
    anchors = method.make_anchors()
    moved, truths = anchors.expand(200, -1, -1), boxes(1, 1, 5).expand(200, -1, -1)
    overlap, keys = drawn_case(0, moved, truths)
    batch = method.sample(overlap, moved, keys, CANVAS)
    allowed = method.candidates(overlap[:1], moved[:1], CANVAS)[1][0]
    assert allowed[batch.negative].all()
    assert len(batch.negative.unique()) > 0.5 * allowed.sum()
    again = method.draw_keys(Stream(1, "sampler"), torch.arange(200), len(anchors), 5)
    assert not torch.equal(keys, again) and keys.min() >= 0 and keys.max() < method.LAST


# ---------------------------------------------------------------- loss, suppression, scores


def plain_loss(
    scores: Tensor, transform: Tensor, anchors: Tensor, truths: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of one image, box by box."""
    moved = method.move(anchors, transform.detach())
    overlap = method.iou(moved, truths)
    pairs, negatives = method.plain_sample(overlap.numpy(), moved.numpy(), keys.numpy(), CANVAS)
    of_boxes = []
    for box, truth in pairs:
        target = method.transform_between(anchors[box], truths[truth])
        of_boxes.append(method.smooth_l1(transform[box] - target).sum())
    rows = [(box, 0) for box, _ in pairs] + [(box, 1) for box in negatives]
    of_scores = [-scores[box].log_softmax(0)[label] for box, label in rows]
    return torch.stack(of_boxes).mean(), torch.stack(of_scores).mean()


def test_the_batched_loss_is_the_plain_one_and_its_gradient_too() -> None:
    anchors = method.make_anchors()
    scores = Stream(0, "scores").normal(0, (2, len(anchors), 2)).requires_grad_()
    transform = (0.3 * transforms(0, 2, len(anchors))).requires_grad_()
    truths = boxes(4, 2, 5)
    keys = method.draw_keys(Stream(0, "sampler"), torch.arange(2), len(anchors), 5)
    losses = method.proposal_losses(scores, transform, anchors, truths, keys, CANVAS)
    fast = torch.autograd.grad((losses.boxes + losses.scores).sum(), (scores, transform))
    slow_losses = [plain_loss(scores[b], transform[b], anchors, truths[b], keys[b]) for b in range(2)]
    slow = torch.autograd.grad(sum(sum(pair) for pair in slow_losses), (scores, transform))
    torch.testing.assert_close(losses.boxes, torch.stack([pair[0] for pair in slow_losses]))
    torch.testing.assert_close(losses.scores, torch.stack([pair[1] for pair in slow_losses]))
    torch.testing.assert_close(fast, slow)
    assert 0 < losses.positive_iou.min() <= losses.positive_iou.max() <= 1


def plain_suppression(probability: Tensor, found: Tensor) -> list[int]:
    """Greedy: in order of certainty, keep what overlaps nothing kept by more than 0.8."""
    kept: list[int] = []
    for box in probability.argsort(descending=True).tolist():
        overlaps = [method.iou(found[box : box + 1], found[other : other + 1]).item() for other in kept]
        if all(overlap <= method.OVERLAP for overlap in overlaps) and len(kept) < method.PROPOSALS:
            kept.append(box)
    return kept


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 12, 30]))
def test_suppression_is_the_greedy_one(seed: int, count: int) -> None:
    near = boxes(seed, 2, 3).repeat_interleave(count // 3 + 1, dim=1)
    candidates = method.move(near, 0.1 * transforms(seed, *near.shape[:2]))
    scores = Stream(seed, "scores").normal(0, (*near.shape[:2], 2))
    index, _, found = method.propose(scores, candidates)
    for b in range(2):
        kept = plain_suppression(scores[b].softmax(-1)[:, 0], candidates[b])
        assert index[b, found[b]].tolist() == kept


def test_scores_by_hand() -> None:
    truths = torch.tensor([[[10.0, 10, 10, 10], [40, 40, 10, 10]]])
    proposals = torch.tensor([[[10.0, 10, 10, 10], [40, 45, 10, 10], [25, 25, 4, 4]]])
    found = torch.tensor([[True, True, False]])
    average, select = method.proposal_scores(proposals, found, truths)
    assert average.item() == pytest.approx((1 + 1 / 3) / 4) and select.item() == pytest.approx((1 + 1 / 3) / 2)
