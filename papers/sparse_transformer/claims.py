"""Claims C1-C10 (spec, section 6), each with a rule for every preset that can test it: how many bits. Loads no torch.

Those about speed, memory, context and length are in `cost_claims.py`; how all are judged, in `rules.py`.
"""

from dataclasses import replace

from common.claims import Claim, Quantity, Rule, difference, level, worst
from papers.sparse_transformer.cost_claims import cost, lengths, more_context, speed_of_patterns
from papers.sparse_transformer.experiments import CPU_SEEDS, LENGTH_SEEDS, QUICK_SEEDS
from papers.sparse_transformer.full_scale import MINIMUM_CONTEXTS, SEEDS
from papers.sparse_transformer.rules import (
    BITS,
    CHORALES,
    CIFAR10,
    CONTEXT,
    CPU_TEXT,
    GIGABYTES_AT_2_20,
    IMAGE_BITS,
    IMAGES,
    IMDB,
    PAPER_DATA,
    TEST,
    TEXT,
    TEXT_BITS,
    at_most,
    direction,
    full,
    gap,
    reported,
    short,
    trained,
)

# ---------------------------------------------------------------- Table 1


def table1() -> list[Claim]:
    """C1 to C4."""
    gates = trained("images", "fixed", "local", bits=IMAGE_BITS)
    fixed, local = (gap("images", name, "strided", gates=gates[i : i + 1]) for i, name in enumerate(("fixed", "local")))
    best = worst(fixed, local, better="higher")
    real = worst(*(gap("cifar10", name, "strided") for name in ("fixed", "local")), better="higher")
    text = gap("text", "strided", "fixed", gates=trained("text", "strided", bits=TEXT_BITS))
    enwik8 = "enwik8-context", f"context-{MINIMUM_CONTEXTS[-1]}"
    imagenet = replace(
        at_most(level("imagenet64", "strided", TEST, BITS), 3.52, PAPER_DATA["imagenet64"], SEEDS, stand_in=False),
        paper_protocol=True,
        paper_value=3.437,
        paper_runs=1,
    )
    short_length = level("length", "attention-65536", "working_gb", "GB")
    return [
        Claim(
            "C1",
            "CIFAR-10: strided attention with 59M parameters reaches 2.798 ± 0.004 bits a dimension (PixelSNAIL 2.85, "
            "Image Transformer 2.90, PixelCNN++ 2.92, PixelCNN 3.03)",
            "Table 1; Sec. 7.1",
            True,
            {
                "quick": direction(best, IMAGES, QUICK_SEEDS, gate=0.1),
                "cpu": direction(real, CIFAR10, CPU_SEEDS),
                "gpu": short(gap("cifar10", "fixed", "strided"), "CIFAR-10, 24 layers, 2,000 steps"),
                "paper": reported("cifar10", "strided", TEST, 2.798, 0.004),
            },
            "below full scale: by how many bits strided attention is ahead of the better of fixed and local-only "
            "attention (`gpu`: of fixed)",
        ),
        Claim(
            "C2",
            "enwik8: fixed attention with 95M parameters reaches 0.992 ± 0.001 bits a byte (Transformer-XL with 88M "
            "1.03, with 277M 0.99, deeper self-attention 1.06)",
            "Table 1; Sec. 7.2",
            True,
            {
                "quick": direction(text, TEXT, QUICK_SEEDS, gate=0.03),
                "cpu": direction(gap("imdb", "strided", "fixed"), IMDB, CPU_SEEDS),
                "gpu": short(gap("enwik8", "strided", "fixed"), "enwik8, 12 layers, n = 4,096, 1,500 steps"),
                "paper": reported(*enwik8, CONTEXT, 0.992, 0.001),
            },
            "below full scale: by how many bits fixed attention is ahead of strided; `paper`: at the largest minimum "
            "context of Table 3, since the paper does not say at which",
        ),
        Claim(
            "C3",
            "ImageNet 64x64: strided attention with 152M parameters reaches 3.437 bits a dimension, better than SPN's "
            "3.52 (PixelCNN 3.57, Parallel Multiscale 3.7, Glow 3.81)",
            "Table 1; Sec. 7.3",
            True,
            {"paper": imagenet},
            "one run in the paper; judged by beating the best number before it",
        ),
        Claim(
            "C4",
            "Classical music, 5 s at 12 kHz (65,536 samples): strided attention with 152M parameters reaches 1.97 bits "
            "a byte",
            "Tables 1 and 4; Sec. 7.4",
            True,
            {
                "quick": at_most(
                    short_length, GIGABYTES_AT_2_20 / 16, "attention alone, 65,536 random inputs", LENGTH_SEEDS
                ),
                "paper": full(gap("music-65536", "local", "strided"), "music"),
            },
            "`quick`: memory that a forward and backward pass at this length takes beside the libraries; `paper`: the "
            "recordings are not public and the paper has no baseline, so judged by how far strided attention leads "
            "local-only attention",
        ),
    ]


# ---------------------------------------------------------------- Table 2


def bits_of_patterns() -> list[Claim]:
    """C5 and C6: which pattern suits which data."""
    images = {
        name: gap("images", name, "strided", gates=trained("images", name, bits=IMAGE_BITS))
        for name in ("fixed", "local", "dense")
    }
    equal = difference(
        ("images", "strided"), ("images", "dense"), TEST, BITS, claimed=[("images", "strided")],
        train_gates=trained("images", "dense", bits=IMAGE_BITS),
    )  # fmt: skip
    within = Rule(
        quantity=equal, better="lower", gate=(-0.15, 0.15), null=None, seeds=QUICK_SEEDS, data=IMAGES,
        stand_in=True,
    )  # fmt: skip
    text = gap("text", "strided", "fixed", gates=trained("text", "strided", bits=TEXT_BITS))

    def several(experiment: str, ours: str, *others: str) -> Quantity:
        return worst(*(gap(experiment, other, ours) for other in others), better="higher")

    short_cifar10, short_enwik8 = "CIFAR-10, 24 layers, 2,000 steps", "enwik8, 12 layers, n = 4,096, 1,500 steps"
    return [
        Claim(
            "C5",
            "enwik8 at 12,288 bytes: fixed attention reaches 0.99 bits a byte, dense 1.00 and strided 1.13",
            "Table 2",
            True,
            {
                "quick": direction(text, TEXT, QUICK_SEEDS, gate=0.03, paper_value=0.14),
                "cpu": direction(gap("text-512", "strided", "fixed"), CPU_TEXT, CPU_SEEDS, gate=0.03, paper_value=0.14),
                "gpu": short(gap("enwik8", "strided", "fixed"), short_enwik8),
                "paper": full(gap("enwik8", "strided", "fixed"), "enwik8", 0.14),
            },
            "by how many bits fixed attention is ahead of strided attention",
        ),
        Claim(
            "C5.dense",
            "enwik8 at 12,288 bytes: fixed attention (0.99) is no worse than dense attention (1.00)",
            "Table 2, rows 1 and 2",
            True,
            {
                "cpu": direction(gap("text-512", "dense", "fixed"), CPU_TEXT, CPU_SEEDS, paper_value=0.01),
                "gpu": short(gap("enwik8", "dense", "fixed"), short_enwik8),
                "paper": full(gap("enwik8", "dense", "fixed"), "enwik8", 0.01),
            },
        ),
        Claim(
            "C5.imdb",
            "Text as bytes at equal steps: fixed attention is better than strided and local-only attention",
            "ours, in the spirit of Table 2",
            True,
            {"cpu": direction(several("imdb", "fixed", "strided", "local"), IMDB, CPU_SEEDS)},
        ),
        Claim(
            "C5.time",
            "Text as bytes in equal time: fixed attention is better than dense, strided and local-only attention",
            "ours, in the spirit of Table 2",
            True,
            {
                "cpu": direction(
                    worst(
                        *(
                            difference(("imdb-time", other), ("imdb", "fixed"), TEST, BITS, claimed=[("imdb", "fixed")])
                            for other in ("dense", "strided", "local")
                        ),
                        better="higher",
                    ),
                    IMDB,
                    CPU_SEEDS,
                )
            },
        ),
        Claim(
            "C6",
            "CIFAR-10 at 3,072 bytes: strided attention reaches 2.80 bits a dimension, dense 2.82 and fixed 2.85",
            "Table 2",
            True,
            {
                "quick": direction(images["fixed"], IMAGES, QUICK_SEEDS, gate=0.5, paper_value=0.05),
                "cpu": direction(gap("cifar10", "fixed", "strided"), CIFAR10, CPU_SEEDS),
                "gpu": short(gap("cifar10", "fixed", "strided"), short_cifar10),
                "paper": full(gap("cifar10", "fixed", "strided"), "cifar10", 0.05),
            },
            "by how many bits strided attention is ahead of fixed attention",
        ),
        Claim(
            "C6.dense",
            "CIFAR-10 at 3,072 bytes: strided attention (2.80) is no worse than dense attention (2.82)",
            "Table 2, rows 1 and 3",
            True,
            {
                "quick": within,
                "cpu": direction(gap("cifar10", "dense", "strided"), CIFAR10, CPU_SEEDS),
                "gpu": short(gap("cifar10", "dense", "strided"), short_cifar10),
                "paper": full(gap("cifar10", "dense", "strided"), "cifar10", 0.02),
            },
            "`quick`: bits of strided minus dense attention, to lie within 0.15; elsewhere strided's lead in bits",
        ),
        Claim(
            "C6.local",
            "Images: strided attention is better than its local window alone",
            "ours, in the spirit of Table 2",
            True,
            {
                "quick": direction(images["local"], IMAGES, QUICK_SEEDS, gate=0.1),
                "cpu": direction(gap("cifar10", "local", "strided"), CIFAR10, CPU_SEEDS),
                "paper": direction(gap("cifar10", "local", "strided"), PAPER_DATA["cifar10"], SEEDS, stand_in=False),
            },
        ),
        Claim(
            "C6.chorales",
            "Music of a fixed metre: strided attention is better than fixed and local-only attention",
            "ours, in the spirit of Sec. 7.4",
            True,
            {"cpu": direction(several("chorales", "strided", "fixed", "local"), CHORALES, CPU_SEEDS)},
        ),
    ]


def summaries() -> list[Claim]:
    """C10."""
    cpu, paper = "text-ablation", "enwik8-summaries"
    shorts = TEXT.replace("300", "200")

    def narrow(experiment: str, one: str, *more: str) -> list[Quantity]:
        return [gap(experiment, one, method) for method in more]

    few = worst(
        *narrow(cpu, "fixed-c1", "fixed", "fixed-c8"),
        *narrow(cpu, "fixed-l32-c1", "fixed-l32-c4", "fixed-l32-c8"),
        better="higher",
    )
    all_good = worst(
        *(gap(paper, f"fixed-l{stride}-c1", f"fixed-l{stride}-c{c}") for stride in (128, 256) for c in (8, 16, 32)),
        better="higher",
    )
    own = worst(
        *(gap(paper, f"fixed-l{stride}-c8", f"fixed-l{stride}-c8-rotate") for stride in (128, 256)), better="higher"
    )
    return [
        Claim(
            "C10",
            "Fixed attention with one summary cell (c = 1) is limited; c in {8, 16, 32} does well for l in {128, 256}",
            "Sec. 4.3",
            True,
            {
                "cpu": direction(few, shorts, CPU_SEEDS),
                "paper": direction(all_good, PAPER_DATA["enwik8"], SEEDS, stand_in=False),
            },
            "no numbers in the paper; bits gained over c = 1 by the least of the wider summaries (`cpu`: c in {4, 8}, "
            "l in {16, 32})",
        ),
        Claim(
            "C10.rotate",
            "Fixed attention: heads with sub-blocks of their own do better than heads that share one",
            "Sec. 4.3",
            True,
            {
                "cpu": direction(gap(cpu, "fixed", "fixed-rotate"), shorts, CPU_SEEDS),
                "paper": direction(own, PAPER_DATA["enwik8"], SEEDS, stand_in=False),
            },
            "no numbers in the paper",
        ),
    ]


CLAIMS: tuple[Claim, ...] = (
    *table1(),
    *bits_of_patterns(),
    *speed_of_patterns(),
    *more_context(),
    *lengths(),
    *cost(),
    *summaries(),
)
