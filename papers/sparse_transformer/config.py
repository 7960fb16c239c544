"""Every setting of a Sparse Transformer's run, with the paper's CIFAR-10 network as defaults. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

ITEMS = ("columns", "cifar10", "imagenet64")
STREAMS = ("python", "sines", "enwik8", "text", "chorales", "music", "bytes")
CHOICES = {
    "data": ITEMS + STREAMS,
    "split": ("official", "holdout"),
    "pattern": ("dense", "local", "strided", "fixed", "cubic"),
    "combine": ("merged", "heads", "interleaved"),
    "positions": ("data", "attention", "linear", "none"),
    "shift": ("code", "aligned"),
    "init": ("code", "paper"),
}
KINDS_OF = {"strided": ("window", "columns", "strided"), "fixed": ("block", "summaries", "fixed")}
"""What a layer of an interleaved network may use: A1, A2 or their union."""


@dataclass(frozen=True)
class Config:
    """Settings of one run (spec, sections 3-5).

    Data: `data`, a set by name ("bytes": the user's own, given as a Corpus); split: CIFAR-10's, as in
    `common.data.load`; text_bytes: how much of a text is used (0: all); levels, noise, side: of the generated images in
    "columns"; size: side to which CIFAR-10's images are reduced (0: 32).
    Attention: context n; pattern; combine: its two sets "merged" in one softmax, one for each half of the "heads", or
    "interleaved" over the layers in the order of cycle (default A1, A2, A1, ...); stride l; summary c (fixed alone);
    rotate: each head has a sub-block of its own; inclusive: windows of l + 1 keys as in the paper, not l.
    Network: layers N; width d; heads; feedforward and query_width: hidden units, and width of all queries, as multiples
    of d; positions: learned tables along the "data" (row, column, channel of an image), along the "attention" grid
    (row i div l, column i mod l), one "linear" table, or "none"; shift: which position a slot carries beside the token
    before it, that token's ("code") or its own ("aligned"); init: standard deviation of linear weights, 0.125/sqrt(d)
    ("paper") or the root of 0.125/d ("code"); scaled_residual: 1/sqrt(2N) on what ends a residual branch.
    dropout: at the end of residual branches; attention_dropout: on attention weights (the paper uses none).
    recompute: backward passes recompute attention and feed-forward; plain: attention through the masked oracle.
    Optimisation: steps; batch_size, in pieces of microbatch (0: whole); AdamW at peak learning_rate, linear warmup and
    a cosine to 0; weight_decay of tensors of rank 2 and more, with or without decay_embeddings; clip: the gradient's
    largest norm (0: any); beta2; ema_decay of the averaged weights (0: no average); loss_scaling: float16 with dynamic
    loss scaling, for GPUs without bfloat16. cuda_graph: on a GPU, capture a whole step where there is no dropout.
    Evaluation: every evaluate_every steps on evaluation_items items or windows of a split (0: all), each token scored
    with at least min_context tokens before it, where there are so many.
    """

    data: str = "cifar10"
    split: str = "official"
    text_bytes: int = 0
    levels: int = 16
    noise: float = 0.05
    side: int = 16
    size: int = 0

    context: int = 3072
    pattern: str = "strided"
    combine: str = "merged"
    cycle: tuple[str, ...] = ()
    stride: int = 96
    summary: int = 0
    rotate: bool = False
    inclusive: bool = True

    layers: int = 128
    width: int = 256
    heads: int = 2
    feedforward: float = 2
    query_width: float = 0.5
    positions: str = "data"
    shift: str = "code"
    init: str = "code"
    scaled_residual: bool = True
    dropout: float = 0.25
    attention_dropout: float = 0.0
    recompute: bool = True
    plain: bool = False

    steps: int = 360_000
    batch_size: int = 16
    microbatch: int = 0
    learning_rate: float = 3.5e-4
    warmup: int = 5000
    weight_decay: float = 0.01
    decay_embeddings: bool = True
    clip: float = 1.0
    beta2: float = 0.999
    ema_decay: float = 0.999
    loss_scaling: bool = False

    evaluate_every: int = 3000
    evaluation_batch_size: int = 16
    evaluation_items: int = 0
    min_context: int = 0
    checkpoint_every: int = 3000
    log_every: int = 100
    steps_per_call: int = 1
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        object.__setattr__(self, "cycle", tuple(self.cycle))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} '{getattr(self, name)}'; there is {', '.join(known)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a number from 0 up, not {value}")
        for name in (
            "levels",
            "side",
            "context",
            "stride",
            "layers",
            "width",
            "heads",
            "steps",
            "batch_size",
            "evaluate_every",
            "evaluation_batch_size",
            "checkpoint_every",
            "log_every",
            "steps_per_call",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        for name in ("dropout", "attention_dropout", "beta2", "ema_decay"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} lies in [0, 1), not {getattr(self, name)}")
        if self.min_context >= self.context:
            raise ValueError(f"min_context must be below the context {self.context}, not {self.min_context}")
        if self.microbatch and self.batch_size % self.microbatch:
            raise ValueError(f"microbatch {self.microbatch} does not divide the batch_size {self.batch_size}")
        self._check_widths()
        self._check_pattern()

    def _check_widths(self) -> None:
        for name, value in (
            ("width", float(self.width)),
            ("query_width * width", self.query_width * self.width),
        ):
            if value < 1 or value % self.heads:
                raise ValueError(f"{self.heads} heads do not divide {name} = {value:g}")
        if self.hidden < 1 or self.hidden != self.feedforward * self.width:
            raise ValueError(
                f"feedforward * width must be a whole number from 1 up, not {self.feedforward * self.width}"
            )

    def _check_pattern(self) -> None:
        factored = self.pattern in KINDS_OF
        if self.combine != "merged" and not factored:
            raise ValueError(f"{self.pattern} attention has no two sets to combine as '{self.combine}'")
        if self.combine == "heads" and self.heads % 2:
            raise ValueError(f"combine 'heads' needs an even number of heads, not {self.heads}")
        if self.cycle and self.combine != "interleaved":
            raise ValueError("cycle is a setting of combine 'interleaved' alone")
        if unknown := [kind for kind in self.cycle if kind not in KINDS_OF[self.pattern]]:
            raise ValueError(f"no set '{unknown[0]}' in cycle; there is {', '.join(KINDS_OF[self.pattern])}")
        if self.pattern == "fixed" and not 1 <= self.summary <= self.stride:
            raise ValueError(f"summary must lie in 1..{self.stride} (the stride) for fixed, not {self.summary}")
        if self.pattern != "fixed" and (self.summary or self.rotate):
            raise ValueError(f"summary and rotate are settings of fixed attention, not of {self.pattern}")

    @property
    def query_size(self) -> int:
        """Width of the queries (and keys) of all heads together, d_qk."""
        return int(self.query_width * self.width)

    @property
    def hidden(self) -> int:
        """Hidden units of the feed-forward part."""
        return int(self.feedforward * self.width)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """From a run's config (its `seed` is left out); TypeError names a key that is no setting."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known - {"seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**{name: value for name, value in values.items() if name in known})
