"""Claims about what attention costs and what length buys: seconds, memory, more context (spec, section 6). No torch."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from common.claims import Claim, Quantity, Rule, difference, level, smallest_step, worst
from papers.sparse_transformer.experiments import CPU_SEEDS, LENGTH_SEEDS, QUICK_SEEDS
from papers.sparse_transformer.full_scale import MINIMUM_CONTEXTS, SEEDS
from papers.sparse_transformer.rules import (
    BITS,
    CONTEXT,
    CPU_TEXT,
    GIGABYTES_AT_2_20,
    IMDB,
    PAPER_DATA,
    SPEED_DATA,
    TEST,
    TEXT,
    at_most,
    direction,
    full,
    gap,
    times,
)


def speed_of_patterns() -> list[Claim]:
    """C5 and C6: seconds of a step."""
    claims = []
    rows = (
        ("C5.speed", "enwik8 at 12,288 bytes", "fixed", "1.31 s against 0.55 s", 2.38),
        ("C5.speed.strided", "enwik8 at 12,288 bytes", "strided", "1.31 s against 0.35 s", 3.74),
        ("C6.speed", "CIFAR-10 at 3,072 bytes", "strided", "0.54 s against 0.38 s", 1.42),
        ("C6.speed.fixed", "CIFAR-10 at 3,072 bytes", "fixed", "0.54 s against 0.47 s", 1.15),
    )
    for row, words, method, seconds, value in rows:
        data = "enwik8" if row.startswith("C5") else "cifar10"
        step = f"step-time-{data}", "ratio"
        rules = {
            preset: times(
                f"{method}_speedup", step, f"{PAPER_DATA[data]}, whole steps", stand_in=False, paper_value=value
            )
            for preset in ("gpu", "paper")
        }
        if row in ("C5.speed", "C6.speed"):
            n = 16384 if data == "enwik8" else 4096
            rules["quick"] = times(f"causal_ratio_{n}", ("speed", method), f"{SPEED_DATA}, n = {n:,}")
        if data == "enwik8":
            rules["cpu"] = times(f"{method}_speedup", ("step-time", "ratio"), f"{IMDB}, whole steps")
        statement = (
            f"{words}: a step with {method} attention is {value} times faster than with dense attention ({seconds})"
        )
        note = (
            "`quick`: forward and backward of attention alone against causal attention of torch"
            if "quick" in rules
            else ""
        )
        claims.append(Claim(row, statement, "Table 2", True, rules, note))
    return claims


# ---------------------------------------------------------------- Tables 3 and 4


def more_context() -> list[Claim]:
    """C7: Table 3."""
    bits = dict(zip(MINIMUM_CONTEXTS, (0.9952, 0.9936, 0.9932, 0.9930, 0.9922, 0.9908), strict=True))

    def falls(experiment: str, minimum: Sequence[int]) -> Quantity:
        runs = [(experiment, f"context-{m}") for m in reversed(minimum)]
        return smallest_step(runs, CONTEXT, BITS, claimed=runs)

    def gain(experiment: str, least: int, most: int) -> Quantity:
        runs = [(experiment, f"context-{m}") for m in (least, most)]
        return difference(runs[0], runs[1], CONTEXT, BITS, claimed=runs)

    smaller = {
        "quick": ("context", (128, 192, 224), TEXT, QUICK_SEEDS, True),
        "cpu": ("context-512", (256, 384, 448), CPU_TEXT, CPU_SEEDS, True),
        "gpu": ("enwik8-context", (2048, 3072, 3584), "enwik8, n = 4,096, 1,500 steps", SEEDS, False),
    }
    orders, gains = {}, {}
    for preset, (experiment, minimum, data, seeds, stand_in) in smaller.items():
        orders[preset] = direction(falls(experiment, minimum), data, seeds, stand_in=stand_in)
        gains[preset] = direction(gain(experiment, minimum[0], minimum[-1]), data, seeds, stand_in=stand_in)
    name, imdb = "enwik8-context", (512, 768, 896)
    orders["paper"] = full(falls(name, MINIMUM_CONTEXTS), "enwik8", 0.0002)
    gains["paper"] = full(gain(name, MINIMUM_CONTEXTS[0], MINIMUM_CONTEXTS[-1]), "enwik8", 0.0044)
    source = "Table 3"
    claims = [
        Claim(
            "C7",
            "enwik8: the larger the minimum context at evaluation (6,144 to 12,160 bytes in six rows), the fewer bits "
            "a byte: 0.9952, 0.9936, 0.9932, 0.9930, 0.9922, 0.9908",
            source,
            True,
            orders,
            "the smallest step from one minimum context to the next",
        ),
        Claim(
            "C7.gain",
            "enwik8: a minimum context of 12,160 instead of 6,144 bytes saves 0.0044 bits a byte",
            source,
            True,
            gains,
            "from the smallest minimum context to the largest",
        ),
        Claim(
            "C7.imdb",
            "Text as bytes: the larger the minimum context at evaluation, the fewer bits a byte",
            "ours, in the spirit of Table 3",
            True,
            {"cpu": direction(falls("context-imdb", imdb), IMDB, CPU_SEEDS)},
        ),
    ]
    for before, after in itertools.pairwise(MINIMUM_CONTEXTS):
        rule = full(gain(name, before, after), "enwik8", bits[before] - bits[after])
        statement = (
            f"enwik8: with a minimum context of {after:,} bytes the loss is {bits[after]} bits a byte, less than the "
            f"{bits[before]} at {before:,}"
        )
        claims.append(Claim(f"C7.{after}", statement, source, True, {"paper": rule}))
    return claims


def lengths() -> list[Claim]:
    """C8: Table 4."""
    table = {65_536: (1.97, "152M"), 262_144: (2.17, "25M"), 1_048_576: (2.99, "3M")}
    runs = [(f"music-{n}", "strided") for n in table]
    order = smallest_step(runs, TEST, BITS, claimed=runs)
    quick = at_most(
        level("length", "attention-262144", "peak_gb", "GB"),
        GIGABYTES_AT_2_20 / 4,
        "attention alone, 2^18 random inputs",
        LENGTH_SEEDS,
    )
    cpu = at_most(
        level("length", "network-1048576", "peak_gb", "GB"),
        GIGABYTES_AT_2_20,
        "2 layers of width 32 with recomputation, 2^20 random bytes",
        LENGTH_SEEDS,
    )
    claims = [
        Claim(
            "C8",
            "Music: sequences of 65,536, 262,144 and 1,048,576 samples can be trained on, with 152M, 25M and 3M "
            "parameters: 1.97, 2.17 and 2.99 bits a byte; 4 times the length takes about 8 times fewer parameters",
            "Table 4; Sec. 7.4",
            True,
            {"quick": quick, "cpu": cpu, "paper": full(order, "music", 0.20)},
            "`quick`, `cpu`: peak memory of the process in a forward and backward pass at 2^18 and 2^20 tokens (12 GB "
            "at 2^20); `paper`: the smallest step in bits from one length to the next",
        )
    ]
    previous: int | None = None
    for n, (value, size) in table.items():
        statement = f"Music, {n:,} samples, {size} parameters: {value} bits a byte"
        if previous is None:
            rule = full(gap(f"music-{n}", "local", "strided"), "music")
            note = "judged by how far strided attention is ahead of local-only attention"
        else:
            runs = [(f"music-{n}", "strided"), (f"music-{previous}", "strided")]
            rise = difference(runs[0], runs[1], TEST, BITS, claimed=runs)
            rule = full(rise, "music", value - table[previous][0])
            note = "judged by how many bits more than at the length before"
        claims.append(Claim(f"C8.{n}", statement, "Table 4", True, {"paper": rule}, note))
        previous = n
    return claims


# ---------------------------------------------------------------- sections 4.3 and 5.4


def cost() -> list[Claim]:
    """C9."""

    def grows(pattern: str, data: str) -> Rule:
        return replace(at_most(level("speed", pattern, "slope", "exponent"), 1.6, data, 1), resampling="repeat")

    stored = Rule(
        quantity=level("memory", "recompute", "layer_tensors", "tensors of n x d"),
        better="lower",
        gate=(0.99, 1.01),
        null=None,
        seeds=1,
        data="strided network on random bytes",
        resampling="exact",
        stand_in=True,
    )
    reach = {"quick": "n from 1,024 to 16,384", "cpu": "n from 4,096 to 262,144", "gpu": "n from 16,384 to 262,144"}
    reach["paper"] = reach["gpu"]
    claims = [
        Claim(
            "C9",
            "Factorised attention costs O(n sqrt n): the exponent of its time is 1.5, not 2",
            "Sec. 4.3",
            True,
            {preset: grows("strided", f"strided attention alone, {words}") for preset, words in reach.items()},
            "slope of log time against log n with l = sqrt(n); at most 1.6",
        ),
        Claim(
            "C9.fixed",
            "Fixed attention with l = sqrt(n) costs O(n sqrt n) as well",
            "Sec. 4.3",
            True,
            {preset: grows("fixed", f"fixed attention alone, {words}") for preset, words in reach.items()},
            "slope of log time against log n with l = sqrt(n), c = 8; at most 1.6",
        ),
        Claim(
            "C9.memory",
            "Recomputation: a further layer keeps one tensor of n x d for the backward pass",
            "Sec. 5.4",
            True,
            {"quick": stored},
        ),
        Claim(
            "C9.exact",
            "The fast path is exact: output and gradients differ by less than 5e-6 from dense attention with a mask",
            "ours",
            True,
            {
                "quick": replace(
                    at_most(
                        worst(
                            *(level("speed", p, "largest_difference", "difference") for p in ("strided", "fixed")),
                            better="lower",
                        ),
                        5e-6,
                        "standard normal inputs, float32",
                        1,
                    ),
                    resampling="exact",
                )
            },
        ),
    ]
    for n, against, goal in ((4096, "masked", 13), (4096, "causal", 7), (16384, "masked", 45), (16384, "causal", 18)):
        rule = times(f"{against}_ratio_{n}", ("speed", "strided"), f"{SPEED_DATA}, n = {n:,}", gate=goal)
        claims.append(
            Claim(
                f"C9.{against}.{n}",
                f"Strided attention at n = {n:,} is at least {goal} times faster, forward and backward, than dense "
                + ("attention with the same mask" if against == "masked" else "attention with the causal mask alone"),
                "ours: a goal, not the paper's number",
                True,
                {"quick": rule},
            )
        )
    return claims
