"""Speed of factorised attention, measured by `make bench PAPER=sparse_transformer`: forward and backward together.

The plain paths are PyTorch's fused dense attention, once with the same keys given as a mask of n x n (the usual way to
sparse attention) and once plainly causal (which sees more keys, so that only its time can be compared). `floor` is what
the plain path would take if it computed nothing but the pairs that the pattern sees (spec, 11.2).
"""

import math
import statistics
from collections.abc import Iterator

import torch

from common.bench import Row, Setting, compare, row
from common.random import Stream, seeded
from common.timing import interleaved, seconds
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.data import load_corpus
from papers.sparse_transformer.measure import (
    VOCABULARY,
    Attending,
    causal,
    forget_peak,
    peak_memory,
    slope,
)
from papers.sparse_transformer.method import Pattern
from papers.sparse_transformer.module import make_module
from papers.sparse_transformer.network import SparseTransformer
from papers.sparse_transformer.sampling import Sampler

HEAD_SIZE = 64
CPU_HEADS = {1024: 4, 4096: 4, 16384: 1}
CUDA_HEADS = {16384: 16, 65536: 8, 262144: 2}
"""Positions and heads of the cases: enough of them to fill the device."""
CELLS = 8
"""c of the fixed pattern, whose l is sqrt(n) as the strided one's."""
MASKED_LIMIT = 16384
"""Positions up to which a mask of n x n is worth its memory."""
SLOPE = (4096, 16384, 65536, 262144)
LONG = Config(
    data="python", context=1 << 20, stride=1024, layers=2, width=32, heads=1, feedforward=4, query_width=1.0,
    positions="attention", dropout=0.0, recompute=True,
)  # fmt: skip
"""The network that is to take a million tokens on a CPU."""
TRAINED = Config(
    data="python", context=1024, pattern="strided", stride=32, layers=4, width=128, heads=4, feedforward=4,
    query_width=1.0, positions="attention", dropout=0.0, recompute=False, batch_size=2, steps=1000, warmup=1,
    learning_rate=0.01,
)  # fmt: skip


def attending(setting: Setting, kind: str, n: int, heads: int) -> Attending:
    """Random inputs in the type that training has on the device."""
    pattern = Pattern(kind, math.isqrt(n), CELLS if kind == "fixed" else 0)
    half = setting.execution.precision == "bfloat16"
    dtype = torch.bfloat16 if half else torch.float32
    return Attending(pattern, n, heads, HEAD_SIZE, 0, setting.execution.device, dtype)


def difference(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> float:
    """Largest difference between outputs and gradients."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def attention_rows(setting: Setting, kind: str, n: int, heads: int) -> Iterator[Row]:
    """One pattern at one length against both kinds of dense attention."""
    case = attending(setting, kind, n, heads)
    pairs = case.pattern.pairs(n)
    plain = {"causal": (causal, n * (n + 1) // 2)}
    if n <= MASKED_LIMIT:
        plain = {"masked": (case.masked(), n * n), **plain}
    for name, (attend, plain_pairs) in plain.items():
        same = difference(case.passes(case.sparse), case.passes(attend)) if name == "masked" else None
        found = compare(
            setting,
            f"{kind} n={n} vs {name}",
            "ms",
            lambda: case.passes(case.sparse),
            lambda attend=attend: case.passes(attend),  # type: ignore[misc]
            same if same is not None else 0.0,
            repeats=5 if n < MASKED_LIMIT else 3,
        )
        floor = float(f"{found['plain'] * pairs / plain_pairs:.4g}")
        yield {**found, "floor": floor, "equivalence": found["equivalence"] if same is not None else None}


def slope_row(setting: Setting, kind: str) -> Row:
    """The exponent e of time ~ n^e over the lengths of SLOPE, l being sqrt(n)."""
    sizes = (256, 1024) if setting.small else SLOPE
    cases = [attending(setting, kind, n, 1) for n in sizes]
    passes = [lambda case=case: case.passes(case.sparse) for case in cases]
    times = interleaved(passes, 1 if setting.small else 3, 0 if setting.small else 1, setting.execution.device)
    return row(setting, f"{kind} slope {sizes[0]}..{sizes[-1]}", "exponent", slope(sizes, times))


def peak_rows(setting: Setting) -> Iterator[Row]:
    """Memory and time of one forward and backward pass of a small network over a million tokens."""
    device = setting.execution.device
    config = Config(**{**vars(LONG), "context": 1024, "stride": 32}) if setting.small else LONG
    forget_peak(device)
    with seeded(Stream(0, "initialisation", device)), torch.device(device):
        model = SparseTransformer(config, VOCABULARY)
    tokens = Stream(0, "inputs", device).integers(0, config.context, VOCABULARY)[None]
    taken = seconds(lambda: model.nats(tokens).mean().backward(), device)
    yield row(setting, f"strided peak n={config.context}", "GB", peak_memory(device) / 1e9)
    yield row(setting, f"strided step n={config.context}", "s", taken)


def training_row(setting: Setting) -> Row:
    """A whole training step of a small language model, its attention factorised and through the masked oracle."""
    small = {"context": 64, "stride": 8, "batch_size": 1} if setting.small else {}
    losses, steps = [], []
    for plain in (False, True):
        config = Config(**{**vars(TRAINED), "plain": plain, **small})
        module = make_module(config, load_corpus(config, 0, None), 0, setting.execution)
        # The output layer begins as zeros, so that only later losses depend on attention at all.
        losses.append(float(module.training_step((0, 3))["loss_bits"]))
        steps.append(lambda module=module: module.training_step((3, 4)))
    return compare(setting, f"training step n={config.context}", "ms", *steps, abs(losses[0] - losses[1]))


@torch.no_grad()
def sampling_row(setting: Setting) -> Row:
    """A token from the caches, against a forward pass over everything before it, at the end of a context."""
    small = {"context": 64, "stride": 8} if setting.small else {"context": 2048, "stride": 64}
    config = Config(**{**vars(TRAINED), **small})
    device = setting.execution.device
    with seeded(Stream(0, "initialisation", device)), torch.device(device):
        model = SparseTransformer(config, VOCABULARY).eval()
        # The output layer begins as zeros, and equal zeros would be no test.
        torch.nn.init.normal_(model.head.weight, std=0.1)
    tokens = Stream(0, "inputs", device).integers(0, config.context, VOCABULARY)[None]
    logits, times, apart = model(tokens)[0], [], 0.0
    sampler = Sampler(model, 1)
    for at in range(config.context):
        found: list[torch.Tensor] = []
        before = tokens[:, at - 1] if at else None
        times.append(seconds(lambda before=before, found=found: found.append(sampler.step(before)[0]), device))  # type: ignore[misc]
        apart = max(apart, float((found[0] - logits[at]).abs().max()))
    full = seconds(lambda: model(tokens), device)
    return row(
        setting,
        f"sampled token n={config.context}",
        "ms",
        1e3 * statistics.median(times[-64:]),
        1e3 * full,
        equivalence=apart,
    )


def rows(setting: Setting) -> Iterator[Row]:
    """Every case; the memory of a process is measured before it has used any."""
    on_gpu = setting.execution.device == "cuda"
    if setting.execution.threads == 1:
        yield from peak_rows(setting)
    sizes = {64: 1, 256: 2} if setting.small else CUDA_HEADS if on_gpu else CPU_HEADS
    for kind in ("strided", "fixed"):
        for n, heads in sizes.items():
            yield from attention_rows(setting, kind, n, heads)
    if setting.execution.threads == 1:
        yield slope_row(setting, "strided")
    yield training_row(setting)
    yield sampling_row(setting)
