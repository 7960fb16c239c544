"""What is measured, not trained: speed, length, memory of a layer, seconds of a step, and evaluation with more context.

Each function here is a run, called as function(config, folder, needs); the settings are in `measure_config.py`. Timings
of what is compared are taken in turns within one process, and the experiments are `exclusive`.
"""

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.files import read_json
from common.random import Stream, seeded
from common.runs import Folder, Stopped
from common.timing import seconds
from common.trainer import autocast
from papers.sparse_transformer.blocks import sparse_attention
from papers.sparse_transformer.measure_config import Context, Iteration, Length, Memory, Speed
from papers.sparse_transformer.method import Pattern
from papers.sparse_transformer.network import SparseTransformer, load_model

VOCABULARY = 256
Needs = Mapping[str, Path]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation and number of repeated measurements."""
    return {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "n": len(values),
    }


def in_turns(
    actions: Mapping[Any, Callable[[], object]], repeats: int, folder: Folder, calls: Mapping[Any, int] | None = None
) -> dict[Any, list[float]]:
    """Seconds of one call of each action, `repeats` times in turns, after a round that does not count.

    calls: over how many calls a timing of an action averages (1). Raises Stopped on a request to stop.
    """
    times: dict[Any, list[float]] = {name: [] for name in actions}
    for turn in range(1 + repeats):
        for name, action in actions.items():
            if folder.stop_requested:
                raise Stopped
            count = (calls or {}).get(name, 1) if turn else 1

            def several(action: Callable[[], object] = action, count: int = count) -> None:
                for _ in range(count):
                    action()

            taken = seconds(several, folder.execution.device) / count
            if turn:
                times[name].append(taken)
        folder.report(turn, repeats, {})
    return times


# ---------------------------------------------------------------- speed (E1)


class Attending:
    """Random inputs of one size, and forward and backward passes over them.

    seed: of the inputs, standard normal: q, k, v and the gradient of the output, each [1, H, n, D] in dtype.
    """

    def __init__(
        self,
        pattern: Pattern,
        n: int,
        heads: int,
        size: int,
        seed: int,
        device: str,
        dtype: torch.dtype = torch.float32,
    ):
        self.pattern, self.n = pattern, n
        # torch's own generator: the counters of `Stream.normal` would take more memory than attention does.
        generator = torch.Generator(device).manual_seed(Stream(seed, f"inputs/{n}").derived_seed())
        inputs = torch.randn(4, 1, heads, n, size, generator=generator, device=device).to(dtype)
        self.q, self.k, self.v = (inputs[i].requires_grad_() for i in range(3))
        self.gradient = inputs[3]

    def passes(self, attend: Attend) -> tuple[Tensor, ...]:
        """The output and the gradients of q, k and v."""
        output = attend(self.q, self.k, self.v)
        return output.detach(), *torch.autograd.grad(output, (self.q, self.k, self.v), self.gradient)

    def sparse(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The fast path."""
        return sparse_attention(q, k, v, self.pattern)

    def masked(self) -> Attend:
        """The usual way to sparse attention: dense attention with a mask of n x n."""
        # A few rows at a time: the offsets i - j of all would be eight times as large as the mask.
        positions = torch.arange(self.n, device=self.q.device)
        mask = torch.cat([self.pattern.allowed(rows[:, None], positions) for rows in positions.split(1024)])
        return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense causal attention, torch's fastest."""
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Of the line through log time against log n, by least squares."""
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(t) for t in times]).slope


def speed(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """How many times faster sparse attention is than dense, forward and backward, and how its time grows (E1).

    Metrics, for each n: `masked_ratio_n` and `causal_ratio_n` against dense attention with the same mask and with the
    causal one, `sparse_ms_n` for all heads; and `slope`, of the time a head takes. All are {mean, std, n} over repeats.
    `largest_difference`: of output and gradients from those of the masked path.
    """
    settings, device = Speed.of(config), folder.execution.device
    attending: dict[int, Attending] = {}
    for n, heads in zip(settings.sizes, settings.heads, strict=True):
        cells = settings.summary if settings.pattern == "fixed" else 0
        pattern = Pattern(settings.pattern, math.isqrt(n), cells)
        attending[n] = Attending(pattern, n, heads, settings.head_size, config["seed"], device)
    ways: dict[tuple[int, str], Attend] = {}
    difference = 0.0
    for n, case in attending.items():
        ways[n, "sparse"] = case.sparse
        if n <= settings.dense_limit:
            ways[n, "masked"], ways[n, "causal"] = case.masked(), causal
            pairs = zip(case.passes(case.sparse), case.passes(ways[n, "masked"]), strict=True)
            difference = max(difference, *(float((a - b).abs().max()) for a, b in pairs))
    calls, heads_at = (dict(zip(settings.sizes, each, strict=True)) for each in (settings.calls, settings.heads))
    times = in_turns(
        {(n, way): partial(attending[n].passes, attend) for (n, way), attend in ways.items()},
        settings.repeats,
        folder,
        {(n, "sparse"): calls[n] for n in attending},
    )
    metrics: dict[str, Any] = {"largest_difference": difference}
    for n in settings.sizes:
        metrics[f"sparse_ms_{n}"] = summary([1e3 * taken for taken in times[n, "sparse"]])
        for way in ("masked", "causal"):
            if (n, way) in times:
                ratios = [dense / fast for dense, fast in zip(times[n, way], times[n, "sparse"], strict=True)]
                metrics[f"{way}_ratio_{n}"] = summary(ratios)
    for name, way in (("slope", "sparse"), ("causal_slope", "causal")):
        sizes = [n for n in settings.sizes if (n, way) in times]
        if len(sizes) > 1:
            turns = zip(*([taken / heads_at[n] for taken in times[n, way]] for n in sizes), strict=True)
            metrics[name] = summary([slope(sizes, turn) for turn in turns])
    return metrics


# ---------------------------------------------------------------- length (E5) and memory


def _status(name: str) -> int | None:
    """A line of this process's /proc status in bytes; None where there is no such thing (not Linux)."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None


def forget_peak(device: str = "cpu") -> None:
    """Let `peak_memory` speak of what comes after this call, where the system allows it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # a container may forbid it: the peak then also covers what was before
            return


def peak_memory(device: str = "cpu") -> int:
    """The most memory in bytes: of a GPU's tensors, elsewhere the process's resident memory, libraries included."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def length(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """Seconds and peak memory of one forward and backward pass at a great length (E5).

    Metrics: `step_seconds`; `peak_gb`, the process's largest resident memory in 10^9 bytes (on a GPU, of its tensors);
    `working_gb`, how much of it came with the pass.
    """
    settings, device = Length.of(config), folder.execution.device
    stream = Stream(config["seed"], "inputs", device)
    forget_peak(device)
    before = peak_memory(device)
    if settings.layers:
        network = settings.network()
        with seeded(Stream(config["seed"], "initialisation", device)), torch.device(device):
            model = SparseTransformer(network, VOCABULARY)
        tokens = stream.integers(0, settings.context, VOCABULARY)[None]

        def step() -> None:
            with autocast(folder.execution):
                loss = model.nats(tokens).mean()
            loss.backward()
    else:
        pattern = Pattern("strided", settings.stride)
        case = Attending(pattern, settings.context, settings.heads, settings.width, config["seed"], device)

        def step() -> None:
            case.passes(case.sparse)

    taken = seconds(step, device)
    peak = peak_memory(device)
    return {"step_seconds": taken, "peak_gb": peak / 1e9, "working_gb": (peak - before) / 1e9}


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and somebody still holds.

    Whoever keeps a tensor for the backward pass, autograd or a closure, is counted alike.
    """

    def __init__(self, but: Iterable[Tensor] = ()) -> None:
        """but: tensors that are there anyway, such as parameters; views of them do not count."""
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in but}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._made[storage._cdata] = (
                        StorageWeakRef(storage),
                        storage.nbytes(),
                    )
        return result

    def bytes(self) -> int:
        """Held now."""
        return sum(size for storage, size in self._made.values() if not storage.expired())


def kept_bytes(model: SparseTransformer, tokens: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, its output included."""
    # A pass before fills the caches of masks and the like, which layers share.
    model.nats(tokens).sum().backward()
    with Alive(model.parameters()) as alive:
        loss = model.nats(tokens).sum()
        kept = alive.bytes()
    del loss
    return kept


def memory_per_layer(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """What a further layer keeps for the backward pass, in tensors of n x d float32 (C9): a metric `layer_tensors`."""
    settings, device = Memory.of(config), folder.execution.device
    tokens = Stream(config["seed"], "inputs", device).integers(0, settings.context, VOCABULARY)[None]
    kept = []
    for layers in (settings.layers, settings.layers + 1):
        with seeded(Stream(config["seed"], "initialisation", device)), torch.device(device):
            model = SparseTransformer(settings.network(layers), VOCABULARY)
        kept.append(kept_bytes(model, tokens))
    return {"layer_tensors": (kept[1] - kept[0]) / (4 * settings.context * settings.width)}


# ---------------------------------------------------------------- seconds of a training step (Table 2)


def iteration(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """Whole training steps of one network with each kind of attention (Table 2).

    Metrics: `<method>_ms`, and `<method>_speedup`, the time with dense attention over the method's; {mean, std, n} over
    repeats.
    """
    from papers.sparse_transformer.data import load_corpus
    from papers.sparse_transformer.module import LanguageModel, initial_model

    settings, execution = Iteration.of(config), folder.execution
    configs = settings.configs()
    corpus = load_corpus(configs["dense"], config["seed"], folder.data_dir)
    steps: dict[str, Callable[[], object]] = {}
    for name, network in configs.items():
        model = initial_model(network, corpus, config["seed"])
        module = LanguageModel(model, network, corpus, config["seed"], execution).to(execution.device)
        module.configure_optimizers()
        module.on_fit_start()

        def several(module: Any = module) -> None:
            module.training_step((module.step, module.step + settings.steps))
            module.step += settings.steps

        steps[name] = several
    times = in_turns(steps, settings.repeats, folder)
    metrics: dict[str, Any] = {}
    for name, taken in times.items():
        metrics[f"{name}_ms"] = summary([1e3 * t / settings.steps for t in taken])
        if name != "dense":
            metrics[f"{name}_speedup"] = summary([dense / t for dense, t in zip(times["dense"], taken, strict=True)])
    return metrics


# ---------------------------------------------------------------- more context at evaluation (E4, Table 3)


def context(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """Bits a token of the trained model in `needs["model"]` with a minimum context (3.7): a metric `context_bits`.

    A window slides over the same stretch of the test split whatever the minimum context; every token is scored once.
    """
    from papers.sparse_transformer.data import load_corpus
    from papers.sparse_transformer.evaluation import bits

    settings, device = Context.of(config), folder.execution.device
    model, trained, _ = load_model(needs["model"])
    seed = int(read_json(needs["model"] / "config.json")["seed"])
    corpus = load_corpus(trained, seed, folder.data_dir)
    part = torch.from_numpy(corpus.test[: settings.tokens]).to(device)
    if part.ndim != 1 or len(part) < trained.context:
        raise ValueError(f"the test split has no stretch of {trained.context} tokens to slide a window over")
    started = time.perf_counter()
    with torch.inference_mode(), autocast(folder.execution):
        size = trained.evaluation_batch_size
        found = bits(model.to(device), part, trained.context, settings.min_context, size)
    return {"context_bits": found, "evaluation_seconds": time.perf_counter() - started}
