"""The code hash: what changes it, what does not, and how far it reaches, without importing anything."""

import sys
from pathlib import Path

import pytest

from common import codehash
from common.codehash import code_hash, reached_modules

RUN = '''
"""A run function."""
from papers.p.method import step

RATE = 0.1

def run(config, folder, needs):
    """What it does."""
    return {"loss": step(RATE)}
'''


MODULE, METHOD, SHARED = "papers/p/module.py", "papers/p/method.py", "common/shared.py"


def tree(root: Path, changed: dict[str, str]) -> Path:
    """A small repository below root, some of its files changed."""
    contents = {
        "common/__init__.py": "",
        "common/shared.py": "def shared():\n    return 1\n",
        "common/deep/__init__.py": "from . import inner\n",
        "common/deep/inner.py": "VALUE = 1\n",
        "common/unused.py": "VALUE = 1\n",
        "papers/__init__.py": "",
        "papers/p/__init__.py": "",
        "papers/p/module.py": RUN,
        "papers/p/method.py": "from common.shared import shared\n\ndef step(rate):\n    return shared() * rate\n",
    }
    for name, text in (contents | changed).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def hashed(root: Path, changed: dict[str, str] | None = None, function: str = "papers.p.module:run") -> str:
    codehash._parse.cache_clear()
    return code_hash(function, tree(root, changed or {}))


@pytest.mark.parametrize(
    "text",
    [
        RUN.replace('"""A run function."""', '"""Another docstring,\n\nand a longer one."""'),
        RUN.replace('    """What it does."""\n', ""),
        RUN.replace("RATE = 0.1", "# Why 0.1\n\n\nRATE = 0.1  # because"),
        RUN.replace("RATE = 0.1", "RATE   =   (0.10)"),
        RUN.replace('{"loss": step(RATE)}', "{'loss': step(\n        RATE,\n    )}"),
    ],
    ids=["docstring", "no docstring", "comments and blank lines", "spelling", "layout"],
)
def test_what_does_not_change_it(tmp_path: Path, text: str) -> None:
    assert text != RUN
    assert hashed(tmp_path, {MODULE: text}) == hashed(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        RUN.replace("0.1", "0.2"),
        RUN.replace("0.1", "'0.1'"),
        RUN.replace("RATE = 0.1", "RATE = 0.1\nRATE"),
        RUN.replace("def run(config, folder, needs)", "def run(config, folder, needs=None)"),
        RUN.replace("def run", "async def run"),
        RUN.replace("step(RATE)", "-step(RATE)"),
        RUN.replace("step(RATE)", "step(rate=RATE)"),
        RUN.replace('"loss"', '"Loss"'),
        RUN.replace('    """What it does."""\n', '    "" or None\n'),
    ],
)
def test_every_statement_changes_it(tmp_path: Path, text: str) -> None:
    assert text != RUN
    assert hashed(tmp_path, {MODULE: text}) != hashed(tmp_path)


def test_another_function_of_the_module_has_another_hash(tmp_path: Path) -> None:
    assert hashed(tmp_path, function="papers.p.module:other") != hashed(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "from common.deep.inner import VALUE",
        "from common.deep import inner",
        "import common.deep.inner as inner",
        "from common import deep",
        "import common.deep",
        "def f():\n    from common.deep.inner import VALUE",
        "if False:\n    import common.deep",
        "class C:\n    def f(self):\n        import common.deep",
        "try:\n    import common.deep.inner\nexcept ImportError:\n    pass",
    ],
)
def test_it_reaches_what_is_imported_anywhere(tmp_path: Path, statement: str) -> None:
    method = f"from common.shared import shared\n{statement}\n"
    before = hashed(tmp_path, {METHOD: method})
    assert hashed(tmp_path, {METHOD: method, "common/deep/inner.py": "VALUE = 2\n"}) != before
    assert hashed(tmp_path, {METHOD: method, "common/deep/__init__.py": "X = 1\nfrom . import inner\n"}) != before
    assert hashed(tmp_path, {METHOD: method, SHARED: "def shared():\n    return 2\n"}) != before
    assert hashed(tmp_path, {METHOD: method, "common/unused.py": "VALUE = 2\n"}) == before


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        (METHOD, "from .other import X"),
        (METHOD, "from . import other"),
        (METHOD, "from ..p.other import X"),
        ("papers/p/__init__.py", "from .other import X"),
        ("papers/__init__.py", "from .p import other"),
    ],
)
def test_it_follows_relative_imports(tmp_path: Path, name: str, statement: str) -> None:
    files = {name: statement, "papers/p/other.py": "X = 1"}
    before = hashed(tmp_path, files)
    assert "papers.p.other" in reached_modules("papers.p.module", tmp_path)
    assert hashed(tmp_path, files | {"papers/p/other.py": "X = 2"}) != before


def test_packages_on_the_way_belong_to_it_and_other_libraries_do_not(tmp_path: Path) -> None:
    module = "import torch\nimport numpy.linalg\nfrom commonplace import x\nfrom papers.p.method import step\n"
    codehash._parse.cache_clear()
    reached = reached_modules("papers.p.module", tree(tmp_path, {MODULE: module}))
    own = {"papers", "papers.p", "papers.p.module", "papers.p.method"}
    assert set(reached) == own | {"common", "common.shared"}


def test_circular_imports_end(tmp_path: Path) -> None:
    circular = "import papers.p.module\ndef shared(): return 1\n"
    assert hashed(tmp_path, {SHARED: circular}) != hashed(tmp_path, {SHARED: "def shared(): return 1\n"})


def test_nothing_is_imported(tmp_path: Path) -> None:
    before = set(sys.modules)
    hashed(tmp_path, {METHOD: "raise SystemExit\n"})
    assert set(sys.modules) == before


def test_a_module_that_is_gone_changes_it(tmp_path: Path) -> None:
    before = hashed(tmp_path)
    (tmp_path / "papers/p/module.py").unlink()
    assert code_hash("papers.p.module:run", tmp_path) != before


def test_the_run_functions_here_are_found_by_their_files() -> None:
    reached = reached_modules("tests.toy")
    assert {"tests.toy", "common", "common.trainer", "common.random", "common.callbacks.bookkeeping"} <= set(reached)
    assert "common.report" not in reached
