"""The claims are the spec's rows, the presets' runs can answer them, and verdicts follow from made-up runs."""

import re
import subprocess
import sys

import pytest

from common.claims import judge_all
from papers.diayn.claims import CLAIMS
from papers.diayn.reproduce import PAPER

ROWS = [f"C{number}" for number in range(1, 17)]
JUDGED = [preset for preset in PAPER.presets if preset.name != "smoke"]
RULES = {claim.id: claim.rules for claim in CLAIMS}


def preset_id(preset) -> str:
    return preset.name


def runs_of(preset) -> dict:
    return {(e.name, method): e for e in preset.experiments for method in e.methods}


def test_importing_the_paper_loads_no_torch():
    code = "import sys, papers.diayn.reproduce; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_row_of_the_spec_has_its_entry_and_ids_are_unique():
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert [row for row in ids if "." not in row] == ROWS
    assert all(claim.rules and claim.verified for claim in CLAIMS)
    assert [row for row in ROWS if "paper" not in RULES[row]] == []
    assert {row for row in ROWS if "quick" in RULES[row]} >= {"C1", "C3", "C4", "C6", "C9", "C10", "C12", "C15"}


@pytest.mark.parametrize("preset", PAPER.presets, ids=preset_id)
def test_rules_read_runs_and_metrics_that_the_preset_makes(preset):
    runs = runs_of(preset)
    for claim in CLAIMS:
        if (rule := claim.rules.get(preset.name)) is None:
            continue
        assert rule.quantity.unit and rule.data
        for run in rule.quantity.requires:
            assert run in runs, (claim.id, run)
            assert rule.seeds == runs[run].seeds, claim.id
        metrics = dict.fromkeys(PAPER.metrics, 1.0)
        rule.quantity.function(dict.fromkeys(rule.quantity.requires, metrics))
        assert all(gate.metric in PAPER.metrics for gate in rule.quantity.train_gates)


def test_gates_of_the_stand_ins_are_the_specs():
    gates = {row: (rules["quick"].gate, rules["quick"].null) for row, rules in RULES.items() if "quick" in rules}
    assert gates == {
        "C1": (1.0, 0.208333),
        "C1.accuracy": (0.8, 0.166667),
        "C1.information": (1.3, 0),
        "C2": (3, 0),
        "C2.k6": (3, 0),
        "C3": (0.666, 0),
        "C3.range": (5, 1),
        "C4": (0, 0),
        "C4.kept": (25, 25),
        "C4.fixed": ((49.99, 50.01), None),
        "C4.accuracy": (0, 0),
        "C5": (0, 0),
        "C5.actor": (0, 0),
        "C6": (0, 0),
        "C6.rnd": (0, 0),
        "C6.sac": (0, 0),
        "C8": (0, 0),
        "C8.untrained": (0, 0),
        "C9": (1, 0),
        "C9.rise": (0, 0),
        "C9.entropy": (1.5, 0),
        "C10": (0, 0),
        "C10.point": (0, 0),
        "C10.accuracy": (0, 0),
        "C11": (3, 1),
        "C12": (0, 0),
        "C12.few": (1, 1),
        "C12.entropy": (0.9, 0.9),
        "C12.learned": (1, 1),
        "C12.correlation": (0, 0),
        "C15": (1, 0),
        "C15.value": ((0, 1), None),
        "C16": (0.25, 0.25),
    }
    assert "minus 3" in RULES["C6"]["quick"].quantity.text and "minus 10" in RULES["C6"]["quick"].quantity.text
    assert all(f"minus {gate}" in RULES["C12"]["quick"].quantity.text for gate in ("0.6", "0.25", "1.11111"))
    assert "minus 25" in RULES["C4"]["quick"].quantity.text and "over 1.5" in RULES["C9"]["quick"].quantity.text


# ---------------------------------------------------------------- verdicts

ENTROPIES = {0.01: -4.0, 0.1: 0.0, 0.5: 0.8, 1.0: 1.0, 10.0: 1.2}
COVERAGES = {0.01: 0.4, 0.1: 0.6, 0.5: 0.92, 1.0: 0.99, 10.0: 1.0}
GOALS = {1: -32.3, 2: -28.1, 4: -10.5, 6: -7.3, 20: -3.3, 50: -2.0}
DISTANCES = {"diayn": 0.091, "low-entropy": 0.102, "learned-prior": 0.125, "few-skills": 0.226}
TASK_RETURNS = {"hierarchy": 3.0, "hierarchy-xy-prior": 4.0, "untrained-skills": 1.0, "sac": 0.5, "sac-rnd": 0.7}


def believed(experiment: str, method: str) -> dict[str, float]:
    """Metrics of a run as the paper, or the spec's prototype, has them."""
    if experiment == "hierarchy":
        found = re.fullmatch(r"k(\d+)", method)
        return {"hierarchy_return": GOALS[int(found[1])]} if found else {"task_return": -9.0}
    if experiment in ("waypoints", "hurdle", "ant-navigation"):
        return {"task_return": TASK_RETURNS[method]}
    if experiment.startswith("fine-tuning"):
        return {"return_area_third": 1.0 if method == "scratch" else 2.0}
    if experiment.startswith("imitation"):
        return {"distance": DISTANCES[method], "random_distance": 0.74, "correlation": -0.5}
    if experiment == "poses":
        errors = {"upright": 0.3, "flip": 0.5, "faceplant": 0.3, "handstand": 1.4}
        return {f"{pose}_error": e for pose, e in errors.items()} | {f"{pose}_random_error": 1.5 for pose in errors}
    if experiment == "best-skill":
        trained = 1.0 + 1499.0 * ("untrained" not in method)
        return {"selected_return": trained, "median_return": trained / 2}
    if experiment == "gridworld":
        return {"partition_best": 1.0, "gap_ratio": 1.0}
    skills = int((re.match(r"k(\d+)", method) or [0, 6])[1])
    alpha = 0.01 if "low-entropy" in method else float((re.match(r"alpha-(.*)", method) or [0, 0.1])[1])
    learned = "learned" in method
    return {
        "accuracy": 0.95 - 0.4 * learned - 0.2 * (alpha >= 1),
        "mutual_information": 1.7,
        "mutual_information_half": 1.2,
        "effective_skills": skills / 5 if learned else skills,
        "policy_entropy": ENTROPIES[alpha],
        "coverage": COVERAGES[alpha],
        **{"return_std": 30.0, "return_range": 100.0, "length_max": 50.0, "return_max": 1500.0},
        **{"return_std_untrained": 3.0, "return_range_untrained": 5.0, "length_max_untrained": 7.0},
        **{"solved_ever": 1.0, "skills_outside": 5.0},
    }


def made_up(preset, change=lambda run, metrics: metrics) -> list[dict]:
    exact = "effective_skills", "partition_best", "gap_ratio"
    rows = []
    for (experiment, method), found in runs_of(preset).items():
        for seed in range(1000, 1000 + found.seeds):
            metrics = {
                name: value if name in exact else value * (1 + 1e-4 * (seed - 1000))
                for name, value in change((experiment, method), believed(experiment, method)).items()
            }
            run = {"experiment": experiment, "method": method, "seed": seed, "status": "finished", "stale": False}
            rows.append({**run, "metrics": metrics})
    return rows


@pytest.mark.parametrize("preset", JUDGED, ids=preset_id)
def test_every_claim_holds_where_the_runs_are_as_the_paper_says(preset):
    for row in judge_all(CLAIMS, preset.name, made_up(preset)):
        expected = {"held", "reproduced"} if preset.name in RULES[row["id"]] else {"not run"}
        assert row["verdict"] in expected, (row["id"], row["verdict"], row["note"])


@pytest.mark.parametrize("preset", JUDGED, ids=preset_id)
def test_no_claim_holds_where_all_methods_are_alike_and_nothing_is_learnt(preset):
    nothing = {"accuracy": 1 / 6, "effective_skills": 30.0, "gap_ratio": 2.0, "correlation": 0.1}
    nothing |= dict.fromkeys(("mutual_information", "partition_best", "solved_ever", "skills_outside"), 0.0)
    nothing |= {"mutual_information_half": 0.0}

    def flat(run, metrics):
        return {name: nothing.get(name, 1.0) for name in metrics}

    # True of methods that are alike; without any information its spread has no value.
    alike = {"C12.entropy", "C16"}
    for row in judge_all(CLAIMS, preset.name, made_up(preset, flat)):
        assert row["verdict"] in ("failed", "inconclusive", "not run") or row["id"] in alike, row["id"]


def test_a_baseline_that_did_not_train_and_one_that_diverged_leave_it_open():
    quick = PAPER.preset("quick")

    def untrained(run, metrics):
        return {"task_return": -20.0} if run == ("hierarchy", "sac-rnd") else metrics

    verdicts = {row["id"]: row["verdict"] for row in judge_all(CLAIMS, "quick", made_up(quick, untrained))}
    assert verdicts["C6.rnd"] == "inconclusive" and verdicts["C6.sac"] == "held"
    runs = made_up(quick)
    for row in runs:
        if (row["experiment"], row["method"]) in (("box", "k50"), ("waypoints", "sac")):
            row["status"] = "diverged"
    verdicts = {row["id"]: row["verdict"] for row in judge_all(CLAIMS, "quick", runs)}
    assert verdicts["C4.accuracy"] == "failed" and verdicts["C8"] == "inconclusive"


def test_some_skills_that_solve_it_in_two_of_three_seeds_are_needed():
    quick = PAPER.preset("quick")

    def verdict(solving):
        rows = made_up(quick)
        for row in rows:
            if row["experiment"] == "mountain-car":
                row["metrics"]["solved_ever"] = float(row["seed"] < 1000 + solving)
        return {row["id"]: row["verdict"] for row in judge_all(CLAIMS, "quick", rows)}["C3"]

    assert [verdict(solving) for solving in (5, 4, 3, 0)] == ["held", "held", "inconclusive", "failed"]
