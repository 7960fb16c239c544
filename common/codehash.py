"""A hash of the code that a run function can reach, taken from syntax trees without importing anything.

Comments, blank lines and docstrings do not count; a change of any statement in any `common` or `papers` module that
the function's module imports, directly or through others, does.
"""

import ast
import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("common", "papers")


def _canonical(node: object) -> str:
    """A text of a syntax tree that is the same under every supported Python (ast.dump's differs between versions)."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name not in ("kind", "type_comment"))
        return f"{type(node).__name__}({','.join(f'{n}={_canonical(v)}' for n, v in fields if v not in (None, []))})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return repr(node)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _file_of(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.AST, module: str, is_package: bool) -> set[str]:
    """Dotted names in the tree's import statements, wherever they stand; `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] in PACKAGES}


@functools.cache
def _parse(path: Path, module: str) -> tuple[str, frozenset[str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = _imports(tree, module, path.name == "__init__.py")
    digest = hashlib.sha256(_canonical(_without_docstrings(tree)).encode()).hexdigest()
    return digest, frozenset(imports)


def reached_modules(module: str, root: Path = ROOT) -> dict[str, str]:
    """Each `common`/`papers` module that `module` reaches through import statements, itself too, with its own hash."""
    found: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        # Importing a.b.c also executes the packages a and a.b.
        todo.extend(parent for parent in [name.rpartition(".")[0]] if parent and parent not in found)
        path = _file_of(name, root)
        if path is None or name in found:
            continue
        found[name], imports = _parse(path, name)
        todo.extend(imports - found.keys())
    return found


def code_hash(function: str, root: Path = ROOT) -> str:
    """The code hash (16 hex digits) of a function named as text, `package.module:name`."""
    module = function.partition(":")[0]
    parts = [f"{name} {digest}" for name, digest in sorted(reached_modules(module, root).items())]
    return hashlib.sha256("\n".join([function, *parts]).encode()).hexdigest()[:16]
