"""The files that others read: what the schemas admit, what they refuse, and how it is said."""

import copy
import json
import math

import pytest

from common.claims import Claim, Rule, judge_all, level
from common.errors import UserError
from common.schemas import SCHEMA_VERSION, dump_json, schema, validate


def make_run(seed=1000, **facts):
    return {
        "experiment": "digits", "method": "ours", "seed": seed, "status": "finished", "stale": False, "error": None,
        "metrics": {"error": 10.0 + seed % 3}, "seconds": 4.5, "samples_per_second": None, "stacked": 1,
        "resumed": [100], "key": "abc",
        "provenance": {
            "commit": "f00", "dirty": False, "code": "c0de", "data": {"digits": "1797"},
            "versions": {"torch": "2.13.0"}, "hardware": {"device": "cpu", "cores": 2},
        },
        **facts,
    }  # fmt: skip


@pytest.fixture
def results():
    rule = Rule(
        quantity=level("digits", "ours", "error", "percent"),
        better="lower",
        gate=20.0,
        null=20.0,
        seeds=3,
        data="digits",
    )
    same = Rule(quantity=rule.quantity, better="lower", gate=(5.0, 30.0), null=None, seeds=3, data="digits")
    rules = {"C1": {"quick": rule}, "C2": {}, "C3": {"quick": same}}
    claims = [Claim(name, "a sentence", "Table 5", True, by_preset) for name, by_preset in rules.items()]
    runs = [make_run(1000), make_run(1001), make_run(1002)]
    runs.append(make_run(1003, status="failed", error="RuntimeError: no", metrics={}, seconds=None))
    metric = {
        "unit": "percent", "better": "lower", "split": "test", "evaluation": "last", "weights": "EMA", "examples": 500,
        "description": "share of test images given a wrong class",
    }  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION, "paper": "mixmatch", "title": "MixMatch", "preset": "quick",
        "provenance": {"commit": None, "dirty": None, "command": "python -m papers reproduce mixmatch", "versions": {}},
        "data": {"digits": "scikit-learn digits"}, "metrics": {"error": metric}, "runs": runs,
        "claims": judge_all(claims, "quick", runs),
    }  # fmt: skip


@pytest.fixture
def bench():
    row = {"case": "train step", "device": "cpu, 2 cores", "threads": 2, "unit": "s", "fast": 0.5, "plain": 1.2,
           "ratio": 2.4, "floor": None, "equivalence": 1e-6}  # fmt: skip
    lone = {**row, "case": "memory", "plain": None, "ratio": None, "equivalence": None}
    return {"schema_version": SCHEMA_VERSION, "paper": "mixmatch", "provenance": {}, "rows": [row, lone]}


def test_the_schemas_are_schemas():
    from jsonschema import Draft202012Validator

    for kind in ("results", "bench"):
        Draft202012Validator.check_schema(schema(kind))
        assert schema(kind)["properties"]["schema_version"] == {"const": SCHEMA_VERSION}


def test_what_the_code_writes_is_valid(results, bench):
    validate(results, "results")
    validate(bench, "bench")
    assert [claim["verdict"] for claim in results["claims"]] == ["held", "not run", "held"]
    for document in (results, bench):
        assert json.loads(dump_json(document)) == document


def test_every_kind_of_value_is_valid(results):
    values = [1, 1.5, {"mean": 1.0, "std": 0.0, "n": 3}, {"low": 2.0, "high": None}, {"low": None, "high": 2.0}]
    results["runs"] = [make_run(1000 + i, metrics={"error": value}) for i, value in enumerate(values)]
    validate(results, "results")
    for value in (None, "1", {"low": None, "high": None}, {"mean": 1.0, "std": -1.0, "n": 3}, {"mean": 1.0}, [1.0]):
        results["runs"] = [make_run(metrics={"error": value})]
        with pytest.raises(UserError, match=r"runs\[0\].metrics.error"):
            validate(results, "results")


def put(document, path, value):
    *way, last = path
    for step in way:
        document = document[step]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("extra",), 1, "extra"),
        (("runs", 0, "host"), "x", "host"),
        (("runs", 0, "seed"), -1, r"runs\[0\].seed"),
        (("runs", 0, "status"), "running", "status"),
        (("runs", 0, "error"), "odd", "error"),
        (("runs", 3, "error"), None, "error"),
        (("runs", 0, "seconds"), None, "seconds"),
        (("runs", 0, "stacked"), 0, "stacked"),
        (("runs", 0, "resumed"), [1.5], "resumed"),
        (("runs", 0, "seconds"), math.nan, r"runs\[0\].seconds: nan"),
        (("runs", 0, "metrics", "error"), math.inf, "inf"),
        (("claims", 0, "verdict"), "won", "verdict"),
        (("claims", 0, "verdict"), "reproduced", "paper_value"),
        (("claims", 0, "measured"), None, "measured"),
        (("claims", 0, "gate"), [1.0], "gate"),
        (("claims", 1, "verdict"), "failed", r"claims\[1\]"),
        (("metrics", "error", "better"), "up", "better"),
        (("metrics", "error", "evaluation"), "best on test", "selected on test"),
        (("provenance", "command"), "python -m papers --out /home/x", "command"),
        (("runs",), {}, "runs"),
    ],
)
def test_departures_are_named_in_one_line(results, path, value, message):
    put(results, path, value)
    with pytest.raises(UserError, match=message) as error:
        validate(results, "results", "quick.json")
    assert str(error.value).startswith("quick.json is not valid at ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_every_field_is_required(results, bench):
    for document, kind, places in (
        (
            results,
            "results",
            [(), ("runs", 0), ("runs", 0, "provenance"), ("claims", 0), ("metrics", "error"), ("provenance",)],
        ),
        (bench, "bench", [(), ("rows", 0)]),
    ):
        for place in places:
            node = document
            for step in place:
                node = node[step]
            for name in node:
                broken = copy.deepcopy(document)
                target = broken
                for step in place:
                    target = target[step]
                del target[name]
                with pytest.raises(UserError, match=name.replace("schema_version", "schema version")):
                    validate(broken, kind)


@pytest.mark.parametrize(
    ("field", "value"),
    [("device", "tpu"), ("ratio", None), ("threads", 0), ("fast", None), ("equivalence", -1.0), ("note", "x")],
)
def test_bench_departures(bench, field, value):
    bench["rows"][0][field] = value
    with pytest.raises(UserError, match=r"bench.json is not valid at rows\[0\]"):
        validate(bench, "bench")


@pytest.mark.parametrize("document", [None, [], {}, {"schema_version": 2}, {"schema_version": "1"}])
def test_another_version_says_so(document):
    for kind in ("results", "bench"):
        with pytest.raises(UserError, match="schema version") as error:
            validate(document, kind)
        assert "\n" not in str(error.value)


def test_json_text():
    document = {"b": 0.1 + 0.2, "a": [1, None], "ä": True}
    text = dump_json(document)
    assert text == '{\n  "b": 0.30000000000000004,\n  "a": [\n    1,\n    null\n  ],\n  "ä": true\n}\n'
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="JSON"):
            dump_json({"x": number})
