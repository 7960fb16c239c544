"""The LightningModule of a Sparse Transformer, and the run function of the experiments (Sec. 6; spec 3.6)."""

import copy
import itertools
import statistics
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from math import cos, log, pi
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from common.capture import CudaCapture, StepGraph
from common.curves import read_rows
from common.files import write_json
from common.random import Stream, seeded
from common.runs import Execution, Folder
from common.trainer import Schedule, autocast, fit, save_weights
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.data import Batches, Corpus, load_corpus
from papers.sparse_transformer.evaluation import bits
from papers.sparse_transformer.network import SETTINGS, WEIGHTS, SparseTransformer, load_model


def learning_rate(config: Config, step: int) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then a cosine to 0 at the last step (spec 3.6)."""
    done, warmup = step + 1, config.warmup
    if done < warmup:
        return config.learning_rate * done / warmup
    return config.learning_rate * (1 + cos(pi * (done - warmup) / max(1, config.steps - warmup))) / 2


class LossScale(nn.Module):
    """What a float16 loss is multiplied by, so that small gradients do not vanish (spec 3.6).

    It starts at 2^16, is halved by a step whose gradients overflow (which is skipped) and doubled after 1,000 good
    steps in a row. Its state is two tensors; the device is never asked.
    """

    scale: Tensor
    good: Tensor

    def __init__(self, initial: float = 2.0**16, patience: int = 1000):
        super().__init__()
        self.patience = patience
        self.register_buffer("scale", torch.tensor(initial))
        self.register_buffer("good", torch.tensor(0))

    def update(self, finite: Tensor) -> None:
        """Count a step; finite: bool [], whether its gradients were."""
        good = torch.where(finite, self.good + 1, 0)
        grown = good >= self.patience
        self.scale.copy_(torch.where(finite, torch.where(grown, self.scale * 2, self.scale), self.scale / 2))
        self.good.copy_(torch.where(grown, 0, good))


class LanguageModel(pl.LightningModule):
    """A Sparse Transformer trained on a corpus that lives on the device.

    Everything random of a range of steps but dropout is drawn before the first of them (`draw`), so that a step without
    dropout is a function of tensors that a CUDA graph can capture (`optimise`).
    """

    def __init__(self, model: SparseTransformer, config: Config, corpus: Corpus, seed: int, execution: Execution):
        super().__init__()
        self.automatic_optimization = False
        self.config, self.corpus, self.seed, self.execution = config, corpus, seed, execution
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False) if config.ema_decay else None
        self.loss_scale = LossScale() if config.loss_scaling else None
        self.step, self.samples_per_step = 0, config.batch_size
        self.now = 0  # the step being done
        self.random = config.dropout > 0 or config.attention_dropout > 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW whose decay is multiplied by the current rate; vectors (biases, LayerNorm, start) have none."""
        config = self.config
        embeddings = {id(p) for p in (self.model.tokens.weight, *self.model.tables)}
        decayed: list[Tensor] = []
        free: list[Tensor] = []
        for parameter in self.model.parameters():
            decays = parameter.dim() >= 2 and (config.decay_embeddings or id(parameter) not in embeddings)
            (decayed if decays else free).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            eps=1e-8,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        return self.optimizer

    def on_fit_start(self) -> None:
        """Move the data and the schedule to the device once; nothing is copied to it afterwards."""
        config, device = self.config, self.device
        self.train_data = Batches(self.corpus.train, config.context, device, self.corpus.unit)
        self.rates = torch.tensor([learning_rate(config, step) for step in range(config.steps)], device=device)
        self.weights: list[Tensor] = list(self.model.parameters())
        self.averages: list[Tensor] = [] if self.average is None else list(self.average.parameters())
        if self.execution.compile:
            for block in self.model.blocks:
                block.compile_residual()  # type: ignore[operator]
        captured = device.type == "cuda" and config.cuda_graph and not self.random
        self.one_step = StepGraph(self.optimise, CudaCapture(device) if captured else None)

    def precision(self) -> AbstractContextManager[Any]:
        """Where forward passes compute: float16 with loss scaling, else as the run is executed."""
        if self.loss_scale is not None:
            return torch.autocast(self.device.type, torch.float16, cache_enabled=False)
        return autocast(self.execution)

    def draw(self, steps: range) -> dict[str, Tensor]:
        """Which items or pieces each of `steps` reads, and its learning rate; a leading dimension len(steps) each."""
        index = self.train_data.draw(self.seed, steps, self.config.batch_size)
        return {"index": index, "rate": self.rates[steps.start : steps.stop]}

    def keys(self, step: int, piece: int) -> list[int]:
        """The attention dropout's key for each layer; none where there is no such dropout."""
        if not self.config.attention_dropout:
            return []
        stream, layers = Stream(self.seed, "attention dropout"), self.config.layers
        first = (step * self.config.batch_size + piece) * layers
        return [stream.derived_seed(first + layer) for layer in range(layers)]

    def optimise(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step: loss in bits, gradients in pieces of a microbatch, AdamW, averaged weights. Nothing is read back
        from the device."""
        pieces = draws["index"].split(self.config.microbatch or self.config.batch_size)
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for number, index in enumerate(pieces):
            with self.precision():
                nats = self.model.nats(self.train_data.tokens(index), self.keys(self.now, number)).mean()
            loss = nats / len(pieces)
            (loss if self.loss_scale is None else loss * self.loss_scale.scale).backward()
            total += loss.detach()
        self.update(draws["rate"])
        return {"loss_bits": total / log(2)}

    @torch.no_grad()
    def update(self, rate: Tensor) -> None:
        """Clip the gradients' global norm and let AdamW take its step, which an overflow in float16 skips; average."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        clip, scale = self.config.clip, 1.0 if self.loss_scale is None else self.loss_scale.scale
        if clip or self.loss_scale is not None:
            norm = get_total_norm(gradients, foreach=True) / scale
            factor = (clip / (norm + 1e-6)).clamp(max=1.0) if clip else torch.ones_like(norm)
            torch._foreach_mul_(gradients, factor / scale)
            if self.loss_scale is not None:
                finite = norm.isfinite()
                # As torch.amp.GradScaler tells a fused optimiser to leave weights and moments as they are.
                self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
                self.loss_scale.update(finite)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.averages:
            torch._foreach_lerp_(self.averages, self.weights, 1 - self.config.ema_decay)

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The optimisation steps range(*bounds); the loss of the last one, in bits per token."""
        steps = range(*bounds)
        draws = self.draw(steps)
        dropout = Stream(self.seed, "dropout", self.device)
        outputs: dict[str, Tensor] = {}
        for i, self.now in enumerate(steps):
            with seeded(dropout, self.now) if self.random else nullcontext():
                outputs = self.one_step({name: tensor[i] for name, tensor in draws.items()})
        return outputs

    @property
    def evaluated(self) -> SparseTransformer:
        """The network that is evaluated and kept: with averaged weights where there are such."""
        return self.model if self.average is None else self.average

    def evaluate(self) -> dict[str, float]:
        """Bits per token of the validation split and of as much of the train split; at the end of the test split."""
        corpus, count = self.corpus, self.config.evaluation_items
        parts = {"validation_bits": (corpus.validation, count)}
        parts["train_bits"] = (corpus.train, count or self.items(corpus.validation))
        if int(self.step) >= self.config.steps:
            parts["test_bits"] = (corpus.test, count)
        return {name: self.bits_of(part, count) for name, (part, count) in parts.items() if len(part)}

    def items(self, part: Any) -> int:
        """Items of a split, or windows of the context that a stream holds (at least one)."""
        return len(part) if self.corpus.kind == "items" else max(1, len(part) // self.config.context)

    def bits_of(self, part: Any, count: int) -> float:
        """Bits per token of `count` items or windows of a split, evenly spread (0: all of it). A minimum context needs
        neighbouring windows: there, of the first so many tokens."""
        config = self.config
        stream = self.corpus.kind == "stream"
        if 0 < count < self.items(part) and not (stream and config.min_context):
            tokens = Batches(part, config.context, self.device, self.corpus.unit).evaluation(count)
        else:
            tokens = torch.tensor(part[: count * config.context] if stream and count else part, device=self.device)
        with self.precision():
            return bits(self.evaluated, tokens, config.context, config.min_context, config.evaluation_batch_size)


def initial_model(config: Config, corpus: Corpus, seed: int) -> SparseTransformer:
    """The network as a run of this seed begins with it."""
    with seeded(Stream(seed, "initialisation")):
        return SparseTransformer(config, corpus.vocabulary, corpus.grid)


def make_module(config: Config, corpus: Corpus, seed: int, execution: Execution) -> LanguageModel:
    """A module on its device that is ready for `training_step`, without a Trainer: for measurements and tests."""
    module = LanguageModel(initial_model(config, corpus, seed), config, corpus, seed, execution).to(execution.device)
    module.configure_optimizers()
    module.on_fit_start()
    return module


def schedule_of(config: Config) -> Schedule:
    """When a run evaluates, logs and writes checkpoints."""
    return Schedule(
        config.steps, config.evaluate_every, config.checkpoint_every, config.log_every, config.steps_per_call
    )


def seconds_per_step(curves: Path) -> float:
    """Median time of a step in seconds: from the rows that one logged step ended with to the next one's first, so that
    evaluations are left out."""
    times: dict[int, list[float]] = {0: [0.0]}
    for row in read_rows(curves):
        times.setdefault(int(row["step"]), []).append(float(row["seconds"]))
    found = [
        (min(after) - max(before)) / (then - step)
        for (step, before), (then, after) in itertools.pairwise(sorted(times.items()))
    ]
    # The first interval has the start of the run in it.
    return statistics.median(found[1:] or found)


def train(settings: Config, corpus: Corpus, seed: int, folder: Folder) -> dict[str, Any]:
    """Train on a corpus in `folder`, resuming what it holds; leaves the evaluated weights and `settings.json`.

    {"test_bits" (where there is a test split), "validation_bits", "train_bits": bits per token at the end, of the
    averaged weights where there are such; "seconds_per_step"}.
    """
    module = LanguageModel(initial_model(settings, corpus, seed), settings, corpus, seed, folder.execution)
    fit(module, folder, schedule_of(settings))
    save_weights(folder, module.evaluated.state_dict(), WEIGHTS)
    grid = None if corpus.grid is None else list(corpus.grid)
    known = {"vocabulary": corpus.vocabulary, "grid": grid, "label": corpus.label, "decode": corpus.decode}
    known["unit"] = corpus.unit
    write_json(folder.path / SETTINGS, {"config": asdict(settings), **known})
    values = {name: folder.curves.values(name) for name in ("test_bits", "validation_bits", "train_bits")}
    metrics = {name: found[-1] for name, found in values.items() if found}
    return {**metrics, "seconds_per_step": seconds_per_step(folder.curves.path)}


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train one network on one seed; the metrics of `train`, and in `artifacts/` what the pictures are drawn from."""
    from papers.sparse_transformer import artifacts

    settings, seed = Config.of(config), int(config["seed"])
    corpus = load_corpus(settings, seed, folder.data_dir)
    metrics = train(settings, corpus, seed, folder)
    model = load_model(folder.path)[0].to(folder.execution.device)
    artifacts.save(model, corpus, settings, folder)
    return metrics
