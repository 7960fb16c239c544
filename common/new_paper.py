"""`python -m papers new-paper NAME`: the folders of a new paper, which run their `smoke` as they are.

What is written stands in `templates/new_paper/`: `paper/` becomes `papers/NAME/`, `tests/` becomes `tests/NAME/`. Each
file's name loses its `.tmpl` (they are no Python before the name is put in), and `$name` and `$title` are filled in.
"""

import keyword
import re
import shutil
import tempfile
from pathlib import Path
from string import Template

from common.codehash import ROOT
from common.errors import UserError

TEMPLATES = Path(__file__).resolve().parent / "templates" / "new_paper"
FOLDERS = {"paper": "papers", "tests": "tests"}
LONGEST = 40
"""Characters of a name: with a longer one, lines of the written code would not keep the house's length."""
RESERVED = ("common", "papers", "tests")


def check_name(name: str, root: Path = ROOT) -> None:
    """UserError where a paper cannot be called so, or something is called so already."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"'{name}' cannot be a paper's name: it is a Python package, so take lower-case letters a-z, digits and _, "
            "a letter first, such as NAME=demo"
        )
    if len(name) > LONGEST:
        raise UserError(
            f"a paper's name has at most {LONGEST} characters, '{name}' has {len(name)}: take a shorter one"
        )
    if keyword.iskeyword(name) or name in RESERVED:
        kind = "a keyword of Python" if keyword.iskeyword(name) else "what another folder of the repository is called"
        raise UserError(f"'{name}' cannot be a paper's name, it is {kind}: take another one")
    for place in (root / "papers" / name, root / "tests" / name, root / "tests" / f"{name}.py"):
        if place.exists():
            raise UserError(f"{place.relative_to(root)} is there already: take another name, or remove it first")


def write_paper(name: str, root: Path = ROOT) -> list[Path]:
    """Write `papers/<name>/` and `tests/<name>/` below root and enter the paper in its README; the files, in order.

    All or nothing: the folders are written beside their places and renamed, and what stands is taken back when a later
    part fails. UserError for a bad name and for a README whose blocks are broken; OSError where nothing can be written.
    """
    from common.report import readme

    check_name(name, root)
    values = {"name": name, "title": name.replace("_", " ").capitalize()}
    targets = {root / folder / name: TEMPLATES / kind for kind, folder in FOLDERS.items()}
    placed: list[Path] = []
    with tempfile.TemporaryDirectory(prefix=".new-paper-", dir=root) as temporary:
        try:
            for number, (target, templates) in enumerate(targets.items()):
                written = Path(temporary) / str(number)
                written.mkdir()
                for template in templates.glob("*.tmpl"):
                    text = Template(template.read_text(encoding="utf-8")).substitute(values)
                    (written / template.stem).write_text(text, encoding="utf-8")
                target.parent.mkdir(exist_ok=True)
                written.rename(target)
                placed.append(target)
            readme.redraw(root / "README.md")
        except BaseException:
            for target in placed:
                shutil.rmtree(target)
            raise
    return sorted(file for target in targets for file in target.iterdir())


def new_paper(name: str | None, root: Path = ROOT) -> int:
    """The command: write the folders and print what comes next; the exit status."""
    if not name:
        raise UserError("what is the new paper's name? give NAME=, a Python package's name such as NAME=demo")
    for file in write_paper(name, root):
        print(f"wrote {file.relative_to(root)}")
    print(NEXT_STEPS.replace("NAME", name))
    return 0


NEXT_STEPS = """
It runs as it is, with an example in the place of the paper:
  make reproduce PAPER=NAME PRESET=smoke    every code path, in seconds
  make reproduce PAPER=NAME                 the `quick` preset: trains and judges
  make record PAPER=NAME                    writes papers/NAME/results/quick.json and the READMEs' tables;
                                            until then `make test` says that this file is missing
Then replace the example, in this order:
  method.py                  the paper's idea, equation by equation; its properties in tests/NAME/test_method.py
  config.py, module.py       its settings and its training
  claims.py                  what the paper says, with a rule for each preset; commit these before the runs they judge
  reproduce.py, README.md    data, methods, presets and their costs; the page around the generated tables"""
