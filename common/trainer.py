"""From our configuration to a Lightning Trainer.

A module that `fit` trains is a LightningModule with manual optimisation and

    step: int                          optimisation steps done; `fit` advances it and saves it with the module
    samples_per_step: int              what the `samples` column of the curves counts
    training_step(bounds)              do the optimisation steps range(*bounds) in order; returns {name: scalar tensor}
                                       of the last one
    evaluate() -> dict[str, float]     measured at every `evaluate_every` steps and at the end

A module that trains a stack of runs as one batched model (`common.jobs`) returns tensors of shape [runs] from
`training_step` and a list of dictionaries, one for each run, from `evaluate`.

One Lightning epoch is the whole run, and its "batches" are ranges of steps: a small network does many steps in one
`training_step`, so that Lightning's own work per batch (about 1 ms on a CPU core) is shared by all of them. A
batch's data is a function of the step, so no loader has a state. Ranges never straddle a step at which something
happens (evaluation, checkpoint, log), and where they are cut does not change what is computed.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from safetensors.torch import save

from common import checkpoints
from common.callbacks import Bookkeeping
from common.files import write_bytes
from common.runs import Execution, Folder, Stopped, Workplace

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


@dataclass(frozen=True)
class Schedule:
    """When things happen, in optimisation steps. steps_per_call: steps that one `training_step` does at the most."""

    total_steps: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int = 100
    steps_per_call: int = 1

    def next_stop(self, step: int) -> int:
        """The step at which a range that begins at `step` must end."""
        every = (self.evaluate_every, self.checkpoint_every, self.log_every, self.steps_per_call)
        return min(self.total_steps, *(step - step % n + n for n in every))


class StepRanges:
    """The ranges of steps that are left, as the `train_dataloaders` of Lightning."""

    def __init__(self, module: pl.LightningModule, schedule: Schedule):
        self.module, self.schedule = module, schedule

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # Pairs of numbers and not ranges, which Lightning would take apart on their way to the device.
        step = int(self.module.step)  # type: ignore[arg-type]
        while step < self.schedule.total_steps:
            stop = self.schedule.next_stop(step)
            yield step, stop
            step = stop


def build_trainer(
    execution: Execution, callbacks: list[pl.Callback], default_root_dir: str | None = None
) -> pl.Trainer:
    """A Trainer for one run: no loader magic, no progress bar and no checkpointing of Lightning's own."""
    accelerator = {"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[execution.device]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=PRECISIONS[execution.precision],  # type: ignore[arg-type]
            deterministic=execution.deterministic,
            benchmark=execution.device == "cuda" and not execution.deterministic,
            max_epochs=1,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            callbacks=callbacks,
            default_root_dir=default_root_dir,
            inference_mode=False,
        )


def fit(module: pl.LightningModule, place: Workplace, schedule: Schedule) -> None:
    """Train `module` in a run's folder, or a stack in its job's, to `schedule.total_steps`; resumes a checkpoint.

    Raises Stopped after a clean early end (checkpoint written) and Diverged when a logged value of every run is not
    finite; while others go on, a run of a stack is only marked (`Folder.diverged`). The end state is a checkpoint like
    any other, so a finished training that is called again does nothing.
    """
    execution = place.execution
    bookkeeping = Bookkeeping(place, schedule)
    with quiet(), _determinism(execution.deterministic):
        trainer = build_trainer(execution, [bookkeeping], str(place.path))
        try:
            trainer.fit(module, train_dataloaders=StepRanges(module, schedule))
        except SIGTERMException:
            # The signal came while Lightning's handler was in place, just before `Bookkeeping` put ours back.
            bookkeeping.stopped = True
    if bookkeeping.stopped:
        raise Stopped


def autocast(execution: Execution) -> Any:
    """The context in which a step's forward, or an evaluation, computes.

    Lightning's own autocast lies around a whole range of steps and keeps the weights it has converted until it ends:
    the second step would compute with the first one's weights. Hence a context for each step, and one that keeps
    nothing, which also lets the step be captured in a CUDA graph.
    """
    if execution.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(execution.device, torch.bfloat16, cache_enabled=False)


def save_weights(folder: Folder, tensors: Mapping[str, torch.Tensor], name: str = "weights.safetensors") -> None:
    """Write final weights as safetensors, atomically."""
    write_bytes(folder.path / name, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))


class quiet(warnings.catch_warnings):
    """Without Lightning's advice about loaders, workers and devices, none of which applies here."""

    def __enter__(self) -> Any:
        import logging

        result = super().__enter__()
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", module="lightning_fabric")
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        return result


class _determinism:
    """Lightning switches torch's deterministic mode on for the process; put it back for whoever comes next."""

    def __init__(self, wanted: bool):
        self.wanted = wanted

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)


__all__ = ["Schedule", "autocast", "build_trainer", "checkpoints", "fit", "quiet", "save_weights"]
