"""Rules of the house that a machine can check."""

import subprocess
import sys

import pytest

from common import results
from common.codehash import ROOT, reached_modules
from common.command import load_paper, paper_names
from common.report import readme
from common.reproduce import read_bench
from common.schemas import dump_json

COMMON = sorted(path for path in (ROOT / "common").rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", COMMON, ids=module_name)
def test_common_never_imports_papers(path):
    assert not [name for name in reached_modules(module_name(path)) if name.split(".")[0] == "papers"]


@pytest.mark.parametrize("name", paper_names())
def test_no_paper_imports_another(name):
    for path in (ROOT / "papers" / name).rglob("*.py"):
        others = {found.split(".")[1] for found in reached_modules(module_name(path)) if found.startswith("papers.")}
        assert others <= {name, "__main__"}


@pytest.mark.parametrize("name", paper_names())
def test_a_paper_is_complete(name):
    folder = ROOT / "papers" / name
    for file in ("README.md", "method.py", "module.py", "reproduce.py", "results/quick.json"):
        assert (folder / file).exists(), file
    presets = [preset.name for preset in load_paper(name).presets]
    assert {"smoke", "quick", "gpu", "paper"} <= set(presets)


@pytest.mark.parametrize("name", paper_names())
def test_importing_a_paper_loads_no_torch(name):
    code = f"import sys, papers.{name}.reproduce; assert 'torch' not in sys.modules and 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("name", ["", *paper_names()])
def test_generated_tables_of_the_readmes_are_what_the_results_say(name):
    page = ROOT / "papers" / name / "README.md" if name else ROOT / "README.md"
    assert readme.check(page) == []


@pytest.mark.parametrize("name", paper_names())
def test_committed_verdicts_follow_from_the_committed_runs(name):
    paper = load_paper(name)
    files = [path for path in (paper.folder / "results").glob("*.json") if path.name != "bench.json"]
    for path in files:
        document = results.read(path)
        assert dump_json(results.rejudge(paper, document)) == dump_json(document), path.name
        assert all(row["seed"] >= 1000 for row in document["runs"])
    read_bench(paper.folder / "results" / "bench.json")
