"""What MixMatch is compared with (Sec. 4 and the official code), each as the loss of one step.

All of them share: cross-entropy on the labelled batch, a term on unlabelled views times `weight`, batch statistics in
every forward, and running statistics moved by the labelled forward alone. A teacher, where there is one, is a module
with averaged weights whose BatchNorm layers also use batch statistics. Returned `Loss.guesses` are the unlabelled
targets [B_u, L], or None.

The official scripts pass a label smoothing to some of these methods, but their code never applies it; here it is an
argument with default 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from common.models.norm import batch_norm_mode
from papers.mixmatch.method import (
    Loss,
    as_probabilities,
    forward_batches,
    labeled_loss,
    mix,
    precise,
    probabilities,
    unlabeled_loss,
)


@dataclass(frozen=True)
class Batch:
    """One step's input.

    x: labelled images [B, C, H, W]. targets: class indices [B] or probabilities [B, L]. views: augmentations of the
    same unlabelled images [K, B_u, C, H, W] (a method reads the first one or two). lam_labeled [B], lam_unlabeled
    [B_u]: raw Beta draws (SSL-MixUp, ICT). direction [B_u, C, H, W]: standard normal (VAT).
    """

    x: Tensor
    targets: Tensor
    views: Tensor | None = None
    lam_labeled: Tensor | None = None
    lam_unlabeled: Tensor | None = None
    direction: Tensor | None = None

    def view(self, k: int) -> Tensor:
        """View k of the unlabelled images [B_u, C, H, W].

        Raises:
            ValueError: there are not that many views.
        """
        if self.views is None or len(self.views) <= k:
            raise ValueError(f"this method needs {k + 1} unlabelled view(s)")
        return self.views[k]

    def draw(self, name: Literal["lam_labeled", "lam_unlabeled", "direction"]) -> Tensor:
        """The random draw of that name.

        Raises:
            ValueError: it was not given.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this method needs Batch.{name}")
        return value


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """Label smoothing of probabilities [B, L]: p - smoothing * (p - 1 / L)."""
    return targets - smoothing * (targets - 1.0 / targets.shape[-1])


def _forward(model: nn.Module, batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Logits of each batch; the first one is the labelled, the only one that moves the running statistics."""
    sizes = [len(batch) for batch in batches]
    return forward_batches(model, torch.cat(list(batches)), sizes, "first").split(sizes)


def _teach(teacher: nn.Module, student: nn.Module, view: Tensor) -> Tensor:
    """The teacher's probabilities [B_u, L], a constant; its BatchNorm is in the student's mode and records nothing."""
    with torch.no_grad():
        return probabilities(forward_batches(teacher, view, [len(view)], "none", training=student.training))


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return labeled_loss(logits, smooth(as_probabilities(targets, precise(logits)), smoothing))


def _joined(labeled: Tensor, unlabeled: Tensor, weight: float | Tensor, guesses: Tensor | None) -> Loss:
    return Loss(labeled + weight * unlabeled, labeled.detach(), unlabeled.detach(), guesses)


def supervised(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy on the labelled images; the unlabelled ones are not looked at."""
    (logits,) = _forward(model, [batch.x])
    return supervised_terms(logits, batch.targets, label_smoothing)


def supervised_terms(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Loss:
    """`supervised` after its forward: logits [B, L], targets [B] or [B, L]."""
    loss = _cross_entropy(logits, targets, label_smoothing)
    return Loss(loss, loss.detach(), torch.zeros_like(loss), None)


def pseudo_label(
    model: nn.Module, batch: Batch, weight: float | Tensor, threshold: float = 0.95, label_smoothing: float = 0.0
) -> Loss:
    """Pseudo-Label (Lee 2013): cross-entropy with the model's own argmax on view 1, where the largest probability
    passes the threshold; averaged over the whole batch, confident or not."""
    logits_x, logits_u = _forward(model, [batch.x, batch.view(0)])
    return pseudo_label_terms(logits_x, logits_u, batch.targets, weight, threshold, label_smoothing)


def pseudo_label_terms(
    logits_x: Tensor,
    logits_u: Tensor,
    targets: Tensor,
    weight: float | Tensor,
    threshold: float = 0.95,
    label_smoothing: float = 0.0,
) -> Loss:
    """`pseudo_label` after its forward: logits [B, L] of the labelled batch and [B_u, L] of view 1."""
    p = probabilities(logits_u.detach())
    confident = p.amax(dim=-1) > threshold
    guesses = as_probabilities(p.argmax(dim=-1), p)
    entropies = -(guesses * precise(logits_u).log_softmax(dim=-1)).sum(dim=-1)
    unlabeled = (entropies * confident).mean()
    return _joined(_cross_entropy(logits_x, targets, label_smoothing), unlabeled, weight, guesses)


def pi_model(model: nn.Module, batch: Batch, weight: float | Tensor, label_smoothing: float = 0.0) -> Loss:
    """Pi-Model (Laine and Aila 2017): view 2 must predict what the same network says of view 1 (a constant), in mean
    squared difference of probabilities."""
    return mean_teacher(model, model, batch, weight, label_smoothing)


def mean_teacher(
    model: nn.Module, teacher: nn.Module, batch: Batch, weight: float | Tensor, label_smoothing: float = 0.0
) -> Loss:
    """Mean Teacher (Tarvainen and Valpola 2017): as the Pi-Model, with the averaged weights on view 1."""
    guesses = _teach(teacher, model, batch.view(0))
    logits_x, logits_u = _forward(model, [batch.x, batch.view(1)])
    labeled = _cross_entropy(logits_x, batch.targets, label_smoothing)
    return _joined(labeled, unlabeled_loss(logits_u, guesses), weight, guesses)


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(other)), averaged over the batch; both [n, L]."""
    log_p, log_q = precise(logits).log_softmax(dim=-1), precise(other).log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def normalized(direction: Tensor) -> Tensor:
    """Each item [n, ...] divided by its largest magnitude and then by its L2 norm (the first keeps the squares of tiny
    gradients from underflowing)."""
    dims = tuple(range(1, direction.ndim))
    direction = direction / (1e-12 + direction.abs().amax(dim=dims, keepdim=True))
    return direction / (1e-6 + direction.square().sum(dim=dims, keepdim=True)).sqrt()


def vat(
    model: nn.Module,
    batch: Batch,
    weight: float | Tensor,
    epsilon: float = 6.0,
    entropy_weight: float | Tensor = 0.06,
    xi: float = 1e-6,
    label_smoothing: float = 0.0,
) -> Loss:
    """Virtual adversarial training (Miyato et al. 2018) and entropy minimisation on view 1.

    The perturbation is epsilon times the normalised gradient of KL(clean || perturbed) at a random direction of length
    xi (one power iteration). The loss is KL(perturbed || clean), the clean prediction a constant (the order of the
    official code), plus entropy_weight times the clean prediction's entropy; `weight` ramps the first term only.
    `unlabeled` in the result is the KL term.

    The official xi is so small that in float32 most of the offset is lost to rounding: the direction found is then the
    gradient of rounding noise in the logits, still one to which they are sensitive. A larger xi avoids that.
    """
    u = batch.view(0)
    with torch.enable_grad():
        logits_x, clean = _forward(model, [batch.x, u])
        offset = (xi * normalized(batch.draw("direction"))).requires_grad_()
        # The gradient is of the offset alone: the model's own gradients are not touched.
        distance = kl_divergence(clean.detach(), forward_batches(model, u + offset, [len(u)], "none"))
        (gradient,) = torch.autograd.grad(distance, offset)
    with batch_norm_mode(model, update="none"):
        perturbed = model(u + epsilon * normalized(precise(gradient)).to(u.dtype))
    divergence = kl_divergence(perturbed, clean.detach())
    p = probabilities(clean)
    entropy = -(p * precise(clean).log_softmax(dim=-1)).sum(dim=-1).mean()
    labeled = _cross_entropy(logits_x, batch.targets, label_smoothing)
    total = labeled + weight * divergence + entropy_weight * entropy
    return Loss(total, labeled.detach(), divergence.detach(), p.detach())


def ssl_mixup(model: nn.Module, batch: Batch, weight: float | Tensor = 1.0) -> Loss:
    """MixUp for semi-supervised learning (Sec. 4.1): the labelled batch is mixed with its reverse, and so is view 1,
    with the current predictions as labels; cross-entropy on both. Only the mixed labelled batch moves the statistics.
    """
    u = batch.view(0)
    guesses = _teach(model, model, u)
    targets = as_probabilities(batch.targets, guesses)
    mixed_x, mixed_p = (mix(t, t.flip(0), batch.draw("lam_labeled")) for t in (batch.x, targets))
    mixed_u, mixed_q = (mix(t, t.flip(0), batch.draw("lam_unlabeled")) for t in (u, guesses))
    logits_x, logits_u = _forward(model, [mixed_x, mixed_u])
    return _joined(labeled_loss(logits_x, mixed_p), labeled_loss(logits_u, mixed_q), weight, guesses)


def ict(
    model: nn.Module, teacher: nn.Module, batch: Batch, weight: float | Tensor, label_smoothing: float = 0.0
) -> Loss:
    """Interpolation consistency training (Verma et al. 2019): view 1 mixed with its reverse must get the teacher's
    probabilities mixed alike, in mean squared difference. The labelled batch is not mixed."""
    u = batch.view(0)
    guesses = _teach(teacher, model, u)
    logits_x, logits_u = _forward(model, [batch.x, mix(u, u.flip(0), batch.draw("lam_unlabeled"))])
    mixed = mix(guesses, guesses.flip(0), batch.draw("lam_unlabeled"))
    labeled = _cross_entropy(logits_x, batch.targets, label_smoothing)
    return _joined(labeled, unlabeled_loss(logits_u, mixed), weight, guesses)
