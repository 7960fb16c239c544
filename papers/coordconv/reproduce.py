"""CoordConv (Liu et al., NeurIPS 2018): the paper as presets. Each part of it has its experiments and claims in a file.

`python -m papers.coordconv.reproduce` trains and judges; importing this loads no torch.
"""

from common.command import paper_command
from common.errors import main
from common.paper import Experiment, Metric, Paper, Preset
from papers.coordconv import supervised
from papers.coordconv.atari import experiments as atari
from papers.coordconv.config import Config
from papers.coordconv.detection import experiments as detection
from papers.coordconv.gan import experiments as gan
from papers.coordconv.imagenet import experiments as imagenet

PARTS = (supervised, imagenet, detection, gan, atari)


def experiments(preset: str) -> tuple[Experiment, ...]:
    """The experiments of every part at this scale."""
    return tuple(experiment for part in PARTS for experiment in part.EXPERIMENTS.get(preset, ()))


def metrics() -> dict[str, Metric]:
    """The metrics of all parts. ValueError where two parts call different numbers by one name."""
    found: dict[str, Metric] = {}
    for part in PARTS:
        for name, metric in part.METRICS.items():
            if found.setdefault(name, metric) != metric:
                raise ValueError(f"two parts of CoordConv describe the metric {name} differently")
    return found


PRESETS = (
    Preset("smoke", experiments("smoke"), cost="1 min", description="every code path, for CI"),
    Preset(
        "quick",
        experiments("quick"),
        cost="10 min on 2 cores",
        description="coordinates to pixels and back on a 32x32 canvas, against deconvolutions and convolutions",
    ),
    Preset(
        "cpu",
        experiments("cpu"),
        cost="about 2 hours on 2 cores; MNIST in DATA_DIR for one experiment",
        description="rendering, detection, GAN, VAE and a study of what makes it work, small and short",
    ),
    Preset(
        "gpu",
        experiments("gpu"),
        cost="about an hour on one GPU (estimated)",
        description="the paper's networks on its 64x64 canvas with shortened schedules",
        needs_gpu=True,
        bf16=True,
    ),
    Preset(
        "paper",
        experiments("paper"),
        cost="days on one GPU, most of them ImageNet and Atari (estimated)",
        description="the official sweeps and schedules; ImageNet, LSUN and Atari where they are",
        needs_gpu=True,
        bf16=True,
    ),
)
PAPER = Paper(
    name="coordconv",
    title="An intriguing failing of convolutional neural networks and the CoordConv solution",
    citation="Liu, Lehman, Molino, Petroski Such, Frank, Sergeev, Yosinski. NeurIPS 2018. arXiv 1807.03247",
    function="papers.coordconv.module:run",
    presets=PRESETS,
    claims=tuple(claim for part in PARTS for claim in part.CLAIMS),
    metrics=metrics(),
    check_config=Config.of,
    bench="papers.coordconv.bench:rows",
    pictures="papers.coordconv.gallery:draw",
)

if __name__ == "__main__":
    main(lambda: paper_command(PAPER))
