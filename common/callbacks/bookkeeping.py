"""Everything that happens between two ranges of steps: curves, evaluation, checkpoints, progress, stopping."""

import math
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from common import checkpoints
from common.errors import Diverged
from common.runs import Folder, Workplace

if TYPE_CHECKING:
    from common.trainer import Schedule


class Bookkeeping(pl.Callback):
    """Resumes at the start, then after each range of steps: log, evaluate, checkpoint, in this order.

    The order makes resuming exact: a checkpoint at step s is written after every curve row up to s is on the disk, and
    a resume cuts the rows after s. Values are read from the device only at `log_every`.
    """

    def __init__(self, place: Workplace, schedule: "Schedule"):
        self.place, self.schedule = place, schedule
        self.stopped = False
        self._saved = -1
        self._loggers = {
            member.path: TensorBoardLogger(str(member.path), name="tensorboard", version="")
            for member in place.members
            if member.spec.tensorboard
        }

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = checkpoints.load_latest(self.place.path / "checkpoints", "cpu")
        if state is None:
            for member in self.place.members:
                member.curves.cut(-1)
            return
        trainer.strategy.load_model_state_dict({"state_dict": state["module"]}, strict=True)
        trainer.strategy.load_optimizer_state_dict({"optimizer_states": state["optimizers"]})
        pl_module.step = state["step"]  # type: ignore[assignment]
        self._saved = state["step"]
        self.place.resume_clock(state["seconds"])
        self._count_samples(pl_module)
        for member, ended in zip(self.place.members, state["diverged"], strict=True):
            member.diverged = None if ended is None else Diverged(*ended)
            member.curves.cut(state["step"])
            if state["step"] < self.schedule.total_steps and member.diverged is None:
                member.note_resumed(state["step"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has just put its own SIGTERM handler in, which would end the run without a checkpoint.
        self.place.listen_for_stop()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: tuple[int, int], batch_idx: int
    ) -> None:
        step, schedule = batch[1], self.schedule
        pl_module.step = step  # type: ignore[assignment]
        self._count_samples(pl_module)
        end = step == schedule.total_steps
        if step % schedule.log_every == 0 or end:
            self._record(step, self._split(outputs))
        if step % schedule.evaluate_every == 0 or end:
            found = pl_module.evaluate()  # type: ignore[operator]
            self._record(step, found if isinstance(found, list) else [found])
        stop = self.place.stop_requested and not end
        if step % schedule.checkpoint_every == 0 or end or stop:
            self._save(trainer, pl_module)
        if stop:
            self.stopped = trainer.should_stop = True

    def _alive(self) -> list[Folder]:
        return [member for member in self.place.members if member.diverged is None]

    def _count_samples(self, pl_module: pl.LightningModule) -> None:
        for member in self._alive():
            member.samples = int(pl_module.step) * int(pl_module.samples_per_step)  # type: ignore[arg-type]

    def _split(self, outputs: Any) -> list[dict[str, float]]:
        """What `training_step` returned, for each member: a tensor [] or [members] of every name."""
        names, members = list(outputs), self.place.members
        # One copy from the device for all values.
        table = torch.stack([outputs[name].detach().float().expand(len(members)) for name in names]).tolist()
        return [{f"train_{name}": row[i] for name, row in zip(names, table, strict=True)} for i in range(len(members))]

    def _record(self, step: int, values: list[dict[str, float]]) -> None:
        """Curves, progress and TensorBoard of the members that go on; a value that is not finite ends a member."""
        members = self.place.members
        seconds = self.place.seconds() / len(members)
        for member, numbers in zip(members, values, strict=True):
            if member.diverged is not None:
                continue
            bad = [name for name, number in numbers.items() if not math.isfinite(number)]
            if bad:
                member.diverged = Diverged(step, bad[0])
                continue
            member.curves.append(step, member.samples, seconds, numbers)
            if member.path in self._loggers:
                self._loggers[member.path].log_metrics(numbers, step)
        alive = [i for i, member in enumerate(members) if member.diverged is None]
        if not alive and members[0].diverged is not None:
            raise members[0].diverged
        means = {name: sum(values[i][name] for i in alive) / len(alive) for name in values[alive[0]]}
        self.place.report(step, self.schedule.total_steps, means)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = int(pl_module.step)  # type: ignore[arg-type]
        if step == self._saved:
            return
        ended = [member.diverged and [member.diverged.step, member.diverged.what] for member in self.place.members]
        state = {
            "step": step,
            "seconds": self.place.seconds(),
            "module": trainer.strategy.lightning_module_state_dict(),
            "optimizers": [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers],
            "diverged": ended,
        }
        for member in self.place.members:
            member.curves.sync()
        checkpoints.save(self.place.path / "checkpoints", step, state)
        self._saved = step
