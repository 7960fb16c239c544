"""Every row of the paper's tables as a claim (spec, section 6), with a rule for each preset that can test it.

A row's own id is judged by the first setting the row names; `C1.250` and so on are its settings one by one. Numbers
were read in the paper (arXiv 1905.02249 v2). On the full protocol the gate of a verified number with a std is that
number 2 std on the worse side; numbers without a std, and shortened schedules, are judged by their direction.
"""

from dataclasses import replace

from common.claims import Claim, Quantity, Rule, difference, level, paper_gate, worst

Number = tuple[float, float | None]
ERROR, PERCENT = "test_error", "percent"
LABELS = (250, 500, 1000, 2000, 4000)
NULL = 0.0

# ---------------------------------------------------------------- the paper's numbers: error in %, mean and std

NAMES = {
    "mixmatch": "MixMatch",
    "pi-model": "the Pi-Model",
    "pseudo-label": "Pseudo-Label",
    "ssl-mixup": "MixUp (SSL)",
    "vat": "VAT",
    "mean-teacher": "Mean Teacher",
}
TABLE5: dict[str, tuple[str, list[Number]]] = {
    "C1": ("mixmatch", [(11.08, 0.87), (9.65, 0.94), (7.75, 0.32), (7.03, 0.15), (6.24, 0.06)]),
    "C1b": ("pi-model", [(53.02, 2.05), (41.82, 1.52), (31.53, 0.98), (23.07, 0.66), (17.41, 0.37)]),
    "C1c": ("pseudo-label", [(49.98, 1.17), (40.55, 1.70), (30.91, 1.73), (21.96, 0.42), (16.21, 0.11)]),
    "C1d": ("ssl-mixup", [(47.43, 0.92), (36.17, 1.36), (25.72, 0.66), (18.14, 1.06), (13.15, 0.20)]),
    "C1e": ("vat", [(36.03, 2.82), (26.11, 1.52), (18.68, 0.40), (14.40, 0.15), (11.05, 0.31)]),
    "C1f": ("mean-teacher", [(47.32, 4.71), (42.01, 5.86), (17.32, 4.00), (12.17, 0.22), (10.36, 0.25)]),
}
TABLE6: dict[str, tuple[str, list[Number]]] = {
    "C2": ("mixmatch", [(3.78, 0.26), (3.64, 0.46), (3.27, 0.31), (3.04, 0.13), (2.89, 0.06)]),
    "C2b": ("pi-model", [(17.65, 0.27), (11.44, 0.39), (8.60, 0.18), (6.94, 0.27), (5.57, 0.14)]),
    "C2c": ("pseudo-label", [(21.16, 0.88), (14.35, 0.37), (10.19, 0.41), (7.54, 0.27), (5.71, 0.07)]),
    "C2d": ("ssl-mixup", [(39.97, 1.89), (29.62, 1.54), (16.79, 0.63), (10.47, 0.48), (7.96, 0.14)]),
    "C2e": ("vat", [(8.41, 1.01), (7.44, 0.79), (5.98, 0.21), (4.85, 0.23), (4.20, 0.15)]),
    "C2f": ("mean-teacher", [(6.45, 2.43), (3.82, 0.17), (3.75, 0.10), (3.51, 0.09), (3.39, 0.11)]),
}
TABLE7: dict[str, tuple[str, list[Number]]] = {
    "C3": ("mixmatch", [(2.22, 0.08), (2.17, 0.07), (2.18, 0.06), (2.12, 0.03), (2.07, 0.05)]),
    "C3b": ("pi-model", [(13.71, 0.32), (10.78, 0.59), (8.81, 0.33), (7.07, 0.19), (5.70, 0.13)]),
    "C3c": ("pseudo-label", [(17.71, 0.78), (12.58, 0.59), (9.28, 0.38), (7.20, 0.18), (5.56, 0.27)]),
    "C3d": ("ssl-mixup", [(33.03, 1.29), (24.52, 0.59), (14.05, 0.79), (9.06, 0.55), (7.27, 0.12)]),
    "C3e": ("vat", [(7.44, 1.38), (7.37, 0.82), (6.15, 0.53), (4.99, 0.30), (4.27, 0.30)]),
    "C3f": ("mean-teacher", [(2.77, 0.10), (2.75, 0.07), (2.69, 0.08), (2.60, 0.04), (2.54, 0.03)]),
}
# Table 4, CIFAR-10 with 250 and 4000 labels, one run on the hardest split.
TABLE4: dict[str, tuple[str, str, float, float]] = {
    "A0": ("mixmatch", "MixMatch", 11.80, 6.00),
    "A1": ("k1", "without averaging (K=1)", 17.09, 8.06),
    "A2": ("k3", "with K=3", 11.55, 6.23),
    "A3": ("k4", "with K=4", 12.45, 5.88),
    "A4": ("no-sharpening", "without sharpening (T=1)", 27.83, 10.59),
    "A5": ("ema-guess", "with labels guessed by the averaged weights", 11.86, 6.47),
    "A6": ("no-mixup", "without MixUp", 39.11, 10.97),
    "A7": ("mixup-labeled-only", "with MixUp on labelled images only", 32.16, 9.22),
    "A8": ("mixup-unlabeled-only", "with MixUp on unlabelled images only", 12.35, 6.83),
    "A9": ("mixup-separate", "with MixUp separately on each", 12.26, 6.50),
    "A10": ("ict", "Interpolation Consistency Training", 38.60, 6.81),
}

# ---------------------------------------------------------------- the stand-ins

DIGITS, PATE, TEXTURES = "digits-20", "digits-pate", "textures-40"
DIGITS_DATA = "digits 8x8, 20 labels"
CIFAR_CPU = "CIFAR-10 holdout (test: batch 5), 250 labels, small network"
MNIST_CPU = "MNIST, 40 labels, small network"


def _gain(experiment: str, baseline: str, method: str = "mixmatch", claimed: str = "mixmatch") -> Quantity:
    """Points of error by which `method` is better than `baseline`."""
    return difference((experiment, baseline), (experiment, method), ERROR, PERCENT, claimed=[(experiment, claimed)])


def _direction(quantity: Quantity, data: str, seeds: int, stand_in: bool, paper_value: float | None = None) -> Rule:
    return Rule(
        quantity=quantity,
        better="higher",
        gate=NULL,
        null=NULL,
        seeds=seeds,
        data=data,
        stand_in=stand_in,
        paper_value=None if paper_value is None else round(paper_value, 6),
    )


def _margin(quantity: Quantity, gate: float, data: str, seeds: int, paper_value: float | None = None) -> Rule:
    return replace(_direction(quantity, data, seeds, True, paper_value), gate=gate)


def _level(experiment: str, method: str, number: Number, data: str, seeds: int = 5) -> Rule:
    """The paper's own number on its own protocol: a level not to be passed, 2 std above the paper's mean."""
    mean, std = number
    assert std is not None
    gate = round(paper_gate(mean, std, "lower"), 6)
    return Rule(
        quantity=level(experiment, method, ERROR, PERCENT),
        better="lower",
        gate=gate,
        null=gate,
        seeds=seeds,
        data=data,
        paper_protocol=True,
        paper_value=mean,
        paper_std=std,
        paper_runs=5,
    )


def _best(experiment: str, *baselines: str) -> Quantity:
    """How far MixMatch is ahead of the best of the baselines."""
    return worst(*(_gain(experiment, baseline) for baseline in baselines), better="higher")


# ---------------------------------------------------------------- Tables 5-7


def _short_rules(row: str, labels: int, gap: float | None) -> dict[str, Rule]:
    """Rules of Table 5's rows below full scale. gap: the paper's distance between the row's method and MixMatch."""
    rules: dict[str, Rule] = {}
    experiment, data = f"cifar10-{labels}", f"CIFAR-10, {labels} labels, 2^15 steps"
    if labels not in (250, 4000):
        return rules
    if row == "C1":
        rules["gpu"] = _direction(_best(experiment, "supervised", "mean-teacher"), data, 3, False)
        if labels == 250:
            rules["quick"] = _margin(_best(DIGITS, "supervised", "pseudo-label"), 8.0, DIGITS_DATA, 10)
            rules["cpu"] = _direction(
                _best(experiment, "supervised", "pseudo-label", "mean-teacher"), CIFAR_CPU, 3, False
            )
    if row == "C1f":
        rules["gpu"] = _direction(_gain(experiment, "mean-teacher"), data, 3, False, gap)
        if labels == 250:
            rules["cpu"] = _direction(_gain(experiment, "mean-teacher"), CIFAR_CPU, 3, False, gap)
    if row == "C1c" and labels == 250:
        rules["quick"] = _margin(_gain(DIGITS, "pseudo-label"), 8.0, DIGITS_DATA, 10, gap)
        rules["cpu"] = _direction(_gain(experiment, "pseudo-label"), CIFAR_CPU, 3, False, gap)
    return rules


def _full_scale(rules: dict[str, Rule]) -> dict[str, Rule]:
    """Presets with several numbers of labels; where there is one, the row's own entry says it all."""
    return {preset: rule for preset, rule in rules.items() if preset in ("gpu", "paper")}


def _error_rows(table: dict[str, tuple[str, list[Number]]], data: str, words: str, source: str) -> list[Claim]:
    claims = []
    ours = next(iter(table.values()))[1]
    for number, (row, (method, values)) in enumerate(table.items(), start=1):
        for i, (labels, (mean, std)) in enumerate(zip(LABELS, values, strict=True)):
            rules = {"paper": _level(f"{data}-{labels}", method, (mean, std), f"{words}, {labels} labels")}
            if data == "cifar10":
                rules |= _short_rules(row, labels, mean - ours[i][0] if method != "mixmatch" else None)
            note = (
                ""
                if method == "mixmatch" or set(rules) == {"paper"}
                else (f"below full scale: how many points worse than MixMatch {NAMES[method]} is")
            )
            statement = f"{words}, {labels} labels: {NAMES[method]} reaches {mean} ± {std} % error"
            claim = Claim(f"{row}.{labels}", statement, f"{source}, row {number}", True, _full_scale(rules), note)
            if i == 0:
                every = ", ".join(f"{m} ± {s}" for m, s in values)
                head = f"{words}, 250 to 4000 labels: {NAMES[method]} reaches {every} % error (judged at 250)"
                claims.append(Claim(row, head, claim.source, True, rules, note))
            claims.append(claim)
    return claims


def _all_labels(
    row: str, experiment: str, against: str, words: str, value: float, partner: float, source: str, note: str = ""
) -> Claim:
    """Full supervision has no std in the paper: it is judged by being better than MixMatch with 4000 labels."""
    quantity = difference(
        (against, "mixmatch"), (experiment, "supervised"), ERROR, PERCENT, claimed=[(experiment, "supervised")]
    )
    rule = _direction(quantity, f"{words}, all labels", 5, False, partner - value)
    return Claim(
        row,
        f"{words}, all labels, same network: {value} % error, less than MixMatch with 4000 labels",
        source,
        True,
        {"paper": rule},
        note,
    )


# ---------------------------------------------------------------- Tables 1, 2, 4, 8 and section 4.3


def _ablations() -> list[Claim]:
    claims = []
    quick = {"A1": 0.0, "A4": 6.0, "A6": 1.0, "A7": 1.0}
    cpu = ("A4", "A6")
    for number, (row, (method, words, *values)) in enumerate(TABLE4.items(), start=1):
        for labels, value in zip((250, 4000), values, strict=True):
            experiment, data = f"cifar10-ablation-{labels}", f"CIFAR-10, {labels} labels, Table 4's settings"
            full = TABLE4["A0"][2 if labels == 250 else 3]
            if row == "A0":
                weakest = TABLE4["A6"][2 if labels == 250 else 3]
                quantity, gap = _gain(experiment, "no-mixup"), weakest - full
                judged = "judged by its distance to the variant without MixUp"
            else:
                # The direction is the paper's own, also where a variant came out better than MixMatch.
                gap = abs(value - full)
                pair = (experiment, method), (experiment, "mixmatch")
                worse, better = pair if value > full else pair[::-1]
                quantity = difference(worse, better, ERROR, PERCENT, claimed=[(experiment, "mixmatch")])
                judged = f"MixMatch {full} %"
            rules = {"paper": _direction(quantity, data, 5, False, gap)}
            if labels == 250 and row in quick:
                rules["quick"] = _margin(_gain(DIGITS, method), quick[row], DIGITS_DATA, 10, gap)
            if labels == 250 and row in cpu:
                rules["cpu"] = _direction(_gain("cifar10-250", method), CIFAR_CPU, 3, False, gap)
            statement = f"CIFAR-10, {labels} labels: {words} the error is {value} % ({judged})"
            if row in ("A0", "A10"):
                statement = f"CIFAR-10, {labels} labels: {words} reaches {value} % error ({judged})"
            source = f"Table 4, row {number}"
            note = "one run in the paper, on seed 3, with lambda_U 100 and an 8 times shorter ramp than Table 5"
            if labels == 250:
                claims.append(Claim(row, statement, source, True, rules, note))
            claims.append(Claim(f"{row}.{labels}", statement, source, True, _full_scale(rules), note))
    return claims


def _large() -> list[Claim]:
    cifar10 = _level("cifar10-large-4000", "mixmatch", (4.95, 0.08), "CIFAR-10, 4000 labels, 26M parameters")
    cifar100 = _level("cifar100-large-10000", "mixmatch", (25.88, 0.30), "CIFAR-100, 10000 labels, 26M parameters")
    first = "26M parameters, CIFAR-10 with 4000 labels: MixMatch 4.95 ± 0.08 % (SWA 5.00, Mean Teacher 6.28)"
    second = "26M parameters, CIFAR-100 with 10000 labels: MixMatch 25.88 ± 0.30 % (SWA 28.80)"
    return [
        Claim("C4", first, "Table 1, last row", True, {"paper": cifar10}),
        Claim("C4.4000", first, "Table 1, last row", True, {"paper": cifar10}),
        Claim("C4.10000", second, "Table 1, last row", True, {"paper": cifar100}),
    ]


def _stl10() -> list[Claim]:
    rule = _level("stl10-1000", "mixmatch", (10.18, 1.46), "STL-10, 1000 labels (folds)")
    first = "STL-10, 1000 labels: MixMatch 10.18 ± 1.46 % (SWWAE 25.70, CC-GAN2 22.20)"
    direction = _direction(_gain("stl10-5000", "supervised"), "STL-10, 5000 labels", 5, False)
    second = "STL-10, 5000 labels: MixMatch 5.59 % (CutOut 12.74, IIC 11.20); judged by beating supervised training"
    return [
        Claim("C5", first, "Table 2", True, {"paper": rule}),
        Claim("C5.1000", first, "Table 2", True, {"paper": rule}),
        Claim("C5.5000", second, "Table 2", True, {"paper": direction}),
    ]


def _pate() -> list[Claim]:
    accuracy = "test_accuracy"
    gate = round(paper_gate(95.21, 0.17, "higher"), 6)
    full = Rule(
        quantity=level("svhn-pate", "mixmatch", accuracy, PERCENT),
        better="higher",
        gate=gate,
        null=gate,
        seeds=10,
        data="SVHN, 138 noisy answers",
        paper_protocol=True,
        paper_value=95.21,
        paper_std=0.17,
        paper_runs=10,
    )
    gain = difference((PATE, "mixmatch"), (PATE, "supervised"), accuracy, PERCENT, claimed=[(PATE, "mixmatch")])
    quick = _direction(gain, "digits 8x8, 30 teachers", 10, True)
    epsilon = Rule(
        quantity=level("svhn-pate", "teachers", "epsilon", "epsilon"),
        better="lower",
        gate=0.97,
        null=0.97,
        seeds=10,
        data="SVHN, 250 simulated teachers",
        paper_value=0.97,
    )
    statement = (
        "PATE on SVHN: MixMatch 95.21 ± 0.17 % accuracy at epsilon 0.97 (VAT 91.6 % at 4.96: e^4 = 55 times the loss)"
    )
    note = (
        "the student sees 10,000 examples; `quick`: accuracy gained over a student that learns from the answers alone"
    )
    return [
        Claim("C6", statement, "Sec. 4.3", True, {"paper": full, "quick": quick}, note),
        Claim(
            "C6.epsilon",
            "PATE on SVHN: the labels cost a privacy loss of at most epsilon 0.97",
            "Sec. 4.3",
            True,
            {"paper": epsilon},
            "our teachers are simulated; the paper used the published answers of 250 others",
        ),
    ]


def _cnn13() -> list[Claim]:
    claims = []
    rows = (
        ("cifar10", "CIFAR-10", 250, 85.69, 46.34),
        ("cifar10", "CIFAR-10", 4000, 93.16, 88.57),
        ("svhn", "SVHN", 250, 96.41, 94.00),
        ("svhn", "SVHN", 1000, 96.61, 96.00),
    )
    for i, (data, words, labels, ours, teacher) in enumerate(rows):
        quantity = _gain(f"{data}-cnn13-{labels}", "mean-teacher")
        rule = _direction(quantity, f"{words}, {labels} labels, 13-layer network", 5, False, ours - teacher)
        text = f"13-layer network, {words}, {labels} labels: MixMatch {ours} % accuracy, Mean Teacher {teacher} %"
        if i == 0:
            claims.append(Claim("C7", text, "Table 8", True, {"paper": rule}))
        claims.append(Claim(f"C7.{data}.{labels}", text, "Table 8", True, {"paper": rule}))
    return claims


def _other_data() -> list[Claim]:
    """Entries of ours on data the paper does not use: the same questions, marked as stand-ins."""
    textures = _direction(_gain(TEXTURES, "supervised"), "procedural textures, 40 labels, WRN-10-1", 3, True)
    mnist = "mnist-40"
    rows = [
        ("C1.textures", "generated textures: MixMatch beats supervised training", {"quick": textures}),
        (
            "C1.mnist",
            "MNIST, 40 labels: MixMatch beats supervised training, Pseudo-Label and Mean Teacher",
            {"cpu": _direction(_best(mnist, "supervised", "pseudo-label", "mean-teacher"), MNIST_CPU, 3, True)},
        ),
        (
            "A4.mnist",
            "MNIST, 40 labels: without sharpening (T=1) MixMatch is worse",
            {"cpu": _direction(_gain(mnist, "no-sharpening"), MNIST_CPU, 3, True)},
        ),
        (
            "A6.mnist",
            "MNIST, 40 labels: without MixUp MixMatch is worse",
            {"cpu": _direction(_gain(mnist, "no-mixup"), MNIST_CPU, 3, True)},
        ),
    ]
    return [
        Claim(row, statement, "ours, in the spirit of Tables 4 and 5", True, rules) for row, statement, rules in rows
    ]


CLAIMS: tuple[Claim, ...] = (
    *_error_rows(TABLE5, "cifar10", "CIFAR-10", "Table 5"),
    _all_labels(
        "C1g",
        "cifar10-all",
        "cifar10-4000",
        "CIFAR-10",
        4.13,
        6.24,
        "Appendix B.1",
        "the body of the paper (4.2.2) says 4.17",
    ),
    *_error_rows(TABLE6, "svhn", "SVHN", "Table 6"),
    _all_labels("C2.all", "svhn-all", "svhn-4000", "SVHN", 2.59, 2.89, "Table 6"),
    *_error_rows(TABLE7, "svhn-extra", "SVHN with extra", "Table 7"),
    _all_labels("C3.all", "svhn-extra-all", "svhn-extra-4000", "SVHN with extra", 1.71, 2.07, "Tables 3 and 7"),
    *_large(),
    *_stl10(),
    *_pate(),
    *_cnn13(),
    *_ablations(),
    *_other_data(),
)
