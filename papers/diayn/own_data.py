"""The user's own environment, and the training of skills in it. The command is `train`; importing loads no torch.

Any environment that gymnasium knows by an id will do, if its observations and its actions are boxes of numbers: this
paper's own (`DIAYN/...`), MuJoCo's, or one that the user's module registers.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from math import log
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from common.curves import read_rows
from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Folder
from papers.diayn.config import Config

if TYPE_CHECKING:
    from papers.diayn.copies import Environments
    from papers.diayn.networks import Agent

SCHEMA_VERSION = 1
OWN_SETTINGS = ("module",)
"""What a run on an own environment has in its config besides `Config`: the module that registers the environment."""

MODEL = "model.json"

DEFAULTS: dict[str, Any] = {
    "copies": 16,
    "skills": 10,
    "width": 64,
    "learning_rate": 1e-3,
    "observation_scale": "running",
    "evaluation_rollouts": 4,
}
"""For a small environment on a laptop, instead of the paper's for HalfCheetah."""

DERIVED = ("buffer_size", "learning_starts", "evaluate_every", "checkpoint_every", "log_every", "steps_per_call")
"""What follows from steps and copies where it is not given: see `settings_of`."""

STEPS = 5000


@dataclass(frozen=True)
class ModelInfo:
    """What is known of the skills in a folder.

    env, module: the environment's id and the module that registers it ("" for none). skills: how many, K. accuracy: the
    share of states in which the classifier names the right skill. mutual_information: nats, at most log K.
    effective_skills: exp H[p(z)]. returns: mean return of the environment's own reward, of each skill. samples:
    environment steps. metrics: everything that was measured at the end.
    """

    env: str
    skills: int
    observation_size: int
    action_size: int
    config: Mapping[str, Any]
    module: str = ""
    accuracy: float | None = None
    mutual_information: float | None = None
    effective_skills: float | None = None
    returns: tuple[float, ...] = ()
    samples: int = 0
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def read_info(folder: Path) -> ModelInfo:
    """Of a training on an own environment its `model.json`, of a run of the experiments its `settings.json`.

    UserError where there is neither, the training has not finished, or the file is another version's or damaged.
    """
    path = folder / MODEL
    if not path.exists():
        if (folder / "run.json").exists() and read_json(folder / "run.json").get("status") != "finished":
            raise UserError(f"the training in {folder} has not finished: run the same train command again")
        path = folder / "settings.json"
        if not path.exists():
            raise UserError(f"{folder} holds no model: give the --out folder of papers.diayn.train")
    document = read_json(path)
    version = document.get("schema_version", SCHEMA_VERSION) if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, and this code reads {SCHEMA_VERSION}: use the code it was trained "
            "with, or train again"
        )
    if missing := {"observation_size", "action_size", "config"} - set(document):
        raise UserError(f"{path} is damaged (without {', '.join(sorted(missing))}): train again")
    settings = document["config"]
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no model: give the --out folder of papers.diayn.train")
    known = {entry.name for entry in fields(ModelInfo)}
    values = {name: value for name, value in document.items() if name in known}
    values.setdefault("env", settings.get("env", ""))
    values.setdefault("skills", settings.get("skills", 0))
    return ModelInfo(**{**values, "returns": tuple(values.get("returns", ()))})


def load_skills(folder: Path | str, device: str = "cpu", module: str = "") -> tuple["Agent", ModelInfo]:
    """The frozen skills of a folder, without gradients, and what is known of them; imports the module that registers
    their environment, or `module` in its place. Also of a run of the experiments.

    UserError in one line for a folder without a model and for missing or damaged files.
    """
    from safetensors import SafetensorError

    from papers.diayn.networks import SETTINGS, WEIGHTS, load_agent

    folder = Path(folder)
    info = read_info(folder)
    for name in (WEIGHTS, SETTINGS):
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}: train again")
    try:
        agent = load_agent(folder)[0]
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = " ".join(str(error).split())[:100]
        raise UserError(f"the weights in {folder} are damaged or not of this model ({cause}): train again") from None
    if agent.members > 1:
        raise UserError(f"{folder} holds {agent.members} agents that learnt a task each, and no skills")
    if registering := module or info.module:
        import_module(registering)
    return agent.to(device), info


# ---------------------------------------------------------------- the environment


def import_module(name: str) -> None:
    """Import the module that registers an environment; UserError where there is none of that name.

    A mistake inside the module keeps its traceback.
    """
    if name.endswith(".py") or "/" in name:
        example = Path(name).stem
        raise UserError(f"--import {name}: give the module's name as Python's import does, such as {example}")
    try:
        found = find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        found = False
    if not found:
        raise UserError(f"--import {name}: there is no such module; run the command where {name}.py lies")
    importlib.import_module(name)


def environments_of(config: Config, seed: int = 0, copies: int = 1) -> "Environments":
    """Copies of the environment on the processor.

    UserError for an id that nobody registered, for one that cannot be made without arguments or whose class is not
    where its entry point says, for one whose observations or actions are no boxes, and for one whose episodes never
    end.
    """
    import gymnasium

    from papers.diayn.environments import make_environments

    try:
        return make_environments(config, [seed], copies, "cpu")
    except (TypeError, AttributeError) as error:
        if all(frame.f_code is not gymnasium.make.__code__ for frame, _ in walk_tb(error.__traceback__)):
            # Made it was: the environment has a bug, whose traceback is of use.
            raise
        cause = " ".join(str(error).split())
        raise UserError(
            f"environment '{config.env}' cannot be made: {cause}; give gymnasium.register an entry_point that exists, "
            "and all arguments that it needs as kwargs (--debug shows the traceback)"
        ) from error


def fingerprint(config: Config, module: str) -> str:
    """Hash of the code that defines a user's environment and of how it is registered (32 hex digits), so that a changed
    environment is trained in anew. What it imports in turn does not count."""
    import inspect
    import sys

    import gymnasium

    total = hashlib.sha256(config.env.encode())
    spec = gymnasium.registry.get(config.env.rpartition(":")[2])
    sources = [sys.modules[module]] if module in sys.modules else []
    if spec is not None:
        total.update(json.dumps([spec.max_episode_steps, spec.kwargs], default=lambda x: type(x).__name__).encode())
        entry = spec.entry_point
        if isinstance(entry, str):
            sources.append(importlib.import_module(entry.partition(":")[0]))
        elif entry is not None:
            sources += filter(None, [inspect.getmodule(entry)])
    for source in sources:
        path = getattr(source, "__file__", None)
        if path and Path(path).exists():
            total.update(Path(path).read_bytes())
    return total.hexdigest()[:32]


def describe(environments: "Environments", config: Config) -> list[str]:
    """Environment and training in words, one line each."""
    total = config.steps * config.copies
    critics = "twin critics" if config.variant == "twin" else "a value network and a mixture policy"
    return [
        f"environment: {config.env}, {environments.observation_size} observations, {environments.action_size} actions, "
        f"episodes of up to {environments.horizon:,} steps",
        f"training: {config.skills} skills, {config.steps:,} steps of {config.copies} copies = {total:,} environment "
        f"steps, {critics} of width {config.width}",
    ]


# ---------------------------------------------------------------- settings


def settings_of(given: Mapping[str, Any], device: str = "cpu") -> Config:
    """All settings; what is not given, or None, follows from the others. ValueError as `Config`."""
    chosen = {name: value for name, value in given.items() if value is not None}
    steps = int(chosen.setdefault("steps", STEPS))
    copies = int(chosen.get("copies", DEFAULTS["copies"]))
    total = max(1, steps * copies)
    defaults = {
        **DEFAULTS,
        "buffer_size": min(1_000_000, max(total, copies)),
        "learning_starts": min(1000, total // 10),
        "evaluate_every": max(1, steps // 5),
        "checkpoint_every": max(1, min(5000, steps // 5)),
        "log_every": max(1, min(100, steps // 20)),
        "steps_per_call": 10 if device == "cpu" else 100,
    }
    return Config.of({**defaults, **chosen})


# ---------------------------------------------------------------- the run


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """The run function: learn skills in the environment; writes the weights, settings.json and model.json.

    config: `Config`'s settings, OWN_SETTINGS and the seed. The metrics are those of `module.run`.
    """
    plain = {name: value for name, value in config.items() if name not in OWN_SETTINGS}
    settings, seed, module = Config.of(plain), int(config["seed"]), str(config["module"])
    if module:
        import_module(module)
    environments = environments_of(settings, seed)
    print(*describe(environments, settings), sep="\n", flush=True)
    try:
        from papers.diayn import module as training

        metrics = training.run(plain, folder, needs)
    except MemoryError:
        raise UserError("the memory is not enough: lower --buffer_size, --batch_size or --width") from None
    except RuntimeError as error:
        on_gpu = type(error).__name__ == "OutOfMemoryError"
        if not on_gpu and "DefaultCPUAllocator" not in str(error):
            raise
        which = "GPU's memory" if on_gpu else "memory"
        raise UserError(f"the {which} is not enough: lower --buffer_size, --batch_size or --width") from None
    # What the progress display shows of a finished run comes first.
    first = ("accuracy", "mutual_information", "return_max")
    metrics = {**{name: metrics[name] for name in first if name in metrics}, **metrics}
    info = ModelInfo(
        env=settings.env,
        module=module,
        skills=settings.skills,
        observation_size=environments.observation_size,
        action_size=environments.action_size,
        config=asdict(settings),
        accuracy=metrics.get("accuracy"),
        mutual_information=metrics.get("mutual_information"),
        effective_skills=metrics.get("effective_skills"),
        returns=returns_of(folder.path, settings.skills),
        samples=settings.steps * settings.copies,
        seed=seed,
        metrics=metrics,
    )
    write_json(folder.path / MODEL, {"schema_version": info.schema_version, **asdict(info)})
    return metrics


def returns_of(folder: Path, skills: int) -> tuple[float, ...]:
    """The mean return of each skill at the last evaluation, as the curves have them; () where they do not."""
    last = {row["name"]: float(row["value"]) for row in read_rows(folder / "curves.csv")}
    names = [name for name in sorted(last) if name.startswith("return_skill_")]
    by_number = {int(name.removeprefix("return_skill_")): last[name] for name in names}
    return tuple(by_number[skill] for skill in range(skills)) if len(by_number) == skills else ()


def in_words(info: Mapping[str, Any]) -> list[str]:
    """What `model.json` says of the skills, one line each, with what to think of it."""
    skills, lines = info["skills"], []
    if info["accuracy"] is not None and info["mutual_information"] is not None:
        lines.append(
            f"told apart: the classifier names the skill in {100 * info['accuracy']:.0f} % of the states (chance "
            f"{100 / skills:.0f} %), mutual information {info['mutual_information']:.2f} of at most "
            f"{log(skills):.2f} nats"
        )
    if info["effective_skills"] is not None and info["config"]["prior"] == "learned":
        lines.append(f"effective skills: {info['effective_skills']:.1f} of {skills} (learned p(z))")
    if (returns := info["returns"]) and max(returns) > min(returns):
        best = max(range(skills), key=returns.__getitem__)
        lines.append(
            f"the environment's own reward, which training never saw: returns from {min(returns):.4g} to "
            f"{max(returns):.4g}, skill {best} highest"
        )
    return lines
