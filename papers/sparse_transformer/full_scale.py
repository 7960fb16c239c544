"""Experiments of `gpu` and `paper`: the paper's data, networks and hyper-parameters (spec, sections 4, 5 and 8).

What the paper does not say is taken from the code that OpenAI published later ("DA": distribution_augmentation) or
chosen, and `described` says so. Loads no torch.
"""

from common.paper import DataSource
from papers.sparse_transformer.experiments import Settings, contexts, iteration, patterns, speed, training

CIFAR10, ENWIK8, IMAGENET = DataSource("cifar10"), DataSource("enwik8"), DataSource("imagenet64")
MUSIC = DataSource("piano")
SEEDS = 3
FULL: Settings = {"steps_per_call": 8}


def steps_of(epochs: int, tokens: int, context: int, batch_size: int) -> int:
    """Optimisation steps in so many epochs of so many tokens."""
    return epochs * (tokens // context) // batch_size


# ---------------------------------------------------------------- networks (spec, section 4)

CIFAR10_59M: Settings = {
    **FULL,
    "data": "cifar10",
    "context": 3072,
    "stride": 96,
    "layers": 128,
    "width": 256,
    "heads": 2,
    "feedforward": 2,
    "query_width": 0.5,
    "dropout": 0.25,
    "batch_size": 16,
    "learning_rate": 3.5e-4,
    "warmup": 5000,
    "steps": steps_of(120, 48_000, 1, 16),
}
ENWIK8_95M: Settings = {
    **FULL,
    "data": "enwik8",
    "context": 12_288,
    "stride": 128,
    "layers": 30,
    "width": 512,
    "heads": 8,
    "feedforward": 4,
    "query_width": 1,
    "positions": "attention",
    "dropout": 0.40,
    "batch_size": 16,
    "microbatch": 8,
    "learning_rate": 5e-4,
    "warmup": 5000,
    "steps": steps_of(80, 90_000_000, 12_288, 16),
    "evaluate_every": 1000,
    "evaluation_batch_size": 8,
    "min_context": 6144,
    "checkpoint_every": 1000,
}
IMAGENET_152M: Settings = {
    **FULL,
    "data": "imagenet64",
    "context": 12_288,
    "stride": 128,
    "layers": 48,
    "width": 512,
    "heads": 16,
    "feedforward": 4,
    "query_width": 1,
    "dropout": 0.01,
    "batch_size": 128,
    "microbatch": 8,
    "learning_rate": 1.5e-4,
    "warmup": 5000,
    "steps": steps_of(70, 1_281_149, 1, 128),
    "evaluate_every": 10_000,
    "evaluation_batch_size": 8,
    "checkpoint_every": 1000,
}
IMAGENET_300M: Settings = {**IMAGENET_152M, "layers": 96}
MUSIC_65536: Settings = {
    **IMAGENET_152M,
    "data": "music",
    "context": 65_536,
    "stride": 256,
    "positions": "attention",
    "batch_size": 16,
    "microbatch": 1,
    "evaluation_batch_size": 1,
    "steps": 100_000,
}
# 25M and 3M parameters; the shapes are ours.
MUSIC_262144: Settings = {**MUSIC_65536, "context": 262_144, "stride": 512, "layers": 32, "width": 256, "heads": 8}
MUSIC_1048576: Settings = {**MUSIC_65536, "context": 1_048_576, "stride": 1024, "layers": 14, "width": 128, "heads": 4}
MINIMUM_CONTEXTS = (6144, 9216, 10_752, 11_904, 12_096, 12_160)
"""Table 3."""
TEST_TOKENS = 12_288 + 811 * 6144
"""Of enwik8's test split of 5M bytes: a whole number of windows at each of Table 3's minimum contexts."""
SUMMARY = 32
ABLATED_SUMMARIES, ABLATED_STRIDES = (1, 4, 8, 16, 32), (128, 256)

CIFAR10_TEXT = "CIFAR-10, 59M parameters, 120 epochs; stride 96 and batch 16 as in DA, c = 32 for fixed chosen"
ENWIK8_TEXT = (
    "enwik8, 95M parameters, n = 12,288, 80 epochs; learning rate 5e-4 (blocksparse's example) and batch 16 chosen"
)
MUSIC_TEXT = (
    "piano at 12 kHz, 8-bit mu-law (the paper's recordings are not public); stride sqrt(n), 100,000 steps of 16"
)


def ablations() -> dict[str, Settings]:
    """C10: widths of the summary, and sub-blocks that heads share or have of their own."""
    methods: dict[str, Settings] = {}
    for stride in ABLATED_STRIDES:
        for cells in ABLATED_SUMMARIES:
            fixed = {"pattern": "fixed", "stride": stride, "summary": cells}
            methods[f"fixed-l{stride}-c{cells}"] = fixed
        methods[f"fixed-l{stride}-c8-rotate"] = {"pattern": "fixed", "stride": stride, "summary": 8, "rotate": True}
    return methods


SPEED_SIZES: dict[int, tuple[int, int]] = {16384: (8, 4), 65536: (8, 2), 262144: (8, 1)}
SPEED_TEXT = "standard normal inputs, 8 heads of 64, l = sqrt(n), forward and backward"
SPEED = speed(SPEED_SIZES, SPEED_TEXT, dense_limit=16384, repeats=10)

PAPER = (
    SPEED,
    training("cifar10", patterns(SUMMARY), CIFAR10_59M, CIFAR10_TEXT, SEEDS, CIFAR10),
    training("enwik8", patterns(SUMMARY), ENWIK8_95M, ENWIK8_TEXT, SEEDS, ENWIK8),
    iteration("step-time-cifar10", CIFAR10_59M, patterns(SUMMARY), CIFAR10_TEXT, CIFAR10, steps=8, repeats=10),
    iteration("step-time-enwik8", ENWIK8_95M, patterns(SUMMARY), ENWIK8_TEXT, ENWIK8, steps=4, repeats=10),
    contexts("enwik8-context", "enwik8", MINIMUM_CONTEXTS, TEST_TOKENS, "enwik8, test bytes", SEEDS, ENWIK8),
    training(
        "imagenet64",
        {"strided": {}},
        IMAGENET_152M,
        "ImageNet 64x64 (van den Oord et al.), 152M parameters, 70 epochs; learning rate and batch of 128 as in DA",
        SEEDS,
        IMAGENET,
    ),
    training(
        "imagenet64-300m",
        {"strided": {}},
        IMAGENET_300M,
        "ImageNet 64x64, the 300M parameters of the paper's samples",
        1,
        IMAGENET,
    ),
    training("music-65536", patterns(SUMMARY, "strided", "local"), MUSIC_65536, f"{MUSIC_TEXT}; 152M", SEEDS, MUSIC),
    training("music-262144", {"strided": {}}, MUSIC_262144, f"{MUSIC_TEXT}; 25M, shape chosen", SEEDS, MUSIC),
    training("music-1048576", {"strided": {}}, MUSIC_1048576, f"{MUSIC_TEXT}; 3M, shape chosen", SEEDS, MUSIC),
    training("enwik8-summaries", ablations(), ENWIK8_95M, ENWIK8_TEXT, SEEDS, ENWIK8),
)

# ---------------------------------------------------------------- gpu: about an hour

SHORT: Settings = {"warmup": 200, "ema_decay": 0.99, "evaluate_every": 500, "checkpoint_every": 500}
GPU_ENWIK8: Settings = {
    **ENWIK8_95M,
    **SHORT,
    "context": 4096,
    "layers": 12,
    "dropout": 0.0,
    "recompute": False,
    "microbatch": 0,
    "steps": 1500,
    "evaluation_items": 256,
    "min_context": 0,
}
GPU_CIFAR10: Settings = {
    **CIFAR10_59M,
    **SHORT,
    "layers": 24,
    "dropout": 0.0,
    "recompute": False,
    "steps": 2000,
    "evaluation_items": 1000,
}
THREE = ("dense", "fixed", "strided")
GPU = (
    SPEED,
    iteration("step-time-cifar10", CIFAR10_59M, patterns(SUMMARY, *THREE), CIFAR10_TEXT, CIFAR10, steps=4),
    iteration(
        "step-time-enwik8",
        {**ENWIK8_95M, "batch_size": 4, "microbatch": 0},
        patterns(SUMMARY, *THREE),
        "enwik8, 95M parameters, n = 12,288, batch 4",
        ENWIK8,
        steps=4,
    ),
    training(
        "enwik8",
        patterns(SUMMARY, *THREE),
        GPU_ENWIK8,
        "enwik8, 12 layers, n = 4,096, 1,500 steps of 16",
        SEEDS,
        ENWIK8,
    ),
    training(
        "cifar10", patterns(SUMMARY, *THREE), GPU_CIFAR10, "CIFAR-10, 24 layers, 2,000 steps of 16", SEEDS, CIFAR10
    ),
    contexts(
        "enwik8-context",
        "enwik8",
        (2048, 3072, 3584),
        4096 + 2048 * 256,
        "enwik8, test bytes, n = 4,096",
        SEEDS,
        ENWIK8,
    ),
)
