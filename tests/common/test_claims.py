"""Verdicts by hand-computed examples, by properties, and under the null.

The hand computations use the table of Student's t at 97.5 %: 12.706 (1 degree of freedom), 4.303 (2), 2.776 (4),
2.262 (9).
"""

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.claims import (
    Claim,
    Quantity,
    Rule,
    TrainGate,
    beyond,
    correlation,
    difference,
    expected_by_chance,
    judge,
    judge_all,
    judge_runs,
    level,
    measure,
    paper_gate,
    ratio,
    smallest_step,
    worst,
)
from common.schemas import dump_json
from common.statistics import enough_for, half_width, prediction_interval

OURS, BASE, THIRD = ("digits", "ours"), ("digits", "base"), ("digits", "third")
GAIN = difference(BASE, OURS, "error", "percent", claimed=[OURS])
ERROR = level("digits", "ours", "error", "percent")


def make_rule(quantity=GAIN, better="higher", gate=0.0, null=0.0, **facts):
    return Rule(
        **{"quantity": quantity, "better": better, "gate": gate, "null": null, "seeds": 5, "data": "d", **facts}
    )


def verdict(values, resampling="seed", **facts):
    rule = make_rule(resampling=resampling, **facts)
    return judge(rule, measure(values, resampling))


def row(run, seed, status="finished", stale=False, **metrics):
    return {"experiment": run[0], "method": run[1], "seed": seed, "status": status, "stale": stale, "metrics": metrics}


def pairs(gains, first=1000):
    """Rows of OURS and BASE whose errors differ by the gains."""
    return [
        row(run, first + i, error=error)
        for i, gain in enumerate(gains)
        for run, error in ((OURS, 10.0), (BASE, 10.0 + gain))
    ]


# --- measurement


def test_interval_by_hand():
    measured = measure([8.0, 10.0, 12.0])  # mean 10, s 2, half width 4.3027 * 2 / sqrt 3 = 4.968
    assert measured.mean == 10 and measured.std == 2 and measured.n == measured.attempted == 3
    assert (measured.low, measured.high) == pytest.approx((5.0317, 14.9683), abs=1e-4)
    two = measure([9.0, 11.0], attempted=4)  # s sqrt 2, half width 12.706
    assert (two.low, two.high, two.attempted) == (pytest.approx(-2.7062, abs=1e-4), pytest.approx(22.7062, abs=1e-4), 4)


def test_one_value_and_none_have_no_interval():
    assert measure([3.0]).as_row() == {"mean": 3.0, "low": None, "high": None, "n": 1, "attempted": 1}
    assert measure([], attempted=2).as_row() == {"mean": None, "low": None, "high": None, "n": 0, "attempted": 2}


def test_equal_values_have_no_spread_whatever_the_rounding():
    measured = measure([0.1] * 3)
    assert measured.std == 0 and measured.low == measured.mean == measured.high == 0.1
    assert verdict([0.1] * 3, gate=0.1, null=0.1).verdict == "inconclusive"


def test_summary_of_repeats_and_examples():
    for resampling in ("repeat", "example"):
        measured = measure([{"mean": 5.0, "std": 2.0, "n": 10}], resampling)  # 2.2622 * 2 / sqrt 10 = 1.4307
        assert (measured.low, measured.high) == pytest.approx((3.5693, 6.4307), abs=1e-4)
        assert (measured.n, measured.attempted) == (10, 10)
        assert measure([5.0], resampling).n == 1
    assert measure([{"mean": 5.0, "std": 2.0, "n": 10}, 7.0]).mean == 6  # between seeds only the means count


def test_exact():
    assert measure([0.25, 0.25], "exact").as_row() == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 1, "attempted": 1}
    assert verdict([0.25], "exact", gate=0.2, null=0.2).verdict == "held"
    assert verdict([0.15], "exact", gate=0.2, null=0.2).verdict == "failed"
    assert verdict([0.3, 0.4], "exact", gate=(0.2, 0.5), null=None).verdict == "held"
    assert "differs between seeds" in verdict([0.1, 0.4], "exact", gate=0.2, null=0.2).note


def test_numbers_that_are_not_finite_are_refused():
    for value in (math.nan, math.inf, {"low": math.nan, "high": None}, {"mean": math.inf, "std": 1.0, "n": 5}):
        with pytest.raises(ValueError, match="finite"):
            measure([value])


# --- verdicts by hand; s = 2 and n = 3 give a half width of 4.968


@pytest.mark.parametrize(
    ("values", "gate", "null", "expected"),
    [
        ([8.0, 10.0, 12.0], 8.0, 0.0, "held"),  # mean 10 >= 8, low 5.03 > 0
        ([8.0, 10.0, 12.0], 10.0, 5.0, "held"),  # at the gate, and 5.03 > 5
        ([8.0, 10.0, 12.0], 8.0, 5.1, "inconclusive"),  # low below the null
        ([8.0, 10.0, 12.0], 11.0, 0.0, "inconclusive"),  # mean misses the gate, high 14.97 does not
        ([8.0, 10.0, 12.0], 15.0, 0.0, "failed"),  # high 14.97 < 15
        ([-12.0, -10.0, -8.0], 0.0, 0.0, "failed"),
        ([8.0, 12.0], 0.0, 0.0, "inconclusive"),  # two values never suffice
        ([8.0], 0.0, 0.0, "inconclusive"),
        ([1.0, 1.0, 1.0], 1.0, 0.0, "held"),  # no spread: a deterministic result is no accident
    ],
)
def test_higher_and_its_mirror_image(values, gate, null, expected):
    assert verdict(values, gate=gate, null=null).verdict == expected
    assert verdict([-v for v in values], better="lower", gate=-gate, null=-null).verdict == expected


@pytest.mark.parametrize(
    ("gate", "expected"),
    [((5.0, 15.0), "held"), ((5.1, 15.0), "inconclusive"), ((15.0, 20.0), "failed"), ((0.0, 5.0), "failed"),
     ((12.0, 20.0), "inconclusive")],
)  # fmt: skip
def test_equivalence(gate, expected):
    assert verdict([8.0, 10.0, 12.0], gate=gate, null=None).verdict == expected


def test_rounding_decides_nothing():
    assert 11.2 - 3.2 < 8
    values = [GAIN.function({BASE: {"error": 11.2}, OURS: {"error": 3.2}})] * 3
    assert verdict(values, gate=8.0, null=0.0).verdict == "held"
    equal = GAIN.function({BASE: {"error": 0.1 + 0.2}, OURS: {"error": 0.3}})
    assert equal == 0 and verdict([equal] * 3).verdict == "inconclusive"


def test_power_note():
    # mean 2, s 2: t(n-1) * 2 / sqrt n < 2 means t < sqrt n; 2.447 < 2.646 at n = 7, 2.571 > 2.449 at n = 6
    assert "about 7 seeds would settle it" in verdict([0.0, 2.0, 4.0]).note
    assert enough_for(2.0, 2.0) == 7
    note = verdict([0.0, 2.0, 4.0], gate=4.0).note
    assert "cannot make it hold" in note and "about 7 seeds would call it failed" in note
    assert "even 10,000" in verdict([-2.0, 0.0, 2.0]).note
    assert "about 7 repeats" in verdict([{"mean": 2.0, "std": 2.0, "n": 3}], "repeat").note
    assert "cannot make it hold" in verdict([0.0, 2.0, 4.0], gate=(3.0, 9.0), null=None).note
    assert "about 7 seeds would settle it" in verdict([0.0, 2.0, 4.0], gate=(0.0, 9.0), null=None).note


# --- censored values


def test_censored_from_below_can_hold_but_not_fail():
    never = {"low": 20.0, "high": None}
    measured = measure([never, 18.0, 22.0])  # bounds 20, 18, 22
    assert measured.mean == 20 and measured.low == pytest.approx(15.0317, abs=1e-4) and measured.high is None
    assert verdict([never, 18.0, 22.0], gate=20.0, null=1.0).verdict == "held"
    assert verdict([never, 18.0, 22.0], gate=30.0, null=1.0).verdict == "inconclusive"
    assert verdict([never, 18.0, 22.0], better="lower", gate=10.0, null=10.0).verdict == "failed"
    assert verdict([never, 18.0, 22.0], better="lower", gate=30.0, null=40.0).verdict == "inconclusive"
    assert verdict([never, 18.0, 22.0], gate=(0.0, 99.0), null=None).verdict == "inconclusive"
    assert verdict([never, 18.0, 22.0], gate=(0.0, 15.0), null=None).verdict == "failed"


def test_censored_from_above_is_the_mirror_image():
    fast = {"low": None, "high": 1.0}
    assert verdict([fast, 1.0, 1.1], better="lower", gate=2.0, null=3.0).verdict == "held"
    assert verdict([fast, 1.0, 1.1], gate=2.0, null=2.0).verdict == "failed"


def test_censored_from_both_sides_says_nothing():
    measured = measure([{"low": 2.0, "high": None}, {"low": None, "high": 1.0}, 1.5])
    assert measured.as_row() == {"mean": None, "low": None, "high": None, "n": 3, "attempted": 3}
    assert verdict([{"low": 2.0, "high": None}, {"low": None, "high": 1.0}, 1.5]).verdict == "inconclusive"


# --- reproduced


def test_prediction_interval_by_hand():
    ours = measure([8.0, 10.0, 12.0])
    # 4.3027 * sqrt(4/3 + 9/5) = 7.616; without the paper's spread 4.3027 * sqrt(4/3 + 4) = 9.937
    assert prediction_interval(ours, 3.0, 5) == pytest.approx((2.384, 17.616), abs=1e-3)
    assert prediction_interval(ours, None, None) == pytest.approx((0.063, 19.937), abs=1e-3)


@pytest.mark.parametrize(
    ("paper", "facts", "verified", "expected"),
    [
        (17.6, {}, True, "reproduced"),
        (2.4, {}, True, "reproduced"),
        (17.7, {}, True, "held"),
        (17.6, {}, False, "held"),
        (17.6, {"paper_protocol": False}, True, "held"),
        (17.6, {"paper_protocol": False, "stand_in": True}, True, "held"),
        (None, {"paper_std": None, "paper_runs": None}, True, "held"),
        (19.9, {"paper_std": None, "paper_runs": None}, True, "reproduced"),
    ],
)
def test_reproduced(paper, facts, verified, expected):
    rule = make_rule(**{"paper_value": paper, "paper_std": 3.0, "paper_runs": 5, "paper_protocol": True, **facts})
    assert judge(rule, measure([8.0, 10.0, 12.0]), verified).verdict == expected


def test_reproduced_needs_held_and_whole_knowledge():
    rule = make_rule(gate=15.0, paper_value=10.0, paper_protocol=True)
    assert judge(rule, measure([8.0, 10.0, 12.0])).verdict == "failed"
    rule = make_rule(paper_value=10.0, paper_protocol=True)
    assert judge(rule, measure([{"low": 8.0, "high": None}, 10.0, 12.0])).verdict == "held"


def test_reproduced_by_one_model_and_by_mathematics():
    # 0/1 scores of 10,000 examples: half width 1.96 * 0.5 * sqrt(2 / 10000) = 0.01386, not 0.98
    measured = measure([{"mean": 0.47, "std": 0.5, "n": 10_000}], "example")
    for paper, expected in ((0.4838, "reproduced"), (0.4840, "held")):
        rule = make_rule(gate=0.25, null=0.25, resampling="example", paper_value=paper, paper_protocol=True)
        assert judge(rule, measured).verdict == expected
    for paper, expected in ((0.056314, "reproduced"), (0.056315, "held")):
        rule = make_rule(resampling="exact", paper_value=paper, paper_protocol=True)
        assert judge(rule, measure([0.056314], "exact")).verdict == expected


# --- what happened to the runs


def test_paired_by_seed_and_only_confirming_seeds():
    rows = pairs([8.0, 10.0, 12.0]) + pairs([-50.0], first=999) + [row(OURS, 1003, error=1.0)]
    measured, found = judge_runs(make_rule(), rows)
    assert (measured.mean, measured.n, measured.attempted, found.verdict) == (10, 3, 4, "held")
    assert "3 of 4 seeds measured (1003 missing)" in found.note


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_unfinished_seeds_are_not_measured(status):
    rows = [*pairs([8.0, 10.0, 12.0]), row(OURS, 1003, status), row(BASE, 1003, error=3.0)]
    measured, found = judge_runs(make_rule(), rows)
    assert (measured.n, measured.attempted, found.verdict) == (3, 4, "held")
    assert f"1003 {status}" in found.note


def test_divergence_is_never_dropped():
    rows = pairs([8.0, 10.0, 12.0])
    claimed = [row(OURS, 1003, "diverged"), row(BASE, 1003, error=90.0)]
    baseline = [row(BASE, 1004, "diverged"), row(OURS, 1004, error=10.0)]
    assert judge_runs(make_rule(), rows + claimed)[1].verdict == "failed"
    assert judge_runs(make_rule(), rows + baseline)[1].verdict == "inconclusive"
    assert judge_runs(make_rule(), rows + claimed + baseline)[1].verdict == "failed"
    assert "base at seed 1004" in judge_runs(make_rule(), rows + baseline)[1].note
    assert judge_runs(make_rule(), [row(OURS, 1000, "diverged")])[1].verdict == "failed"
    assert (
        judge_runs(make_rule(), [*rows, row(OURS, 999, "diverged"), row(THIRD, 1000, "diverged")])[1].verdict == "held"
    )


def test_not_run():
    assert judge_runs(make_rule(), []) == (None, ("not run", ""))
    assert judge_runs(make_rule(), pairs([9.0], first=0)) == (None, ("not run", ""))
    measured, found = judge_runs(make_rule(), [row(OURS, 1000 + i, error=1.0) for i in range(5)])
    assert measured is None and found.verdict == "not run" and "compares" in found.note


def test_a_baseline_that_did_not_train_is_not_beaten():
    gate = TrainGate("digits", "base", "train_error", 20.0, "lower")
    rule = make_rule(difference(BASE, OURS, "error", "percent", claimed=[OURS], train_gates=[gate]))
    trained = [
        row(run, 1000 + i, error=e, train_error=t) for i in range(5) for run, e, t in ((OURS, i, 0), (BASE, 50, 20))
    ]
    assert judge_runs(rule, trained)[1].verdict == "held"
    untrained = [*trained[:-1], row(BASE, 1004, error=50, train_error=21)]
    found = judge_runs(rule, untrained)[1]
    assert found.verdict == "inconclusive" and "base (1004)" in found.note
    assert judge_runs(rule, [*trained[:-1], row(BASE, 1004, error=50)])[1].verdict == "inconclusive"


def test_train_gates_in_both_directions():
    scores = {20.0: True, 19.0: False, 21.0: True}
    for score, trained in scores.items():
        assert TrainGate("digits", "base", "accuracy", 20.0, "higher").passed({BASE: {"accuracy": score}}) is trained
        assert TrainGate("digits", "base", "error", -20.0, "lower").passed({BASE: {"error": -score}}) is trained
    never = {BASE: {"time": {"low": 90.0, "high": None}}}
    assert not TrainGate("digits", "base", "time", 99.0, "lower").passed(never)
    assert TrainGate("digits", "base", "time", 90.0, "higher").passed(never)


def test_a_finished_seed_without_a_value_is_not_dropped():
    rows = pairs([8.0, 10.0, 12.0])
    found = judge_runs(make_rule(), [*rows, row(OURS, 1003, error=1.0), row(BASE, 1003)])[1]
    assert found.verdict == "inconclusive" and "1003 (KeyError: 'error')" in found.note
    speed = make_rule(ratio(BASE, OURS, "error", claimed=[OURS]), gate=1.0, null=1.0)
    rows = [row(run, 1000 + i, error=e) for i in range(4) for run, e in ((OURS, 1.0 if i else 0.0), (BASE, 9.0))]
    measured, found = judge_runs(speed, rows)
    assert measured.n == 3 and found.verdict == "inconclusive" and "positive denominator" in found.note


def test_notes_on_stale_and_added_seeds():
    rows = pairs([8.0, 10.0, 12.0, 9.0, 11.0, 10.0])
    rows[0]["stale"] = True
    found = judge_runs(make_rule(seeds=4), rows)[1]
    assert found.verdict == "held"
    assert "1 of 12 runs are stale" in found.note and "2 seeds added afterwards" in found.note
    assert judge_runs(make_rule(seeds=6), pairs([8.0, 10.0, 12.0, 9.0, 11.0, 10.0]))[1].note == ""


def test_one_fixed_model_is_the_first_attempted():
    rule = make_rule(level("digits", "ours", "accuracy", "percent"), gate=25.0, null=25.0, resampling="example")
    good, poor = ({"mean": mean, "std": 50.0, "n": 10_000} for mean in (47.0, 24.0))
    assert judge_runs(rule, [row(OURS, 1001, accuracy=good), row(OURS, 1000, accuracy=poor)])[1].verdict == "failed"
    found = judge_runs(rule, [row(OURS, 1001, accuracy=good), row(OURS, 1000, "failed")])
    assert found[0] is None and found[1].verdict == "inconclusive"


# --- quantities


def test_quantities_by_hand():
    metrics = {OURS: {"error": 2.0, "time": 4.0}, BASE: {"error": 5.0, "time": 1.0}, THIRD: {"error": 9.0, "time": 2.0}}
    runs = [OURS, BASE, THIRD]
    assert level(*OURS, "error", "percent").function(metrics) == 2
    assert GAIN.function(metrics) == 3
    assert difference(OURS, OURS, ("time", "error"), "s", claimed=[OURS]).function(metrics) == 2
    assert ratio(BASE, OURS, "error", claimed=[OURS]).function(metrics) == 2.5
    steps = smallest_step(runs, "error", "percent", claimed=runs)
    assert steps.function(metrics) == 3 and steps.requires == tuple(runs)
    gains = [difference(run, OURS, "error", "percent", claimed=[OURS]) for run in (BASE, THIRD)]
    assert worst(*gains, better="higher").function(metrics) == 3
    assert worst(*gains, better="lower").function(metrics) == 7
    assert worst(beyond(gains[0], 1.0), beyond(gains[1], 6.5), better="higher").function(metrics) == 0.5
    assert worst(*gains, better="higher").requires == (BASE, OURS, THIRD)
    # x 4 1 2, y 2 5 9: deviations (5 -4 -1)/3 and (-10 -1 11)/3; -57 / sqrt(42 * 222)
    expected = -57 / math.sqrt(42 * 222)
    assert correlation(runs, "time", "error", claimed=runs).function(metrics) == pytest.approx(expected)
    assert correlation(runs, [4, 1, 2], "error", claimed=runs).function(metrics) == pytest.approx(expected)


def test_quantities_carry_the_spread_of_summaries():
    metrics = {BASE: {"s": {"mean": 6.0, "std": 3.0, "n": 9}}, OURS: {"s": {"mean": 2.0, "std": 2.0, "n": 4}}}
    # variances of the means 1 and 1; n = 4: std sqrt(4 * 2). Ratio: (1/2)^2 * 1 + (3/2)^2 * 1 = 2.5
    assert difference(BASE, OURS, "s", "s", claimed=[OURS]).function(metrics) == {
        "mean": 4,
        "std": math.sqrt(8),
        "n": 4,
    }
    assert ratio(BASE, OURS, "s", claimed=[OURS]).function(metrics) == {"mean": 3, "std": math.sqrt(10), "n": 4}
    both = [level(*run, "s", "s") for run in (OURS, BASE)]
    assert worst(*both, better="higher").function(metrics)["mean"] == 2
    assert worst(*both, better="lower").function(metrics)["mean"] == 6


def test_quantities_carry_censoring():
    never, fast = {"low": 100.0, "high": None}, {"low": None, "high": 0.5}
    seconds = lambda base, ours: {BASE: {"t": base}, OURS: {"t": ours}}  # noqa: E731
    speed, gain = (f(BASE, OURS, "t", claimed=[OURS]) for f in (ratio, lambda *a, **k: difference(*a, "s", **k)))
    assert speed.function(seconds(never, 5.0)) == {"low": 20.0, "high": None}
    assert speed.function(seconds(50.0, fast)) == {"low": 100.0, "high": None}
    assert speed.function(seconds(5.0, never)) == {"low": None, "high": 0.05}
    assert speed.function(seconds(never, never)) == {"low": None, "high": None}
    assert gain.function(seconds(never, 5.0)) == {"low": 95.0, "high": None}
    assert gain.function(seconds(5.0, never)) == {"low": None, "high": -95.0}
    levels = [level(*run, "t", "s") for run in (BASE, OURS)]
    assert worst(*levels, better="higher").function(seconds(never, 5.0)) == 5.0
    assert worst(*levels, better="lower").function(seconds(never, 5.0)) == {"low": 100.0, "high": None}
    with pytest.raises(ValueError, match="positive"):
        speed.function(seconds(-1.0, never))


def test_impossible_quantities_are_refused():
    with pytest.raises(ValueError, match="no runs"):
        Quantity("nothing", (), lambda metrics: 0.0, "percent")
    with pytest.raises(ValueError, match="does not require"):
        difference(BASE, OURS, "error", "percent", claimed=[THIRD])
    with pytest.raises(ValueError, match="one unit"):
        worst(GAIN, level(*OURS, "time", "s"), better="higher")


# --- rules and claims


@pytest.mark.parametrize(
    "facts",
    [
        {"gate": (1.0, 2.0)},  # an equivalence with a null
        {"gate": (2.0, 1.0), "null": None},
        {"null": None},
        {"gate": -1.0},  # a gate easier than the null
        {"gate": 1.0, "better": "lower"},
        {"stand_in": True, "paper_protocol": True},
    ],
)
def test_impossible_rules_are_refused(facts):
    with pytest.raises(ValueError, match="the rule on"):
        make_rule(**facts)


def test_a_recalled_number_is_never_a_gate():
    assert paper_gate(11.08, 0.87, "lower") == pytest.approx(12.82)
    assert paper_gate(95.21, 0.17, "higher") == pytest.approx(94.87)
    gate = paper_gate(11.08, 0.87, "lower")
    full = make_rule(ERROR, "lower", gate, gate, paper_value=11.08, paper_std=0.87, paper_runs=5, paper_protocol=True)
    Claim("C1", "s", "Table 5", True, {"paper": full})
    with pytest.raises(ValueError, match="not verified"):
        Claim("C1", "s", "Table 5", False, {"paper": full})
    with pytest.raises(ValueError, match="not verified"):
        Claim("C1", "s", "Table 5", False, {"paper": make_rule(gate=(9.0, 11.08), null=None, paper_value=11.08)})
    Claim("C1", "s", "Table 5", False, {"paper": make_rule(gate=8.0, paper_value=11.08)})
    Claim("C1", "s", "Table 5", False, {"paper": make_rule(gate=0.0, paper_value=0.0)})


def test_judge_all_gives_the_rows_of_results_json():
    rules = {
        preset: make_rule(stand_in=True, paper_value=9.0, paper_std=1.0) for preset in ("smoke", "quick", "gpu-explore")
    }
    claims = [Claim("C1", "ours is better", "Table 5", True, rules, "digits"), Claim("C2", "s", "t", False, {})]
    rows = judge_all(claims, "quick", pairs([8.0, 10.0, 12.0]))
    assert list(rows[0].items())[:12] == [
        ("id", "C1"), ("statement", "ours is better"), ("source", "Table 5"),
        ("quantity", "error of base minus ours on digits"), ("unit", "percent"), ("resampling", "seed"),
        ("better", "higher"), ("gate", 0.0), ("null", 0.0), ("paper_value", 9.0), ("paper_std", 1.0),
        ("verified", True),
    ]  # fmt: skip
    assert list(rows[0])[12:] == ["measured", "stand_in", "data", "verdict", "note"]
    assert (rows[0]["measured"]["n"], rows[0]["stand_in"], rows[0]["verdict"], rows[0]["note"]) == (
        3,
        True,
        "held",
        "digits",
    )
    assert (rows[1]["verdict"], rows[1]["measured"], rows[1]["quantity"], rows[1]["gate"]) == (
        "not run",
        None,
        None,
        None,
    )
    for preset in ("smoke", "gpu-explore"):
        assert [r["verdict"] for r in judge_all(claims, preset, pairs([8.0, 10.0, 12.0]))] == ["not run"] * 2
    dump_json(rows)


def test_expected_by_chance_counts_tests_over_seeds():
    quick = {"quick": make_rule()}
    timing = make_rule(level(*OURS, "t", "s"), resampling="repeat")
    claims = [
        Claim("a", "s", "t", True, quick),
        Claim("b", "s", "t", True, {}),
        Claim("c", "s", "t", True, {"quick": timing}),
    ]
    runs = pairs([8.0, 10.0, 12.0])
    for one in runs:
        one["metrics"]["t"] = {"mean": 1.0, "std": 0.1, "n": 9}
    assert expected_by_chance(judge_all(claims * 4, "quick", runs)) == pytest.approx(0.1)
    assert expected_by_chance(judge_all(claims, "quick", runs[:4])) == 0  # two seeds cannot hold


def test_importing_claims_is_light():
    code = (
        "import sys, common.claims, common.schemas; print({'scipy', 'numpy', 'torch', 'jsonschema'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- properties; whole numbers, so that shifting and scaling them is exact

NUMBERS = st.integers(-1000, 1000).map(float)
VALUES = st.lists(NUMBERS, min_size=3, max_size=8)
GATES = st.tuples(NUMBERS, st.integers(0, 300)).map(lambda pair: (pair[0] + pair[1], pair[0]))  # gate >= null


@settings(deadline=None, max_examples=150)
@given(VALUES, GATES, NUMBERS, st.sampled_from([0.25, 2.0, 64.0]), st.randoms())
def test_verdicts_do_not_depend_on_origin_scale_sign_or_order(values, gates, shift, scale, random):
    gate, null = gates
    expected = verdict(values, gate=gate, null=null).verdict
    mirrored = verdict([-v for v in values], better="lower", gate=-gate, null=-null).verdict
    shifted = verdict([v + shift for v in values], gate=gate + shift, null=null + shift).verdict
    scaled = verdict([v * scale for v in values], gate=gate * scale, null=null * scale).verdict
    shuffled = verdict(random.sample(values, len(values)), gate=gate, null=null).verdict
    assert {mirrored, shifted, scaled, shuffled} == {expected}


@settings(deadline=None, max_examples=150)
@given(VALUES, NUMBERS, st.integers(1, 500), NUMBERS)
def test_equivalence_does_not_depend_on_sign_or_origin(values, lower, width, shift):
    upper = lower + width
    expected = verdict(values, gate=(lower, upper), null=None).verdict
    assert verdict([-v for v in values], gate=(-upper, -lower), null=None).verdict == expected
    assert verdict([v + shift for v in values], gate=(lower + shift, upper + shift), null=None).verdict == expected


@settings(deadline=None, max_examples=150)
@given(VALUES, GATES, st.integers(2, 9))
def test_more_spread_settles_nothing(values, gates, factor):
    gate, null = gates
    values = [v * len(values) for v in values]  # so that the mean is whole and stays where it is
    mean = sum(values) / len(values)
    wider = [mean + factor * (v - mean) for v in values]
    before, after = (verdict(v, gate=gate, null=null).verdict for v in (values, wider))
    assert after in (before, "inconclusive")


@settings(deadline=None, max_examples=150)
@given(VALUES, GATES, st.integers(0, 500))
def test_a_better_result_or_an_easier_gate_never_hurts(values, gates, amount):
    gate, null = gates
    order = ["failed", "inconclusive", "held"]
    expected = order.index(verdict(values, gate=gate, null=null).verdict)
    assert order.index(verdict([v + amount for v in values], gate=gate, null=null).verdict) >= expected
    assert order.index(verdict(values, gate=gate + amount, null=null).verdict) <= expected


@settings(deadline=None, max_examples=150)
@given(VALUES, GATES, st.data())
def test_forgetting_the_upper_side_never_overturns(values, gates, data):
    gate, null = gates
    which = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    censored = [{"low": v, "high": None} if hide else v for v, hide in zip(values, which, strict=True)]
    known, found = (verdict(v, gate=gate, null=null).verdict for v in (values, censored))
    assert found == known or (known == "failed" and found == "inconclusive")


@settings(deadline=None, max_examples=50)
@given(st.lists(NUMBERS, max_size=2), GATES)
def test_fewer_than_three_decide_nothing(values, gates):
    assert verdict(values, gate=gates[0], null=gates[1]).verdict == "inconclusive"


@settings(deadline=None, max_examples=100)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_enough_is_enough_and_no_more(distance, std):
    n = enough_for(distance, std)
    if n is None:
        assert half_width(std, 10_000) >= distance
    else:
        assert half_width(std, n) < distance and (n == 3 or half_width(std, n - 1) >= distance)
