"""Settings of the measurements in `measure.py`. Loads no torch, so that presets can check them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from papers.sparse_transformer.config import Config


@dataclass(frozen=True)
class Measurement:
    """What the settings of all measurements share."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From a run's config (its `seed` is left out). TypeError names a key that is no setting, ValueError a bad
        value."""
        known = {found.name for found in fields(cls)}
        if unknown := set(values) - known - {"seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**{name: value for name, value in values.items() if name in known})

    def _at_least_one(self, *names: str) -> None:
        for name in names:
            values = getattr(self, name)
            if min(values if isinstance(values, list | tuple) else [values], default=0) < 1:
                raise ValueError(f"{name} must be at least 1, not {values}")


@dataclass(frozen=True)
class Speed(Measurement):
    """Forward and backward passes of attention alone, sparse against dense (spec, E1).

    pattern: "strided" or "fixed" with summary c; sizes: the lengths n, with stride l = sqrt(n), and for each the number
    of heads and how many calls one timing of sparse attention averages (dense attention is called once). dense_limit:
    the longest n at which dense attention is measured. repeats: timings of everything, in turns, after a first round
    that does not count.
    """

    pattern: str = "strided"
    summary: int = 8
    sizes: tuple[int, ...] = (1024, 4096, 16384)
    heads: tuple[int, ...] = (4, 4, 1)
    calls: tuple[int, ...] = (8, 2, 1)
    head_size: int = 64
    dense_limit: int = 16384
    repeats: int = 5

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        self._at_least_one("sizes", "heads", "calls", "head_size", "repeats", "summary")
        if self.pattern not in ("strided", "fixed"):
            raise ValueError(f"pattern is strided or fixed, not {self.pattern}")
        if not len(self.sizes) == len(self.heads) == len(self.calls) >= 2:
            raise ValueError("sizes, heads and calls are lists of one length, two at least")


@dataclass(frozen=True)
class Length(Measurement):
    """One forward and backward pass of strided attention at a great length (spec, E5).

    layers: 0, attention alone with heads of size width; otherwise a network of so many blocks with recomputation, on
    random bytes.
    """

    context: int = 1 << 18
    stride: int = 512
    layers: int = 0
    width: int = 64
    heads: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        self._at_least_one("context", "stride", "width", "heads")
        if self.layers:
            self.network()

    def network(self) -> Config:
        """The network of `layers` blocks."""
        return Config.of(
            {
                "data": "bytes",
                "context": self.context,
                "stride": self.stride,
                "layers": self.layers,
                "width": self.width,
                "heads": self.heads,
                "feedforward": 4,
                "query_width": 1,
                "positions": "attention",
                "dropout": 0.0,
            }
        )


@dataclass(frozen=True)
class Context(Measurement):
    """A trained model evaluated with a minimum context (spec, E4 and 3.7) on the first `tokens` tokens of the test
    split, each scored once."""

    min_context: int = 128
    tokens: int = 33_024

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        self._at_least_one("min_context", "tokens")


@dataclass(frozen=True)
class Memory(Measurement):
    """What a further layer keeps for the backward pass (claim C9), with recomputation or without."""

    recompute: bool = True
    pattern: str = "strided"
    context: int = 4096
    stride: int = 64
    width: int = 64
    heads: int = 2
    layers: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        self._at_least_one("layers")
        self.network(self.layers)

    def network(self, layers: int) -> Config:
        """The network of so many blocks."""
        return Config.of(
            {
                "data": "bytes",
                "context": self.context,
                "pattern": self.pattern,
                "stride": self.stride,
                "layers": layers,
                "width": self.width,
                "heads": self.heads,
                "feedforward": 4,
                "query_width": 1,
                "positions": "attention",
                "dropout": 0.0,
                "recompute": self.recompute,
            }
        )


@dataclass(frozen=True)
class Iteration(Measurement):
    """Seconds of a training step with dense attention over those of the same network with sparse attention (Table 2).

    network: settings of `config.Config`; methods: name to what it changes there, "dense" among them. steps: of each
    timing; repeats: timings of all methods, in turns, after a first round that does not count.
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: int = 3
    repeats: int = 5

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        self._at_least_one("steps", "repeats")
        if "dense" not in self.methods or len(self.methods) < 2:
            raise ValueError("methods needs dense and something to compare it with")
        self.configs()

    def configs(self) -> dict[str, Config]:
        """The settings of each method's network."""
        return {name: Config.of({**self.network, **changes}) for name, changes in self.methods.items()}
