"""What each skill does, as moving pictures, plots and numbers: `python -m papers.diayn.rollout --model FOLDER --out
FOLDER`.

For each skill a GIF of one episode and a plot of all its episodes; `skills.png` with all skills and `skills.json`, the
table from which a skill is selected (spec 3.6). `--imitate FILE.npy` names the skill that an expert's states look like.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from common.command import parse
from common.errors import UserError, main
from common.files import atomic_path, check_writable, write_json
from common.own_data import check_no_file
from papers.diayn.config import Config
from papers.diayn.own_data import ModelInfo, environments_of, load_skills

if TYPE_CHECKING:
    from papers.diayn.films import Episodes, Film
    from papers.diayn.networks import Agent

SCHEMA_VERSION = 1
EPISODES = 4
FORMATS = ("gif", "png")


def play(
    agent: "Agent", config: Config, skill: int, episodes: int, *, seed: int = 0, steps: int = 0, stochastic: bool = True
) -> "Episodes":
    """Episodes of one skill, at most `steps` long (0: the environment's limit), as a function of the seed.

    agent: of one member, on the processor.
    """
    import torch

    from papers.diayn import evaluation
    from papers.diayn.environments import make_environments
    from papers.diayn.films import Episodes

    stream = f"rollout/{skill}"
    environments = make_environments(config, [seed], episodes, "cpu", stream=stream)
    length = min(steps, environments.horizon) if steps else environments.horizon
    noise = evaluation.action_noise(agent, [seed], f"{stream}/action", episodes, "cpu") if stochastic else None
    played = evaluation.rollout(agent, environments, torch.full((1, episodes), skill), length, noise)
    observation, alive = played.observation[:, 0], played.alive[:, 0]
    # The states that the classifier was trained on: s_0 .. s_{T-1}, or s_1 .. s_T.
    states = (observation[1:] if config.classifier_input == "next" else observation[:-1])[alive]
    log_q = agent.log_q(states[None])[0]
    return Episodes(
        skill,
        observation.transpose(0, 1).numpy(),
        alive.sum(0).numpy(),
        played.reward[:, 0].sum(0).numpy(),
        played.terminated[0].numpy(),
        log_q[:, skill].mean().item(),
        (log_q.argmax(-1) == skill).float().mean().item(),
    )


def imitate(agent: "Agent", states: np.ndarray) -> tuple[int, np.ndarray]:
    """The skill that an expert's states [T, Do] look most like, argmax_z sum_t log q(z|s_t), and the posterior [K]
    (spec 3.6)."""
    import torch

    from papers.diayn.method import imitation_scores

    log_q = agent.log_q(torch.from_numpy(states)[None])[0]
    sums, posterior = imitation_scores(log_q)
    return int(sums.argmax()), posterior.numpy()


def read_states(path: Path, size: int) -> np.ndarray:
    """An expert's states, float32 [T, size], of an .npy file; UserError for anything else."""
    if not path.is_file():
        raise UserError(f"--imitate {path}: there is no such file")
    try:
        states = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, BadZipFile):  # a file that begins with PK is read as a zip
        raise UserError(f"--imitate {path} is no .npy file of numbers: write one with numpy.save") from None
    if not isinstance(states, np.ndarray) or states.dtype.kind not in "fiu" or states.ndim != 2 or not len(states):
        raise UserError(f"--imitate {path}: give an array of numbers [T, {size}], one row for each state")
    if states.shape[1] != size:
        raise UserError(f"--imitate {path}: its states have {states.shape[1]} numbers, and the model's {size}")
    if not np.isfinite(states).all():
        raise UserError(f"--imitate {path} holds numbers that are not finite")
    return states.astype(np.float32)


# ---------------------------------------------------------------- the command


def build_parser() -> Any:
    """The command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m papers.diayn.rollout",
        description="Show what each skill does: a GIF and a plot of each, and a table to select one from.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--model", default=None, type=str | None, help="the --out folder of the training (required)")
    add(
        "--out", default=None, type=str | None, help="folder for pictures and skills.json (required but with --imitate)"
    )
    add("--skills", default="", type=str, help="which, e.g. 0,3; default all")
    add("--episodes", default=EPISODES, type=int, help="of each skill, plotted and counted; a film is of one more")
    add("--deterministic", action="store_true", help="the policy's mean instead of a draw from it")
    add("--seed", default=0, type=int, help="of starts and actions")
    add("--steps", default=0, type=int, help="after which an episode is cut; 0 for the environment's limit")
    add("--env", default=None, type=str | None, help="another environment with the same observations and actions")
    add("--import", default="", type=str, help="module that registers the environment, in place of the training's")
    add("--format", default="gif", help="a moving GIF, or a PNG with key frames (gif, png)")
    add(
        "--fps", default=None, type=int | None, help="pictures a second of a GIF; default as fast as the environment is"
    )
    add(
        "--imitate", default=None, type=str | None, help=".npy file with an expert's states [T, Do]: which skill is it?"
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _check(parsed: Any) -> None:
    """Everything that can be said of the arguments alone."""
    if not parsed.model:
        raise UserError("--model is missing: give --model FOLDER --out FOLDER; --help explains them")
    if not parsed.out and not parsed.imitate:
        raise UserError("--out is missing: give --model FOLDER --out FOLDER; --help explains them")
    if parsed.format not in FORMATS:
        raise UserError(f"no format '{parsed.format}'; there is {', '.join(FORMATS)}")
    for name, least in (("episodes", 1), ("steps", 0), ("fps", 1)):
        if parsed[name] is not None and parsed[name] < least:
            raise UserError(f"--{name} must be at least {least}, not {parsed[name]}")
    if parsed.out:
        out = Path(parsed.out)
        check_no_file(out)
        check_writable(out)


def _skills(text: str, count: int) -> list[int]:
    try:
        skills = [int(number) for number in text.replace(" ", "").split(",") if number]
    except ValueError:
        raise UserError(f"--skills {text}: give numbers with commas, such as 0,3") from None
    if wrong := [skill for skill in skills if not 0 <= skill < count]:
        raise UserError(f"no skill {wrong[0]}: the model has skills 0 to {count - 1}")
    return list(dict.fromkeys(skills)) or list(range(count))


def _config(agent: "Agent", info: ModelInfo, env: str | None) -> Config:
    """The settings with which the environment is made; UserError where it is not one that the skills can act in."""
    from dataclasses import replace

    config = replace(agent.config, env=env or info.env, tasks="own", observe_goal=False)
    found = environments_of(config)
    for what, has, wants in (
        ("observations", found.observation_size, agent.observation_size),
        ("actions", found.action_size, agent.action_size),
    ):
        if has != wants:
            raise UserError(
                f"{config.env} has {has} {what}, and the model is of an environment with {wants}: give --env"
            )
    return config


def row(shown: "Episodes") -> dict[str, Any]:
    """One skill in `skills.json`."""
    return {
        "skill": shown.skill,
        "return_mean": float(shown.returns.mean()),
        "return_std": float(shown.returns.std()),
        "length_mean": float(shown.lengths.mean()),
        "terminated": int(shown.terminated.sum()),
        "log_q": shown.log_q,
        "accuracy": shown.accuracy,
    }


def select(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the skill with the highest mean return (spec 3.6); None where there is nothing to choose from."""
    returns = [each["return_mean"] for each in rows]
    return rows[returns.index(max(returns))] if max(returns) > min(returns) else None


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as lines for the terminal, the highest return first."""
    lines = ["skill     return  +-          length  log q(z|s)"]
    for each in sorted(rows, key=lambda one: -one["return_mean"]):
        lines.append(
            f"{each['skill']:5d} {each['return_mean']:10.4g}  {each['return_std']:<10.3g} {each['length_mean']:7.4g}"
            f"  {each['log_q']:10.3f}"
        )
    return lines


def write_all(
    agent: "Agent", config: Config, skills: Sequence[int], out: Path, parsed: Any
) -> tuple[list[dict[str, Any]], str]:
    """Play, film, draw and write everything: the rows of the table, and why there are no films ("" where there are)."""
    from papers.diayn import films

    environments, shown = environments_of(config), []
    how = {"seed": parsed.seed, "steps": parsed.steps, "stochastic": not parsed.deterministic}
    with films.open_camera(config, parsed.fps) as camera:
        for skill in skills:
            shown.append(play(agent, config, skill, parsed.episodes, **how))
            film = camera.film(agent, skill, **how)
            if film is not None:
                _write_film(out, skill, film, parsed.format)
    for number, skill in enumerate(skills):
        films.plot_skill(number, shown, config, environments, out / f"skill-{skill:02d}-plot.png")
    films.plot_overview(shown, config, environments, out / "skills.png")
    return [row(each) for each in shown], camera.reason


def _write_film(out: Path, skill: int, film: "Film", form: str) -> None:
    name = f"skill-{skill:02d}.gif" if form == "gif" else f"skill-{skill:02d}-frames.png"
    with atomic_path(out / name) as temporary:
        film.save_gif(temporary) if form == "gif" else film.save_key_frames(temporary)


def command(arguments: Sequence[str] | None = None) -> int:
    """The whole command; the exit status. UserError for everything the user can mend."""
    parsed = parse(build_parser(), arguments)
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        # MuJoCo asks when it is imported, and would otherwise look for a screen.
        os.environ.setdefault("MUJOCO_GL", "egl")
    _check(parsed)
    agent, info = load_skills(parsed.model, module=parsed["import"])
    chosen = _skills(parsed.skills, agent.config.skills)
    if parsed.imitate:
        best, posterior = imitate(agent, read_states(Path(parsed.imitate), agent.observation_size))
        others = ", ".join(f"{skill} {posterior[skill]:.3f}" for skill in np.argsort(-posterior, kind="stable")[1:4])
        print(f"imitation: skill {best}, posterior {posterior[best]:.3f} (next: {others})")
        if not parsed.skills:
            chosen = [best]
    if not parsed.out:
        return 0
    config, out = _config(agent, info, parsed.env), Path(parsed.out)
    rows, reason = write_all(agent, config, chosen, out, parsed)
    best_row = select(rows)
    write_json(
        out / "skills.json",
        {
            "schema_version": SCHEMA_VERSION,
            "env": config.env,
            "episodes": parsed.episodes,
            "deterministic": parsed.deterministic,
            "seed": parsed.seed,
            "best": best_row["skill"] if best_row else None,
            "skills": rows,
        },
    )
    if reason:
        print(f"no films, only plots: {reason}")
    print(*table(rows), sep="\n")
    if best_row:
        print(
            f"skill selection: skill {best_row['skill']} has the highest return, {best_row['return_mean']:.4g} "
            f"(mean of {parsed.episodes} episodes)"
        )
    elif len(rows) > 1:
        print(f"skill selection: every skill has the return {rows[0]['return_mean']:.4g}, so none is better")
    print(f"written: {out / 'skills.png'}, {out / 'skills.json'} and pictures of {len(rows)} skills")
    return 0


if __name__ == "__main__":
    main(command)
