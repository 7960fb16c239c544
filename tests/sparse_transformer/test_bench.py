"""Every case of the benchmark runs, and both of its paths compute the same; no test asserts a time."""

from common.bench import Setting
from common.runs import Execution
from papers.sparse_transformer import bench

SMALL = Setting(Execution(), "cpu (test)", small=True)


def test_every_case_and_that_both_paths_agree():
    found = {row["case"].removesuffix(" (smoke)"): row for row in bench.rows(SMALL)}
    plain = ("masked", "causal")
    kinds = {f"{kind} n={n} vs {way}" for kind in ("strided", "fixed") for n in (64, 256) for way in plain}
    others = {"strided peak n=1024", "strided step n=1024", "strided slope 256..1024", "training step n=64"}
    assert set(found) == kinds | others | {"sampled token n=64"}
    for case, row in found.items():
        if "causal" not in case and row["plain"] is not None:
            assert row["equivalence"] < 1e-4, case
    assert found["strided peak n=1024"]["unit"] == "GB" and found["strided slope 256..1024"]["unit"] == "exponent"


def test_the_cases_are_those_of_the_issue():
    assert set(bench.CPU_HEADS) == {1024, 4096, 16384} and set(bench.CUDA_HEADS) == {16384, 65536, 262144}
    assert bench.SLOPE[0] == 4096 and bench.SLOPE[-1] == 262144 and bench.LONG.context == 1048576


def test_the_floor_is_the_plain_time_over_the_ratio_of_pairs():
    masked, causal = bench.attention_rows(SMALL, "strided", 64, 1)
    pairs = bench.attending(SMALL, "strided", 64, 1).pattern.pairs(64)
    assert abs(masked["floor"] - masked["plain"] * pairs / 64**2) <= 1e-3 * masked["floor"]
    assert abs(causal["floor"] - causal["plain"] * pairs / (64 * 65 / 2)) <= 1e-3 * causal["floor"]
    assert masked["equivalence"] < 1e-5 and causal["equivalence"] is None
