"""The command lines: one for a paper, one front door for all papers. Light: torch is imported only to train."""

import importlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from common.codehash import ROOT
from common.errors import UserError
from common.paper import Paper
from common.reproduce import Options

HELP = {
    "preset": "scale: smoke, quick, cpu, gpu or paper, as the paper has them",
    "seeds": "a count (5 is 1000-1004) or a list (1000,1003); seeds below 1000 explore and are not judged",
    "methods": "comma list; default all",
    "experiments": "comma list; default all",
    "device": "auto, cpu, cuda or mps",
    "engine": "local (as many runs at once as cores or GPUs allow) or serial",
    "out": "folder for runs and reports",
    "precision": "auto, float32 or bfloat16",
    "compile": "torch.compile: auto (on a GPU), yes or no",
    "deterministic": "torch's deterministic algorithms",
    "time_limit": "seconds after which everything stops cleanly, resumable",
    "tensorboard": "write TensorBoard files too",
    "parallel": "runs at once, in slots of one thread or one GPU",
}
ACTIONS = {
    "list": "the papers, their presets and what these cost",
    "reproduce": "train, judge and report",
    "report": "judge and draw again from the run folders, without training",
    "record": "copy results into the paper's folder and redraw the README tables",
    "verify": "recompute every verdict and table from the committed results (all papers when none is named)",
    "bench": "measure speed against the plain path",
    "new-paper": "write the folder of a new paper, which runs its smoke preset as it is",
}


def paper_names() -> list[str]:
    """Papers by folder: whatever holds a `reproduce.py`."""
    return sorted(path.parent.name for path in (ROOT / "papers").glob("*/reproduce.py"))


def load_paper(name: str) -> Paper:
    """The PAPER of a paper's `reproduce.py`; UserError for a name without a folder."""
    if name not in paper_names():
        raise UserError(f"no paper '{name}'; there is {', '.join(paper_names()) or 'none'}")
    return importlib.import_module(f"papers.{name}.reproduce").PAPER


def _parser(prog: str, description: str) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    for field in fields(Options):
        default = field.default
        kind = {"time_limit": float, "parallel": int}.get(field.name, type(default) if default is not None else str)
        if kind is bool:
            parser.add_argument(f"--{field.name}", action="store_true", help=HELP[field.name])
        else:
            parser.add_argument(f"--{field.name}", type=kind, default=default, help=HELP[field.name])
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def parse(parser: Any, arguments: Sequence[str] | None) -> Any:
    """Parse a command line (the process's own when None); whatever is wrong with it is a UserError of one line."""
    import argparse

    try:
        return parser.parse_args(arguments)
    except (argparse.ArgumentError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from None


def _options(parsed: Any) -> Options:
    return Options(**{field.name: parsed[field.name] for field in fields(Options)})


def run_action(action: str, paper: Paper, options: Options) -> int:
    """Do one action for one paper; the exit status."""
    from rich.console import Console

    from common import reproduce

    console = Console()
    if action == "reproduce":
        return reproduce.reproduce(paper, options, console)
    if action == "report":
        reproduce.report(paper, paper.preset(options.preset), Path(options.out), console)
        return 0
    if action == "record":
        return reproduce.record(paper, options, console)
    if action == "verify":
        return reproduce.verify(paper, console)
    if paper.bench is None:
        raise UserError(f"{paper.name} has no benchmark")
    from common.bench import run_bench

    return run_bench(paper, options, console)


def list_papers() -> int:
    """Print every paper with its presets and their cost."""
    from rich.console import Console
    from rich.table import Table

    table = Table("paper", "preset", "cost", "what", box=None)
    for name in paper_names():
        paper = load_paper(name)
        for preset in paper.presets:
            table.add_row(name, preset.name, preset.cost, preset.description)
    console = Console()
    console.print(table, soft_wrap=not console.is_terminal)
    return 0


def paper_command(paper: Paper, arguments: Sequence[str] | None = None) -> int:
    """`python -m papers.<name>.reproduce`."""
    parser = _parser(f"python -m papers.{paper.name}.reproduce", f"Reproduce: {paper.title}")
    return run_action("reproduce", paper, _options(parse(parser, arguments)))


def front_door(arguments: Sequence[str] | None = None) -> int:
    """`python -m papers ACTION [PAPER] [options]`."""
    actions = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
    parser = _parser("python -m papers", f"Papers whose claims are executable. Actions - {actions}.")
    parser.add_argument("action", help=", ".join(ACTIONS))
    parser.add_argument("paper", nargs="?", default=None, help=f"{', '.join(paper_names())}; or the new paper's name")
    parsed = parse(parser, arguments)
    if parsed.action not in ACTIONS:
        raise UserError(f"no action '{parsed.action}'; there is {', '.join(ACTIONS)}")
    if parsed.action == "list":
        return list_papers()
    if parsed.action == "new-paper":
        from common.new_paper import new_paper

        return new_paper(parsed.paper, ROOT)
    if not parsed.paper:
        if parsed.action == "verify":
            return max((run_action("verify", load_paper(name), _options(parsed)) for name in paper_names()), default=0)
        raise UserError(f"which paper? give PAPER= one of {', '.join(paper_names())}")
    return run_action(parsed.action, load_paper(parsed.paper), _options(parsed))
