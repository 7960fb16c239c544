"""Sparse Transformer (Child et al., 2019): the paper as presets. Experiments: `experiments.py` and `full_scale.py`.

`python -m papers.sparse_transformer.reproduce` trains and judges; importing this loads no torch.
"""

from common.command import paper_command
from common.errors import main
from common.paper import Experiment, Metric, Paper, Preset
from papers.sparse_transformer import experiments, full_scale
from papers.sparse_transformer.claims import CLAIMS
from papers.sparse_transformer.config import Config

PRESETS = (
    Preset("smoke", experiments.SMOKE, cost="10 s", description="every code path, for CI"),
    Preset(
        "quick",
        experiments.QUICK,
        cost="13 min on 2 cores",
        description="speed and memory of attention; generated images and source text; no download",
    ),
    Preset(
        "cpu",
        experiments.CPU,
        cost="about 2 hours on 2 cores; IMDb, CIFAR-10 and JSB chorales in DATA_DIR",
        description="longer text, real data at small scale, ablations, 2^20 tokens",
    ),
    Preset(
        "gpu",
        full_scale.GPU,
        cost="about an hour on one H200-class GPU (estimated)",
        description="enwik8 and CIFAR-10 with smaller networks and short schedules; the paper's networks timed",
        needs_gpu=True,
        bf16=True,
    ),
    Preset(
        "paper",
        full_scale.PAPER,
        cost="weeks on one GPU: CIFAR-10 about 10 h a run, enwik8 8 h, ImageNet 64x64 a month (estimated)",
        description="Tables 1-4 and section 4.3 at full length",
        needs_gpu=True,
        bf16=True,
    ),
)


def _bits(split: str, what: str) -> Metric:
    return Metric(
        "bits",
        "lower",
        split,
        "last",
        f"mean -log2 p of a token {what}: bits a dimension (images) or a byte; averaged weights in `gpu`, `paper`",
    )


def _sizes(among: tuple[Experiment, ...]) -> set[int]:
    return {n for experiment in among if experiment.name == "speed" for n in experiment.config["sizes"]}


def _timing(unit: str, better: str, description: str) -> Metric:
    return Metric(unit, better, "none", "mean of repeats", description)


def metrics() -> dict[str, Metric]:
    """Every number that a run returns."""
    found = {
        "test_bits": _bits("test", "of the test split"),
        "validation_bits": _bits("validation", "of the validation split"),
        "train_bits": _bits("train", "of the training split"),
        "context_bits": _bits("test", "with a minimum context, on one stretch of the test split"),
        "seconds_per_step": Metric("s", "lower", "none", "mean of the run", "seconds of a training step, as it came"),
        "evaluation_seconds": Metric("s", "lower", "none", "once", "seconds of the evaluation with a minimum context"),
        "slope": _timing(
            "exponent", "lower", "slope of log time against log n, sparse attention, forward and backward"
        ),
        "causal_slope": _timing("exponent", "lower", "the same of dense causal attention"),
        "largest_difference": Metric(
            "difference",
            "lower",
            "none",
            "once",
            "of output and gradients from the masked path's, standard normal inputs",
        ),
        "step_seconds": Metric("s", "lower", "none", "once", "seconds of one forward and backward pass"),
        "peak_gb": Metric("GB", "lower", "none", "once", "peak memory of the process (on a GPU, of its tensors)"),
        "working_gb": Metric("GB", "lower", "none", "once", "what of the peak came with the pass"),
        "layer_tensors": Metric(
            "tensors of n x d", "lower", "none", "exact", "what a further layer keeps for the backward pass, in float32"
        ),
    }
    for n in sorted(set().union(*(_sizes(preset.experiments) for preset in PRESETS))):
        found[f"sparse_ms_{n}"] = _timing("ms", "lower", f"sparse attention at n = {n:,}, all heads")
        for way, words in (("masked", "dense attention with its mask"), ("causal", "dense causal attention")):
            found[f"{way}_ratio_{n}"] = _timing(
                "ratio", "higher", f"time of {words} over sparse attention's, n = {n:,}"
            )
    for method in ("dense", "local", "strided", "fixed"):
        found[f"{method}_ms"] = _timing("ms", "lower", f"a training step with {method} attention")
        if method != "dense":
            found[f"{method}_speedup"] = _timing(
                "ratio", "higher", f"time of a dense step over one with {method} attention"
            )
    return found


PAPER = Paper(
    name="sparse_transformer",
    title="Generating Long Sequences with Sparse Transformers",
    citation="Child, Gray, Radford, Sutskever. 2019. arXiv:1904.10509",
    function=experiments.RUN,
    presets=PRESETS,
    claims=CLAIMS,
    metrics=metrics(),
    check_config=Config.of,
    bench="papers.sparse_transformer.bench:rows",
    pictures="papers.sparse_transformer.pictures:draw",
)

if __name__ == "__main__":
    main(lambda: paper_command(PAPER))
