"""MixMatch (Berthelot et al. 2019, arXiv 1905.02249, Sec. 3) as functions of tensors, and the class that joins them.

Read from top to bottom this is the paper's method section: guess labels (3.2), sharpen (Eq. 7), MixUp (3.3), the losses
(Eqs. 2-5), then what only the official code tells: interleaving, which batches move BatchNorm's running statistics,
the averaged weights and the decay. `plain_loss` is one step written out literally, slow and obviously right; the class
`MixMatch` computes the same faster and with every switch, for any module, any number of classes and views.

Randomness comes in as arguments. No function reads a value back from the device, so a step can be captured in a CUDA
graph. Softmax, labels and losses are float32 (or float64) even where the network runs in a shorter type.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from common.models.norm import Update, batch_norm_mode, can_group
from common.random import Stream

LABELED_MIXES = ("", "xx", "xxy")
UNLABELED_MIXES = ("", "yy", "yxy", "yx")
# Elements per batch. Measured on two cores: joining three batches of 8x8 images gains 5-20 %, of 32x32 images it loses
# up to 15 %, because the activations of one batch fit the caches and those of three do not.
CPU_JOINS_BELOW = 1 << 15


class Loss(NamedTuple):
    """What a step minimises (`total`), its two terms before weighting (scalars), and the guesses [B_u, L] or None."""

    total: Tensor
    labeled: Tensor
    unlabeled: Tensor
    guesses: Tensor | None


class Draws(NamedTuple):
    """MixUp's randomness for n items: `lam` [..., n] (or [..., 1]: one for the batch) and `permutation` [..., n]."""

    lam: Tensor
    permutation: Tensor


# ---------------------------------------------------------------- labels: Sec. 3.2


def precise(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes in at least float32: logits [..., L] -> [..., L]."""
    return precise(logits).softmax(dim=-1)


def as_probabilities(targets: Tensor, like: Tensor) -> Tensor:
    """Class indices [B] -> one-hot [B, L], with `like` [..., L] giving L and dtype; probabilities [B, L] pass."""
    if targets.ndim == 2:
        return targets.to(like.dtype)
    # Not F.one_hot: on some devices it reads the largest index back.
    return (targets[:, None] == torch.arange(like.shape[-1], device=targets.device)).to(like.dtype)


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """Eq. 7: p_i^(1/T) / sum_j p_j^(1/T) over the last dimension. The largest entry is scaled to 1 first, so that no T
    can make every power underflow."""
    powers = (p / p.amax(dim=-1, keepdim=True)) ** (1.0 / temperature)
    return powers / powers.sum(dim=-1, keepdim=True)


def guess_labels(logits: Tensor, temperature: float) -> Tensor:
    """Eqs. 6-7: the views' logits [K, B_u, L] -> sharpened mean prediction [B_u, L]; a constant, no gradient."""
    return sharpen(probabilities(logits.detach()).mean(dim=0), temperature)


class DistributionAlignment(nn.Module):
    """Optional, from ReMixMatch (Sec. 3.1): scale guesses by class prior / running mean of the predictions.

    Args:
        prior: class frequencies of the labelled data [L].
        decay: of the running mean, kept in the buffer `average` and updated in place by every call.
    """

    prior: Tensor
    average: Tensor

    def __init__(self, prior: Tensor, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("prior", prior.float() / prior.float().sum())
        self.register_buffer("average", self.prior.clone())

    @torch.no_grad()
    def forward(self, p: Tensor) -> Tensor:
        """Mean predictions [B_u, L] -> aligned ones [B_u, L], to be sharpened next."""
        self.average.lerp_(p.mean(dim=0).to(self.average.dtype), 1 - self.decay)
        aligned = p * (self.prior / self.average.clamp(min=1e-6))
        return aligned / aligned.sum(dim=-1, keepdim=True)


# ---------------------------------------------------------------- MixUp: Sec. 3.3


def mixup_coefficient(lam: Tensor) -> Tensor:
    """Eq. 9: lambda' = max(lambda, 1 - lambda), so that a mixed item stays nearer its first parent."""
    return torch.maximum(lam, 1 - lam)


def mix(items: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    """Eqs. 10-11: lambda' items + (1 - lambda') partners, item by item; both [n, ...], lam [n] or [1]."""
    weight = mixup_coefficient(lam).to(items.dtype).view(-1, *(1,) * (items.ndim - 1))
    return torch.lerp(partners, items, weight)


def mixup(images: Tensor, targets: Tensor, lam: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Mix item i with item partner[i], images [n, ...] and target probabilities [n, L] alike."""
    return mix(images, images[partner], lam), mix(targets, targets[partner], lam)


def partners(mixing: str, permutation: Tensor, num_labeled: int, num_views: int = 1) -> Tensor:
    """Whom each of the n items (labelled first, then view by view) is mixed with: int64 [n]; itself where it is not.

    `mixing` is what labelled items mix with, a dot, what unlabelled ones mix with: "xx" and "yy" their own kind,
    "xxy" and "yxy" everything, "yx" labelled items only, nothing for no mixing. The paper's is "xxy.yxy". All modes
    read one uniform `permutation` [n]: the order pattern of a part of it is again uniform, and independent of the rest.
    """
    labeled, unlabeled = mixing.split(".")
    first, rest = permutation[:num_labeled], permutation[num_labeled:]
    itself = torch.arange(len(permutation), device=permutation.device)
    if labeled == "xx":
        left = first.argsort()
    elif labeled == "xxy":
        left = first
    else:
        left = itself[:num_labeled]
    if unlabeled == "yy":
        right = num_labeled + rest.argsort()
    elif unlabeled == "yxy":
        right = rest
    elif unlabeled == "yx":
        # Every view is mixed with a shuffled labelled batch (repeated where the views are larger).
        right = rest.view(num_views, -1).argsort(dim=-1).flatten() % num_labeled
    else:
        right = itself[num_labeled:]
    return torch.cat([left, right])


# ---------------------------------------------------------------- losses: Sec. 3.4


def labeled_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Eq. 3, L_X: cross-entropy of logits [B, L] with probabilities [B, L], averaged over the batch."""
    return -(targets * precise(logits).log_softmax(dim=-1)).sum(dim=-1).mean()


def unlabeled_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Eq. 4, L_U: squared error of the softmax of logits [n, L] with probabilities [n, L], averaged over items and
    classes. The gradient goes through the prediction only."""
    return (targets.detach() - probabilities(logits)).square().mean()


def ramp(images: float | Tensor, ramp_images: int) -> float | Tensor:
    """min(images / ramp_images, 1) of the labelled images consumed before the step: a number or a tensor on the device.
    No ramp (1 always) where ramp_images is 0."""
    if ramp_images <= 0:
        return 1.0
    if isinstance(images, Tensor):
        return (images / ramp_images).clamp(0.0, 1.0)
    return min(max(images / ramp_images, 0.0), 1.0)


# ---------------------------------------------------------------- batches and BatchNorm: official code


def interleave_offsets(batch_size: int, num_batches: int) -> list[int]:
    """Where a batch is cut into `num_batches` blocks; the last ones get the remainder. (64, 3) -> [0, 21, 42, 64]."""
    size, remainder = divmod(batch_size, num_batches)
    sizes = [size + (i >= num_batches - remainder) for i in range(num_batches)]
    return [sum(sizes[:i]) for i in range(num_batches + 1)]


def interleave(batches: Sequence[Tensor]) -> list[Tensor]:
    """Swap block i of batch 0 with block i of batch i, all of one size: batch 0 then stands for the whole mixture. Its
    own inverse. Only batch 0 moves BatchNorm's running statistics, hence the exchange."""
    offsets = interleave_offsets(len(batches[0]), len(batches))
    blocks = [[batch[a:b] for a, b in itertools.pairwise(offsets)] for batch in batches]
    for i in range(1, len(batches)):
        blocks[0][i], blocks[i][i] = blocks[i][i], blocks[0][i]
    return [torch.cat(row) for row in blocks]


@functools.lru_cache(maxsize=64)
def interleave_order(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Interleaving as an index for concatenated batches of these sizes: (order [n], its inverse [n], new sizes).

    Equal sizes: exactly `interleave`. Otherwise the items are dealt like cards over as many batches, so that every
    batch holds the same share of each source, and the batches' sizes differ by one at most.
    """
    count = len(sizes)
    items = torch.arange(sum(sizes))
    hands = interleave(items.split(sizes[0])) if len(set(sizes)) == 1 else [items[i::count] for i in range(count)]
    # Out of inference mode: autograd must be able to save the cached index.
    with torch.inference_mode(False):
        order = torch.cat(hands).clone()
        return order.to(device), order.argsort().to(device), tuple(len(hand) for hand in hands)


def forward_batches(
    model: nn.Module,
    batches: Tensor,
    sizes: Sequence[int],
    update: Update = "first",
    together: bool | None = None,
    training: bool | None = None,
) -> Tensor:
    """Logits [n, L] of concatenated batches [n, ...] of these sizes, each normalised by its own batch statistics.

    `update` says which of them move BatchNorm's running statistics. One forward (ghost BatchNorm) and a forward for
    each give the same numbers to rounding; `together` chooses where the model allows both, None takes the faster way:
    one forward, except for large batches on a CPU. `training` overrides the mode of the BatchNorm layers.
    """
    if together is None:
        together = batches.device.type != "cpu" or batches.numel() < CPU_JOINS_BELOW * len(sizes)
    if together and can_group(model):
        groups = len(sizes) if len(set(sizes)) == 1 else tuple(sizes)
        with batch_norm_mode(model, groups, update, training):
            return model(batches)
    logits = []
    for i, batch in enumerate(batches.split(list(sizes))):
        now: Update = "all" if update == "all" or (update == "first" and i == 0) else "none"
        with batch_norm_mode(model, 1, now, training):
            logits.append(model(batch))
    return torch.cat(logits)


# ---------------------------------------------------------------- after the optimiser's step


@torch.no_grad()
def update_average(averages: Sequence[Tensor], parameters: Iterable[Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * parameter, in place. Averages start as copies of the initial weights;
    there is no bias correction."""
    torch._foreach_lerp_(list(averages), [p.detach() for p in parameters], 1 - decay)


def kernels(model: nn.Module) -> list[Tensor]:
    """The weights of convolutions and dense layers: what is decayed. Biases and normalisation are not."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    return list({id(layer.weight): layer.weight for layer in layers}.values())


@torch.no_grad()
def decay_weights(weights: Sequence[Tensor], rate: float) -> None:
    """Decoupled decay, in place: w <- w * (1 - rate); the official rate is wd * learning rate = 0.02 * 0.002."""
    torch._foreach_mul_(list(weights), 1 - rate)


# ---------------------------------------------------------------- one step


def plain_loss(
    model: nn.Module, x: Tensor, targets: Tensor, views: Tensor, weight: float, draws: Draws, temperature: float = 0.5
) -> Loss:
    """Algorithm 1 and Eqs. 2-5 in official order, one small forward after another: the oracle for `MixMatch.loss`.

    x [B, ...], targets [B, L] probabilities, views [K, B, ...] with the same B.
    """
    with torch.no_grad(), batch_norm_mode(model, update="none"):
        guesses = guess_labels(torch.stack([model(view) for view in views]), temperature)
    num_views = len(views)
    mixed_x, mixed_p = mixup(
        torch.cat([x, *views]), torch.cat([targets.to(guesses.dtype), *[guesses] * num_views]), *draws
    )
    logits = []
    for i, batch in enumerate(interleave(mixed_x.chunk(num_views + 1))):
        with batch_norm_mode(model, update="all" if i == 0 else "none"):
            logits.append(model(batch))
    logits = interleave(logits)
    p = mixed_p.chunk(num_views + 1)
    l_x = labeled_loss(logits[0], p[0])
    l_u = unlabeled_loss(torch.cat(logits[1:]), torch.cat(p[1:]))
    return Loss(l_x + weight * l_u, l_x.detach(), l_u.detach(), guesses)


@dataclass(frozen=True)
class MixMatch:
    """MixMatch for any classifier: hyper-parameters, and the loss of one step.

        mixmatch = MixMatch(unlabeled_weight=75)
        draws = mixmatch.draw(Stream(seed, "mixup"), step, len(x) + views.shape[0] * views.shape[1])
        loss = mixmatch.loss(model, x, targets, views, mixmatch.weight(images_seen), draws)
        loss.total.backward()

    Args:
        temperature: T of the sharpening; 1 for none.
        alpha: of Beta(alpha, alpha), from which lambda is drawn.
        unlabeled_weight: lambda_U.
        ramp_images: labelled images over which lambda_U rises linearly from 0; 0 for no ramp.
        mixing: see `partners`.
        per_item_lambda: one lambda per item (official) or one per step (most public ports).
        batch_norm: how BatchNorm sees the 2K + 1 batches of a step. "official": a forward for each, only the first
            interleaved batch moves the running statistics. "ghost": the same mathematics in two forwards where that
            is faster (see `forward_batches`) and the model has `GhostBatchNorm2d` (see `convert_batch_norm`).
            "all-batches": each of the 2K + 1 moves them. "frozen": not interleaved, only the labelled-led batch does.
        interleave: whether mixed batches exchange blocks before their forward (never with "frozen").
        loss_type: "l2" (Eq. 4) or "cross-entropy" for the unlabelled term.
    """

    temperature: float = 0.5
    alpha: float = 0.75
    unlabeled_weight: float = 75.0
    ramp_images: int = 1_048_576
    mixing: str = "xxy.yxy"
    per_item_lambda: bool = True
    batch_norm: Literal["official", "ghost", "all-batches", "frozen"] = "ghost"
    interleave: bool = True
    loss_type: Literal["l2", "cross-entropy"] = "l2"

    def __post_init__(self):
        """Check the values.

        Raises:
            ValueError: a value outside its range, or an unknown name.
        """
        if self.temperature <= 0 or self.alpha <= 0:
            raise ValueError("temperature and alpha must be positive")
        labeled, _, unlabeled = self.mixing.partition(".")
        if "." not in self.mixing or labeled not in LABELED_MIXES or unlabeled not in UNLABELED_MIXES:
            raise ValueError(f"unknown mixing {self.mixing!r}: it is one of '', xx, xxy; a dot; one of '', yy, yxy, yx")
        if self.batch_norm not in ("official", "ghost", "all-batches", "frozen"):
            raise ValueError(f"batch_norm must be official, ghost, all-batches or frozen, not {self.batch_norm!r}")
        if self.loss_type not in ("l2", "cross-entropy"):
            raise ValueError(f"loss_type must be l2 or cross-entropy, not {self.loss_type!r}")

    def weight(self, images: float | Tensor) -> float | Tensor:
        """lambda_U with its ramp, after that many labelled images (a number, or a tensor on the device)."""
        return self.unlabeled_weight * ramp(images, self.ramp_images)

    def draw(self, stream: Stream, steps: int | Tensor, n: int) -> Draws:
        """The draws of n = B + K * B_u items for a step, or for a chunk of steps (an int64 tensor [S]): index by step
        with `Draws(lam[s], permutation[s])`."""
        lam = stream.child("lambda").beta(steps, n if self.per_item_lambda else 1, self.alpha)
        return Draws(lam, stream.child("permutation").permutation(steps, n))

    def guess(
        self, model: nn.Module, views: Tensor, student: nn.Module | None = None, alignment: nn.Module | None = None
    ) -> Tensor:
        """Guessed labels [B_u, L] of the views [K, B_u, ...]: every view its own batch, no gradient, nothing recorded
        (but with batch_norm="all-batches"). `student` is the trained module where `model` is another one: its mode then
        holds for the BatchNorm of `model`, which never records."""
        with torch.no_grad():
            return self.guess_from(self.view_logits(model, views, student), alignment)

    def view_logits(self, model: nn.Module, views: Tensor, student: nn.Module | None = None) -> Tensor:
        """The forward of `guess`: views [K, B_u, ...] -> logits [K, B_u, L]."""
        num_views, size = views.shape[:2]
        training = None if student is None else student.training
        update: Update = "all" if self.batch_norm == "all-batches" and student is None else "none"
        together = False if self.batch_norm == "official" else None
        with torch.no_grad():
            logits = forward_batches(model, views.flatten(0, 1), [size] * num_views, update, together, training)
        return logits.unflatten(0, (num_views, size))

    def guess_from(self, logits: Tensor, alignment: nn.Module | None = None) -> Tensor:
        """Eqs. 6-7: the views' logits [K, B_u, L] -> guessed labels [B_u, L]."""
        p = probabilities(logits).mean(dim=0)
        return sharpen(p if alignment is None else alignment(p), self.temperature)

    def mixed(self, x: Tensor, targets: Tensor, views: Tensor, guesses: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Sec. 3.3: everything, labelled first, then view by view, mixed: inputs [n, ...] and probabilities [n, L]."""
        num_views = len(views)
        p = torch.cat([as_probabilities(targets, guesses), guesses.repeat(num_views, 1)])
        partner = partners(self.mixing, draws.permutation, len(x), num_views)
        return mixup(torch.cat([x, views.flatten(0, 1)]), p, draws.lam, partner)

    def mixed_logits(self, model: nn.Module, mixed: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """The forward of mixed inputs [n, ...], interleaved if that is on: logits [n, L] in the order of the inputs.
        `sizes` are those of the labelled batch and of each view."""
        update: Update = "all" if self.batch_norm == "all-batches" else "first"
        together = False if self.batch_norm == "official" else None
        if self.interleave and self.batch_norm != "frozen":
            order, inverse, dealt = interleave_order(sizes, mixed.device)
            return forward_batches(model, mixed[order], dealt, update, together)[inverse]
        return forward_batches(model, mixed, sizes, update, together)

    def terms(self, logits: Tensor, p: Tensor, num_labeled: int, weight: float | Tensor, guesses: Tensor) -> Loss:
        """Eqs. 2-5 from the mixed items' logits and probabilities [n, L], the first `num_labeled` of them labelled."""
        l_x = labeled_loss(logits[:num_labeled], p[:num_labeled])
        distance = unlabeled_loss if self.loss_type == "l2" else labeled_loss
        l_u = distance(logits[num_labeled:], p[num_labeled:])
        return Loss(l_x + weight * l_u, l_x.detach(), l_u.detach(), guesses)

    def loss(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        views: Tensor,
        weight: float | Tensor,
        draws: Draws,
        guess_model: nn.Module | None = None,
        alignment: nn.Module | None = None,
    ) -> Loss:
        """The loss of one step. Its forwards and what lies between them are methods of their own, so that a stack of
        models (`stacked.py`) can map the one over the models and do the other for all at once.

        Args:
            model: any module from x to logits [., L].
            x: labelled inputs, augmented once [B, ...].
            targets: class indices [B] or probabilities [B, L].
            views: K augmentations of the same unlabelled inputs [K, B_u, ...]; B_u need not be B.
            weight: of the unlabelled term, see `weight`.
            draws: see `draw`.
            guess_model: guesses the labels instead of `model` (ablation A5: the averaged weights), its BatchNorm in
                the mode of `model`.
            alignment: a `DistributionAlignment`, or any map of the mean predictions [B_u, L].

        Raises:
            ValueError: shapes that do not fit together.
        """
        num_labeled, (num_views, size) = len(x), views.shape[:2]
        sizes = (num_labeled, *(size,) * num_views)
        n = sum(sizes)
        if views.shape[2:] != x.shape[1:] or len(targets) != num_labeled or draws.permutation.shape != (n,):
            raise ValueError(
                f"x {tuple(x.shape)}, targets {tuple(targets.shape)}, views {tuple(views.shape)} (they are "
                f"[K, B_u, ...]) and a permutation of {tuple(draws.permutation.shape)} (it is [B + K * B_u]) do not fit"
            )
        guesser = model if guess_model is None else guess_model
        guesses = self.guess(guesser, views, None if guess_model is None else model, alignment)
        mixed, p = self.mixed(x, targets, views, guesses, draws)
        return self.terms(self.mixed_logits(model, mixed, sizes), p, num_labeled, weight, guesses)
