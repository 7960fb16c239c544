"""Random numbers as functions of (seed, stream name, step, index).

Randomness that is a function and not a state makes exact resuming easy, gives the same bits on CPU and GPU, and does
not depend on the engine, the number of workers or the world size. The generator hashes a counter with two rounds of
the splitmix64 finaliser (Steele et al. 2014) in wrapping 64-bit integer arithmetic. Uniforms are 24 bits times 2^-24;
normal and Beta draws look a 16-bit index up in a float32 table of quantiles, so no transcendental function runs on
the device; permutations sort 63-bit keys.

Draws take `steps`, an int or an int64 tensor of any shape, and give a tensor of shape [*steps.shape, count]: a whole
chunk of steps is drawn at once, which costs hardly more than one step.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from scipy import special
from torch import Tensor

TABLE_SIZE = 65_536
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    # torch's >> on int64 copies the sign bit down; the mask clears those copies.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 [...], a bijection of the 64-bit integers."""
    x = (x ^ _logical_shift(x, 30)) * _signed(_MULTIPLIERS[0])
    x = (x ^ _logical_shift(x, 27)) * _signed(_MULTIPLIERS[1])
    return x ^ _logical_shift(x, 31)


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MULTIPLIERS[0]) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLIERS[1]) & _MASK
    return x ^ (x >> 31)


@functools.cache
def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


@functools.cache
def _normal_table(device: torch.device) -> Tensor:
    probability = (np.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE
    return torch.from_numpy(special.ndtri(probability).astype(np.float32)).to(device)


@functools.cache
def _beta_table(alpha: float, beta: float, device: torch.device) -> Tensor:
    probability = (np.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE
    return torch.from_numpy(special.betaincinv(alpha, beta, probability).astype(np.float32)).to(device)


class Stream:
    """A named stream of random numbers, e.g. `Stream(1000, "augmentation")`.

    Two streams with another seed or another name are independent; the same (seed, name, step, index) always gives the
    same number. `device` is where draws are made.
    """

    def __init__(self, seed: int, name: str, device: torch.device | str = "cpu"):
        self.seed, self.name, self.device = seed, name, torch.device(device)
        self.key = _key(seed, name)

    def child(self, name: str) -> "Stream":
        """An independent stream named below this one."""
        return Stream(self.seed, f"{self.name}/{name}", self.device)

    def bits(self, steps: int | Tensor, count: int) -> Tensor:
        """Uniform 64-bit integers, int64 [*steps.shape, count]."""
        steps = torch.as_tensor(steps, dtype=torch.int64, device=self.device)
        index = torch.arange(1, count + 1, dtype=torch.int64, device=self.device)
        row = _mix(_mix(steps * _signed(_GOLDEN) + _signed(self.key)) ^ _signed(self.key))
        return _mix(_mix(row[..., None] + index * _signed(_GOLDEN)))

    def uniform(self, steps: int | Tensor, count: int) -> Tensor:
        """Uniforms in [0, 1) that are multiples of 2^-24, float32 [*steps.shape, count]."""
        return _logical_shift(self.bits(steps, count), 40).to(torch.float32) * 2.0**-24

    def integers(self, steps: int | Tensor, count: int, high: int) -> Tensor:
        """Integers uniform in [0, high), int64 [*steps.shape, count]; high <= 2^31 (the bias is below high / 2^31)."""
        if not 0 < high <= 1 << 31:
            raise ValueError(f"high must lie in 1..2^31, not {high}")
        return (_logical_shift(self.bits(steps, count), 33) * high) >> 31

    def normal(self, steps: int | Tensor, shape: Sequence[int]) -> Tensor:
        """Standard normals from 65,536 quantiles, float32 [*steps.shape, *shape]; none passes 4.33 in size."""
        index = _logical_shift(self.bits(steps, prod(shape)), 48)
        return _normal_table(self.device)[index].unflatten(-1, tuple(shape))

    def beta(self, steps: int | Tensor, count: int, alpha: float, beta: float | None = None) -> Tensor:
        """Beta(alpha, beta) draws (beta = alpha by default) from 65,536 quantiles, float32 [*steps.shape, count]."""
        index = _logical_shift(self.bits(steps, count), 48)
        return _beta_table(float(alpha), float(alpha if beta is None else beta), self.device)[index]

    def permutation(self, steps: int | Tensor, count: int) -> Tensor:
        """Uniform permutations of 0..count-1, int64 [*steps.shape, count]."""
        return _logical_shift(self.bits(steps, count), 1).argsort(dim=-1, stable=True)

    def derived_seed(self, step: int = 0) -> int:
        """A 63-bit seed for a generator of another library (torch, NumPy, scikit-learn)."""
        return _mix_int(_mix_int((step * _GOLDEN + self.key) & _MASK) ^ self.key) >> 1

    def epochs(self, steps: range, batch_size: int, population: int) -> Tensor:
        """Indices of shuffled epochs, int64 [len(steps), batch_size].

        Position p = step * batch_size + i of the run reads slot p mod population of epoch p div population; every
        epoch is a fresh permutation, so each index comes once an epoch and batches run across its end.
        """
        positions = torch.arange(steps.start * batch_size, steps.stop * batch_size, device=self.device)
        first, last = steps.start * batch_size // population, (steps.stop * batch_size - 1) // population
        rows = torch.stack([self._epoch(epoch, population) for epoch in range(first, last + 1)])
        return rows.flatten()[positions - first * population].view(len(steps), batch_size)

    def _epoch(self, epoch: int, population: int) -> Tensor:
        return _epoch_permutation(self.seed, self.name, self.device, epoch, population)


@functools.lru_cache(maxsize=8)
def _epoch_permutation(seed: int, name: str, device: torch.device, epoch: int, population: int) -> Tensor:
    return Stream(seed, name, device).permutation(epoch, population)


@contextmanager
def seeded(stream: Stream, step: int = 0) -> Iterator[None]:
    """Inside the block torch's own generators (initialisation, dropout) start from (seed, stream, step).

    The generator objects are seeded directly: `torch.manual_seed` also visits every other backend and is about 150
    times slower. The states from before are put back afterwards, so nothing outside the block notices.
    """
    device = stream.device
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(stream.derived_seed(step))
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
