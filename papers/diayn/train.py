"""Skills without a reward in your own environment: `python -m papers.diayn.train --env ID --out FOLDER`.

What the environment may be is described in `own_data`; `papers.diayn.rollout` shows the skills. The same command
resumes what was interrupted and repeats nothing that is finished; another environment, other settings or code move the
old output folder aside and start anew. As a library:

    info = learn("DIAYN/Box-v0", "skills", skills=6, steps=4000)
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from common.command import parse
from common.errors import UserError, main
from common.own_data import PLAIN, check_out, execution_of, finish, options_of
from common.runs import Data, Execution, RunSpec
from papers.diayn.config import CHOICES, Config
from papers.diayn.own_data import (
    DEFAULTS,
    DERIVED,
    STEPS,
    environments_of,
    fingerprint,
    import_module,
    in_words,
    settings_of,
)

HELP = {
    "copies": "of the environment, side by side; a step acts once in each",
    "horizon": "steps after which an episode is cut, which is no termination; 0 for the environment's own limit",
    "positions": "MuJoCo's robots observe where they are (x, of some y too), so that skills may differ in that",
    "observation_scale": "observations as they are, by their declared range, or by their running mean and deviation; "
    "matters where their sizes differ (the paper has none)",
    "skills": "how many, K; few for a small environment (paper: 50)",
    "prior": "p(z) fixed and uniform, or learned (VIC), which uses fewer and fewer skills",
    "subtract_prior": "subtract log p(z) in the reward; false makes every reward negative, so that skills end episodes",
    "classifier_input": "which state of a transition the classifier reads: s or s'",
    "features": "numbers of the observations that the classifier reads, e.g. 0,1: skills then differ in these only",
    "classifier_updates": "steps of the classifier for one of the policy",
    "skill_change": "a new skill for each episode (paper) or each epoch_steps (its code)",
    "epoch_steps": "environment steps of an epoch, for skill_change epoch",
    "variant": "twin critics (today's soft actor-critic) or the paper's value network and mixture",
    "components": "Gaussians of the paper's mixture (v2018)",
    "alpha": "weight of the entropy: less, and skills are sharp and far apart; more, and they cover more and overlap",
    "width": "of both hidden layers (paper: 300)",
    "learning_rate": "Adam's, of all networks (paper: 0.0003)",
    "discount": "of the reward, a step",
    "tau": "share of the critics that their slow copies take over in an update",
    "batch_size": "transitions of an update",
    "updates": "in each step; as many as copies is the paper's one per environment step, and as many times slower",
    "buffer_size": "transitions kept; default all, at most a million; a checkpoint holds them",
    "learning_starts": "transitions before the first update; default a tenth of all, at most 1,000",
    "steps": "to train; environment steps are copies times as many",
    "evaluate_every": "steps between two evaluations of all skills; default a fifth of the steps",
    "evaluation_rollouts": "episodes of each skill in an evaluation",
    "evaluation_horizon": "steps of such an episode; 0 for horizon; fewer save time where episodes are long",
    "checkpoint_every": "steps between two checkpoints; default a fifth of the steps, at most 5,000",
    "log_every": "steps between two measurements of the losses; default a 20th of the steps, at most 100",
    "steps_per_call": "steps between two looks at Ctrl-C; default 10, on a GPU 100",
    "cuda_graph": "on a GPU, replay an update as one graph",
}
FLAGS = [setting for setting in fields(Config) if setting.name in HELP]
"""The settings of `Config` but those of the experiments on tasks, whose goals skills do not see."""

ADVICE = "lower --learning_rate (it was {:g}), or give --observation_scale running"


def build_parser() -> Any:
    """The command line: the settings of `Config` by name, and where and how to train."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m papers.diayn.train",
        description="Learn skills without a reward in any gymnasium environment with Box observations and actions.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--env", default=None, type=str | None, help="the environment's id, e.g. DIAYN/Box-v0 or Hopper-v5 (required)")
    add("--out", default=None, type=str | None, help="folder for the skills (required)")
    add("--import", default="", type=str, help="module that registers the environment, e.g. my_env for my_env.py here")
    add("--config", action="config", help="YAML file with any of these settings")
    add("--seed", default=0, type=int, help="of initialisation, starts, actions and batches")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--deterministic", action="store_true", help="torch's deterministic algorithms")
    add(
        "--threads", default=1, type=int, help="of the processor; more help networks of width 300, or slow environments"
    )
    add("--time_limit", default=None, type=float | None, help="seconds after which to stop, resumable")
    add("--tensorboard", action="store_true", help="write TensorBoard files too")
    add("--debug", action="store_true", help="show the traceback of an error")
    for setting in FLAGS:
        name = setting.name
        about = HELP[name] + (f" ({', '.join(CHOICES[name])})" if name in CHOICES else "")
        kind: Any = str if name == "features" else setting.type
        if name in DERIVED:
            add(f"--{name}", default=None, type=kind | None, help=about)
        else:
            default = {**DEFAULTS, "steps": STEPS, "features": ""}.get(name, setting.default)
            add(f"--{name}", default=default, type=kind, help=about)
    return parser


def _features(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.replace(" ", "").split(",") if number)
    except ValueError:
        raise UserError(f"--features {text}: give numbers of observations with commas, such as 0,1") from None


def make_spec(
    settings: Config, out: Path, seed: int, module: str, execution: Execution, tensorboard: bool = False
) -> RunSpec:
    """The run as `common.runs` knows it."""
    return RunSpec(
        paper="diayn",
        preset="own-data",
        experiment="own-data",
        method="diayn" if settings.prior == "fixed" else "vic",
        seed=seed,
        function="papers.diayn.own_data:run",
        config={**asdict(settings), "features": list(settings.features), "module": module},
        folder=out.resolve(),
        execution=execution,
        data=(Data("environment", settings.env, fingerprint(settings, module)),),
        tensorboard=tensorboard,
    )


def learn(
    env: str,
    out: Path | str,
    *,
    module: str = "",
    seed: int = 0,
    device: str = "auto",
    threads: int = 1,
    deterministic: bool = False,
    time_limit: float | None = None,
    tensorboard: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> dict[str, Any] | int:
    """Learn skills in an environment, as the command does; resumes what the folder `out` holds of the same training.

    env: a gymnasium id, which `module` registers when imported (or the caller has). settings: any of FLAGS.
    Returns what `out/model.json` says (`own_data.ModelInfo`), or of a training that was stopped (Ctrl-C, time_limit) an
    exit status. UserError for everything the user can mend.
    """
    out, console = Path(out), console or Console()
    known = [setting.name for setting in FLAGS]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"skills have no setting '{unknown[0]}'; there is {', '.join(known)}")
    asked = SimpleNamespace(
        device=device,
        precision="float32",
        compile="auto",
        deterministic=deterministic,
        time_limit=time_limit,
        threads=threads,
    )
    if threads < 1:
        raise UserError(f"--threads must be at least 1, not {threads}")
    options_of(asked).check()
    check_out(out)
    if module:
        import_module(module)
    execution = execution_of(asked)
    try:
        chosen = settings_of({**settings, "env": env}, execution.device)
    except ValueError as error:
        raise UserError(str(error)) from None
    for name, least in (("skills", 2), ("steps", 1), ("updates", 1)):
        if getattr(chosen, name) < least:
            raise UserError(f"--{name} must be at least {least}, not {getattr(chosen, name)}")
    if chosen.learning_starts > (total := chosen.steps * chosen.copies):
        raise UserError(f"--learning_starts {chosen.learning_starts} is more than all {total} transitions: lower it")
    found = environments_of(chosen, seed)
    size = found.observation_size
    if chosen.observation_scale == "range" and found.half_range is None:
        raise UserError(f"{env} declares no range of its observations: give --observation_scale running or none")
    if wrong := [feature for feature in chosen.features if not 0 <= feature < size]:
        raise UserError(f"--features {wrong[0]}: an observation of {env} has numbers 0 to {size - 1}")
    spec = make_spec(chosen, out, seed, module, execution, tensorboard)
    return finish(spec, time_limit, console, ADVICE.format(chosen.learning_rate))


def command(arguments: Sequence[str] | None = None) -> int:
    """The whole command; the exit status. UserError for everything the user can mend."""
    parsed, console = parse(build_parser(), arguments), Console()
    for name in ("env", "out"):
        if not parsed[name]:
            raise UserError(f"--{name} is missing: give --env ID --out FOLDER; --help explains them")
    given = {setting.name: parsed[setting.name] for setting in FLAGS}
    info = learn(
        parsed.env,
        parsed.out,
        module=parsed["import"],
        seed=parsed.seed,
        device=parsed.device,
        threads=parsed.threads,
        deterministic=parsed.deterministic,
        time_limit=parsed.time_limit,
        tensorboard=parsed.tensorboard,
        console=console,
        **{**given, "features": _features(parsed.features)},
    )
    if isinstance(info, int):
        return info
    out = Path(parsed.out)
    console.print(f"model: {out / 'weights.safetensors'}, {out / 'model.json'}", **PLAIN)
    console.print(*in_words(info), sep="\n", **PLAIN)
    console.print(f"next: python -m papers.diayn.rollout --model {out} --out FOLDER", **PLAIN)
    return 0


if __name__ == "__main__":
    main(command)
