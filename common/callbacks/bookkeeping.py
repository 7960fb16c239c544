"""Everything that happens between two ranges of steps: curves, evaluation, checkpoints, progress, stopping."""

import math
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from common import checkpoints
from common.errors import Diverged
from common.runs import Folder

if TYPE_CHECKING:
    from common.trainer import Schedule


class Bookkeeping(pl.Callback):
    """Resumes at the start, then after each range of steps: log, evaluate, checkpoint, in this order.

    The order makes resuming exact: a checkpoint at step s is written after every curve row up to s is on the disk, and
    a resume cuts the rows after s. Values are read from the device only at `log_every`.
    """

    def __init__(self, folder: Folder, schedule: "Schedule"):
        self.folder, self.schedule = folder, schedule
        self.stopped = False
        self._saved = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = checkpoints.load_latest(self.folder.path / "checkpoints", "cpu")
        if state is None:
            self.folder.curves.cut(-1)
            return
        trainer.strategy.load_model_state_dict({"state_dict": state["module"]}, strict=True)
        trainer.strategy.load_optimizer_state_dict({"optimizer_states": state["optimizers"]})
        pl_module.step = state["step"]  # type: ignore[assignment]
        self._saved = state["step"]
        self.folder.resume_clock(state["seconds"])
        self.folder.samples = state["step"] * int(pl_module.samples_per_step)  # type: ignore[arg-type]
        self.folder.curves.cut(state["step"])
        if state["step"] < self.schedule.total_steps:
            self.folder.note_resumed(state["step"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has just put its own SIGTERM handler in, which would end the run without a checkpoint.
        self.folder.listen_for_stop()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: tuple[int, int], batch_idx: int
    ) -> None:
        step, schedule = batch[1], self.schedule
        pl_module.step = step  # type: ignore[assignment]
        self.folder.samples = step * int(pl_module.samples_per_step)  # type: ignore[arg-type]
        end = step == schedule.total_steps
        if step % schedule.log_every == 0 or end:
            self._log(trainer, pl_module, outputs)
        if step % schedule.evaluate_every == 0 or end:
            self._evaluate(trainer, pl_module)
        stop = self.folder.stop_requested and not end
        if step % schedule.checkpoint_every == 0 or end or stop:
            self._save(trainer, pl_module)
        if stop:
            self.stopped = trainer.should_stop = True

    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule, values: dict[str, float]) -> None:
        step = int(pl_module.step)  # type: ignore[arg-type]
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise Diverged(step, bad[0])
        self.folder.curves.append(step, self.folder.samples, self.folder.seconds(), values)
        self.folder.report(step, self.schedule.total_steps, values)
        if trainer.logger is not None:
            trainer.logger.log_metrics(values, step)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any) -> None:
        names = list(outputs)
        # One copy from the device for all values.
        numbers = torch.stack([outputs[name].detach().float() for name in names]).tolist()
        self._record(trainer, pl_module, {f"train_{name}": number for name, number in zip(names, numbers, strict=True)})

    def _evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = pl_module.evaluate()  # type: ignore[operator]
        self._record(trainer, pl_module, values)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = int(pl_module.step)  # type: ignore[arg-type]
        if step == self._saved:
            return
        state = {
            "step": step,
            "seconds": self.folder.seconds(),
            "module": trainer.strategy.lightning_module_state_dict(),
            "optimizers": [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers],
        }
        self.folder.curves.sync()
        checkpoints.save(self.folder.path / "checkpoints", step, state)
        self._saved = step
