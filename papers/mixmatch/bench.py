"""Speed of MixMatch's training, measured by `make bench PAPER=mixmatch`; the classes here are the plain paths.

`PlainStep` is a training step as good public ports write it: images normalised beforehand in NCHW, augmented one by
one in NumPy, a forward for each of the 2K + 1 batches (`method.plain_loss`), PyTorch's Adam as it comes, a loop over
tensors for averages and decay, the loss read back every step. It takes the same draws as the fast path, so both do the
same step, to rounding.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from common.bench import Row, Setting, compare, row
from common.random import Stream, seeded
from common.runs import Execution
from common.timing import seconds
from common.trainer import Schedule, StepRanges, autocast, build_trainer, quiet
from papers.mixmatch.config import Config
from papers.mixmatch.data import Split, load_split, textures
from papers.mixmatch.method import Draws, as_probabilities, forward_batches, kernels, plain_loss, update_average
from papers.mixmatch.module import SemiSupervised, build_model, initial_model
from papers.mixmatch.reproduce import PAPER
from papers.mixmatch.stacked import Stack

MEMORY_FLOOR_MS = 0.33
"""Of a WRN-28-2 step on an H200: 1.6 GB moved at 4.8 TB/s (spec, section 11); its arithmetic takes about as long."""


def make_module(config: Config, split: Split, execution: Execution, seed: int = 0) -> SemiSupervised:
    """A module ready for `training_step`, without a Trainer around it."""
    with seeded(Stream(seed, "initialisation")):
        model = build_model(config, split.num_classes, split.labeled[0].shape[-1])
    module = SemiSupervised(model, config, split, seed, execution).to(execution.device)
    module.configure_optimizers()
    module.on_fit_start()
    return module


def digits_config(**changes: Any) -> Config:
    """The `quick` preset's settings of MixMatch on digits."""
    experiment = PAPER.preset("quick").experiment("digits-20")
    return replace(Config.of({**experiment.config, **experiment.methods["mixmatch"]}), **changes)


def example_split(unlabeled: int = 2000, test: int = 1000) -> Split:
    """CIFAR-shaped images: the content does not change the time."""
    images, labels = textures(250 + unlabeled, seed=1)
    return Split((images[:250], labels[:250]), images[250:], textures(test, seed=2), 10, 2 / 255)


class PlainImages:
    """Images as public ports hold them: float32 NCHW in NumPy, augmented one by one."""

    def __init__(self, images: np.ndarray, scale: float, crop: int):
        self.images = np.ascontiguousarray(images.astype(np.float32).transpose(0, 3, 1, 2) * np.float32(scale) - 1)
        self.crop = crop

    def view(self, index: int, flip: int, row: int, column: int) -> Tensor:
        """One image [C, H, W], mirrored, padded by reflection and cropped."""
        image = self.images[index]
        height, width = image.shape[1:]
        image = image[:, :, ::-1] if flip else image
        padded = np.pad(image, [(0, 0), (self.crop, self.crop), (self.crop, self.crop)], mode="reflect")
        return torch.from_numpy(padded[:, row : row + height, column : column + width].copy())

    def batch(self, index: Tensor, draws: Tensor) -> Tensor:
        """The images at index [n] augmented by draws [n, 8] (see `common.data.augment`): [n, C, H, W]."""
        columns = draws[:, :3].tolist()
        return torch.stack([self.view(i, *drawn) for i, drawn in zip(index.tolist(), columns, strict=True)])


class PlainStep:
    """A plain training step from the same weights and draws as a module that has not stepped yet."""

    def __init__(self, module: SemiSupervised):
        config, split = module.config, module.split
        self.module, self.config, self.device = module, config, module.device
        self.model = copy.deepcopy(module.model).to(memory_format=torch.contiguous_format).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.kernels = kernels(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.learning_rate)
        self.labels = torch.from_numpy(split.labeled[1])
        self.labeled = PlainImages(split.labeled[0], split.scale, config.reflect_crop)
        self.unlabeled = PlainImages(split.unlabeled, split.scale, config.reflect_crop)

    def batches(self, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Labelled images [B, C, H, W], their targets [B, L] and the views [K, B_u, C, H, W] of one step."""
        index, unlabeled_index = draws["index"].cpu(), draws["unlabeled_index"].cpu()
        x = self.labeled.batch(index, draws["augmentation"].cpu())
        views = [self.unlabeled.batch(unlabeled_index, drawn) for drawn in draws["unlabeled_augmentation"].cpu()]
        targets = as_probabilities(self.labels[index], torch.empty(self.module.split.num_classes))
        return x.to(self.device), targets.to(self.device), torch.stack(views).to(self.device)

    def step(self, draws: dict[str, Tensor]) -> float:
        """One step; its loss."""
        mix = Draws(draws["lam"], draws["permutation"])
        x, targets, views = self.batches(draws)
        loss = plain_loss(self.model, x, targets, views, draws["weight"], mix, self.config.temperature)
        self.optimizer.zero_grad()
        loss.total.backward()
        self.optimizer.step()
        average_one_by_one(self.average.parameters(), self.model.parameters(), self.config.ema_decay)
        with torch.no_grad():
            for weight in self.kernels:
                weight.mul_(1 - self.config.weight_decay * self.config.learning_rate)
        return float(loss.total.detach())

    def training_step(self, bounds: tuple[int, int]) -> float:
        """The steps range(*bounds), each with its own draws; the last one's loss."""
        loss = 0.0
        for step in range(*bounds):
            loss = self.step({name: tensor[0] for name, tensor in self.module.draw(range(step, step + 1)).items()})
        return loss


@torch.no_grad()
def average_one_by_one(averages: Iterable[Tensor], parameters: Iterable[Tensor], decay: float) -> None:
    """The averaged weights, tensor by tensor."""
    for average, parameter in zip(averages, parameters, strict=True):
        average.mul_(decay).add_(parameter * (1 - decay))


def largest_difference(first: Iterable[Tensor], second: Iterable[Tensor]) -> float:
    """Largest magnitude of the difference between corresponding tensors."""
    pairs = zip(first, second, strict=True)
    return max(float((a.detach().double() - b.detach().double()).abs().max()) for a, b in pairs)


class Counter:
    """Calls `training_step` with the next range of steps each time."""

    def __init__(self, training_step: Callable[[tuple[int, int]], object], steps: int = 1):
        self.training_step, self.steps, self.next = training_step, steps, 0

    def __call__(self) -> None:
        self.training_step((self.next, self.next + self.steps))
        self.next += self.steps


def step_difference(config: Config, split: Split, steps: int = 1) -> float:
    """Largest difference between fast and plain training steps of loss, weights, averages and BatchNorm's statistics.

    Computed on the CPU in double precision, on a quarter of the batch and half-way up the ramp. (In single precision
    the losses agree to 1e-6, but gradients only to 1e-3, because rounding decides on which side of a leaky ReLU's kink
    a few activations fall, and Adam's first step turns gradients that are nothing but rounding into whole moves.)
    """
    quarter = {"batch_size": config.batch_size // 4, "unlabeled_batch_size": config.unlabeled_batch_size // 4}
    module = make_module(replace(config, **quarter), split, Execution())
    plain = PlainStep(module)
    for model in (module.model, module.average, plain.model, plain.average):
        # Both paths make the same single-precision images; what the networks do with them is compared.
        model.double().register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    bounds = (config.ramp_steps // 2, config.ramp_steps // 2 + steps)
    loss, other = module.training_step(bounds)["loss"], plain.training_step(bounds)
    module.copy_statistics()
    for averaged, raw in zip(plain.average.buffers(), plain.model.buffers(), strict=True):
        averaged.copy_(raw)
    fast_state = [*module.model.state_dict().values(), *module.average.state_dict().values()]
    plain_state = [*plain.model.state_dict().values(), *plain.average.state_dict().values()]
    return max(abs(float(loss) - other), largest_difference(fast_state, plain_state))


def train_step(setting: Setting) -> Row:
    """A whole step of WRN-28-2 at batch 64 + 64, K = 2: draws, images, guesses, gradients, Adam, averages, decay."""
    size = 8 if setting.small else 64
    config = Config(model="wrn-10-1" if setting.small else "wrn-28-2", batch_size=size, unlabeled_batch_size=size)
    split, on_gpu = example_split(), setting.execution.device == "cuda"
    module = make_module(config, split, setting.execution)
    plain = PlainStep(module)
    per_call = 64 if on_gpu and not setting.small else 1
    return compare(
        setting,
        "train step",
        "ms",
        Counter(module.training_step, per_call),
        Counter(plain.training_step, per_call),
        step_difference(config, split),
        repeats=5 if on_gpu else 7,
        warm_up=2,
        per_call=per_call,
        floor=MEMORY_FLOOR_MS if on_gpu else None,
    )


def augmentation(setting: Setting) -> Row:
    """Two augmented views of 64 images: a gather from uint8, or NumPy image by image."""
    module = make_module(Config(model="wrn-10-1"), example_split(), replace(setting.execution, compile=False))
    draws = {name: tensor[0] for name, tensor in module.draw(range(1)).items()}
    images = PlainImages(module.split.unlabeled, module.split.scale, module.config.reflect_crop)
    index, drawn = draws["unlabeled_index"], draws["unlabeled_augmentation"]

    def fast() -> Tensor:
        return module.unlabeled.gather(index, module.augmentation, drawn)

    def plain() -> Tensor:
        return torch.cat([images.batch(index.cpu(), view) for view in drawn.cpu()]).to(module.device)

    return compare(
        setting,
        "augmentation",
        "us/view",
        fast,
        plain,
        largest_difference([fast()], [plain()]),
        repeats=50,
        per_call=len(index) * len(drawn),
    )


def draws(setting: Setting) -> Row:
    """All random numbers of a step, drawn for 64 steps at once or step by step."""
    module = make_module(Config(model="wrn-10-1"), example_split(), replace(setting.execution, compile=False))
    count = 64

    def plain() -> list[dict[str, Tensor]]:
        return [module.draw(range(step, step + 1)) for step in range(count)]

    together, single = module.draw(range(count)), plain()
    difference = max(
        largest_difference([together[name]], [torch.cat([drawn[name] for drawn in single])]) for name in together
    )
    return compare(
        setting, "draws", "us/step", lambda: module.draw(range(count)), plain, difference, repeats=20, per_call=count
    )


def ema_update(setting: Setting) -> Row:
    """The averaged weights of WRN-28-2: all tensors at once or one by one."""
    config = Config(model="wrn-28-2")
    parameters = [p.detach().to(setting.execution.device) for p in build_model(config, 10, 3).parameters()]
    fast, plain = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    update_average(fast, parameters, config.ema_decay)
    average_one_by_one(plain, parameters, config.ema_decay)
    return compare(
        setting,
        "EMA update",
        "us",
        lambda: update_average(fast, parameters, config.ema_decay),
        lambda: average_one_by_one(plain, parameters, config.ema_decay),
        largest_difference(fast, plain),
        repeats=30,
    )


def evaluation(setting: Setting) -> Row:
    """The error of WRN-28-2 on 1,000 images: channels_last from uint8, or NCHW batches of 64 from floats. A CPU is
    fastest at batches of about 100, whose activations its caches still hold."""
    count = 32 if setting.small else 1000
    execution = replace(setting.execution, compile=False)
    size = 100 if execution.device == "cpu" else 1000
    module = make_module(Config(model="wrn-28-2", evaluation_batch_size=size), example_split(64, count), execution)
    assert module.test is not None and module.split.test is not None
    test, labels = module.test, torch.from_numpy(module.split.test[1])
    model = copy.deepcopy(module.model).to(memory_format=torch.contiguous_format).eval()
    images = torch.from_numpy(PlainImages(module.split.test[0], module.split.scale, 0).images)

    @torch.no_grad()
    def fast() -> float:
        return module._error(module.model, test)

    @torch.no_grad()
    def plain() -> float:
        wrong = 0
        for batch, target in zip(images.split(64), labels.split(64), strict=True):
            wrong += int((model(batch.to(module.device)).argmax(1).cpu() != target).sum())
        return 100 * wrong / count

    return compare(setting, "evaluation", "us/image", fast, plain, abs(fast() - plain()), repeats=3, per_call=count)


class Clock(pl.Callback):
    """Times a fit between its first and last step, without the Trainer's start and end."""

    def on_train_start(self, *_: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds += time.perf_counter()


def digits_steps(setting: Setting) -> list[Row]:
    """The quick preset's small step within Lightning, 25 steps or one in a `training_step`; and what one batch of
    Lightning's costs beyond the steps in it, which 25 steps then share."""
    config, count = digits_config(), 4 if setting.small else 200
    split = load_split(config, 0, None)
    execution = Execution(threads=setting.execution.threads)

    def within(steps_per_call: int) -> tuple[float, SemiSupervised]:
        with seeded(Stream(0, "initialisation")):
            model = build_model(config, split.num_classes, split.labeled[0].shape[-1])
        module, clock = SemiSupervised(model, config, split, 0, execution), Clock()
        with quiet():
            schedule = Schedule(count, count, count, count, steps_per_call)
            build_trainer(execution, [clock]).fit(module, train_dataloaders=StepRanges(module, schedule))
        return clock.seconds, module

    def alone() -> float:
        module = make_module(config, split, execution)
        return sum(seconds(lambda step=step: module.training_step((step, step + 1))) for step in range(count))

    rounds = []
    for _ in range(1 if setting.small else 5):
        (many, first), (one, second) = within(25), within(1)
        rounds.append((many, one, alone()))
    many, one, bare = (statistics.median(times) / count for times in zip(*rounds, strict=True))
    difference = largest_difference(first.average.parameters(), second.average.parameters())
    return [
        row(setting, "digits step", "ms", many * 1e3, one * 1e3, equivalence=difference),
        row(setting, "Lightning, per batch", "ms", (one - bare) * 1e3),
    ]


def stack_and_members(
    config: Config, seeds: Sequence[int], execution: Execution, double: bool = False
) -> tuple[Stack, list[SemiSupervised]]:
    """A stack of runs, and the same runs alone, all ready for `training_step`."""
    splits = [load_split(config, seed, None) for seed in seeds]
    stack = Stack(config, splits, seeds, execution)
    members = [
        SemiSupervised(initial_model(config, split, seed), config, split, seed, execution)
        for split, seed in zip(splits, seeds, strict=True)
    ]
    for module in (stack, *members):
        if double:
            for model in (module.model, module.average):
                # The images are made in single precision; what the networks do with them is compared.
                model.double().register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        module.to(execution.device).configure_optimizers()
        module.on_fit_start()
    return stack, members


def stack_difference(stack: Stack, members: Sequence[SemiSupervised]) -> float:
    """Largest difference between members of a stack and the runs alone: weights, averages, BatchNorm's statistics."""
    differences = []
    for number, member in enumerate(members):
        for ours, theirs in ((stack.model, member.model), (stack.average, member.average)):
            expected = theirs.state_dict()
            found = ours.member(number)
            differences.append(largest_difference([found[name] for name in expected], expected.values()))
    return max(differences)


def stacked_steps(setting: Setting) -> Row:
    """The quick preset's step for several seeds, as a stack or one run after the other: time of a step of one run.

    The difference is that of 20 steps half-way up the ramp in double precision.
    """
    config, size = digits_config(), 2 if setting.small else 5
    steps, middle = (2, 20) if setting.small else (20, 200)
    exact, exact_members = stack_and_members(config, range(size), Execution(), double=True)
    for module in (exact, *exact_members):
        module.training_step((middle, middle + steps))
    stack, members = stack_and_members(config, range(size), Execution(threads=setting.execution.threads))
    together = Counter(stack.training_step, steps)
    alone = [Counter(member.training_step, steps) for member in members]
    return compare(
        setting,
        f"stack of {size}, digits step",
        "ms/run",
        together,
        lambda: [step() for step in alone],
        stack_difference(exact, exact_members),
        repeats=9,
        per_call=size * steps,
    )


def ghost_batch_norm(setting: Setting, small_images: bool) -> Row:
    """Gradients with the three mixed batches in one forward, or in a forward each. Which of them `forward_batches`
    takes on a CPU depends on the images' size; both sizes are measured."""
    device = setting.execution.device
    size = 4 if setting.small else 32 if small_images else 64
    config = digits_config() if small_images else Config(model="wrn-10-1" if setting.small else "wrn-28-2")
    shape = (1, 8, 8) if small_images else (3, 32, 32)
    with seeded(Stream(0, "ghost")):
        model = build_model(config, 10, shape[0]).to(device, memory_format=torch.channels_last)
        x, views = torch.randn(size, *shape), torch.randn(2 * size, *shape)
        mixed = torch.cat([x, views]).to(device, memory_format=torch.channels_last)
    sizes = [size] * 3

    def gradients(together: bool) -> list[Tensor]:
        with autocast(setting.execution):
            logits = forward_batches(model, mixed, sizes, "none", together)
        return list(torch.autograd.grad(logits.float().square().mean(), list(model.parameters())))

    difference = largest_difference(gradients(True), gradients(False))
    return compare(
        setting,
        f"ghost BatchNorm, {shape[1]}x{shape[2]}",
        "ms",
        lambda: gradients(True),
        lambda: gradients(False),
        difference,
        repeats=50 if small_images else 4,
    )


def rows(setting: Setting) -> Iterator[Row]:
    """Every case of the benchmark, cheap ones first."""
    on_cpu = setting.execution.device == "cpu"
    yield draws(setting)
    yield augmentation(setting)
    yield ema_update(setting)
    if on_cpu and setting.execution.threads == 1:
        yield from digits_steps(setting)
        yield stacked_steps(setting)
    yield ghost_batch_norm(setting, small_images=True)
    yield ghost_batch_norm(setting, small_images=False)
    yield evaluation(setting)
    yield train_step(setting)
