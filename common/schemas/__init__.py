"""The two files that others read, `results.json` and `bench.json`: their JSON schemas and how to write them.

The schemas (JSON Schema 2020-12) lie beside this module and are an interface: a change that an old reader would not
understand raises `SCHEMA_VERSION`.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError

SCHEMA_VERSION = 1
LONGEST_REASON = 200

Kind = Literal["results", "bench"]


@functools.cache
def schema(kind: Kind) -> dict[str, Any]:
    """The JSON schema of `results.json` or `bench.json`."""
    text = Path(__file__).with_name(f"{kind}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def validate(document: Any, kind: Kind, name: str | None = None) -> None:
    """Check a parsed document; `name` is how the message calls it (default: `results.json` or `bench.json`).

    Raises UserError, in one line, for another schema version, a departure from the schema (the gravest one is named
    with its place), a number that JSON does not have, and a metric selected on the very split that it reports.
    """
    name = name or f"{kind}.json"
    version = document.get("schema_version") if isinstance(document, Mapping) else None
    if version != SCHEMA_VERSION:
        found = "no schema version" if version is None else f"schema version {version!r}"
        raise UserError(
            f"{name} has {found} where this code reads {SCHEMA_VERSION}: read it with the code that wrote it, "
            "or move it away and run the command again"
        )
    for place, reason in _faults(document, kind):
        reason = " ".join(reason.split())
        if len(reason) > LONGEST_REASON:
            reason = f"{reason[: LONGEST_REASON // 2]} ... {reason[-LONGEST_REASON // 2 :]}"
        raise UserError(f"{name} is not valid at {place}: {reason}: restore it, or run the command again")


def _faults(document: Any, kind: Kind) -> Iterator[tuple[str, str]]:
    import jsonschema  # type: ignore[import-untyped]  # here, because it is slow to import and a --help does not need it
    import jsonschema.exceptions  # type: ignore[import-untyped]

    validator = jsonschema.Draft202012Validator(schema(kind))
    worst = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if worst is not None:
        yield worst.json_path.removeprefix("$.").replace("$", "the top"), worst.message
    for place, number in _numbers(document):
        if not math.isfinite(number):
            yield place, f"{number} is not a number that JSON has"
    for metric, facts in document.get("metrics", {}).items():
        if facts["evaluation"] == f"best on {facts['split']}":
            yield f"metrics.{metric}", f"it is selected on {facts['split']}, the split that it reports"


def _numbers(node: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _numbers(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _numbers(value, f"{place}[{index}]")
    elif isinstance(node, float):
        yield place, node


def dump_json(document: Any) -> str:
    """JSON text that diffs well: keys in the order given, indented, floats with all their digits, a final newline.

    Raises ValueError for NaN and infinities, which JSON does not have.
    """
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
