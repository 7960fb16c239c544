"""What trained networks leave for the pictures, and the pictures that are drawn of it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common.report.plots import png
from papers.sparse_transformer import artifacts, gallery, pictures
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.data import Corpus
from papers.sparse_transformer.method import Pattern, full_mask
from papers.sparse_transformer.network import SparseTransformer


def settings(**changes: Any) -> Config:
    small = {"data": "python", "context": 24, "stride": 4, "layers": 2, "width": 8, "heads": 2, "feedforward": 2,
             "query_width": 1, "positions": "attention", "dropout": 0.0}  # fmt: skip
    return Config.of({**small, **changes})


def corpus(decode: str = "text", vocabulary: int = 96) -> Corpus:
    numbers = np.random.default_rng(0).integers(0, vocabulary, 1200).astype(np.uint8)
    grid = (6, 4, 1) if decode == "image" else None
    part = numbers.reshape(-1, 24) if grid else numbers
    return Corpus("items" if grid else "stream", part, part, part, vocabulary, grid, "", decode)


def folder(path: Path, seed: int = 1000) -> Any:
    (path / "artifacts").mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(artifact=lambda name: path / "artifacts" / name, spec=SimpleNamespace(seed=seed))


def trained(config: Config, vocabulary: int = 96, grid: tuple[int, ...] | None = None) -> SparseTransformer:
    torch.manual_seed(0)
    return SparseTransformer(config, vocabulary, grid)


def run(experiment: str, method: str, **metrics: Any) -> dict[str, Any]:
    return {"experiment": experiment, "method": method, "seed": 1000, "status": "finished", "metrics": metrics}


def place(root: Path, run: dict[str, Any]) -> Path:
    return root / run["experiment"] / run["method"] / "seed-1000"


def store(root: Path, run: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    place(root, run).mkdir(parents=True)
    (place(root, run) / "config.json").write_text(json.dumps({"config": config}))
    return run


def test_a_small_network_leaves_samples_and_weights_of_its_pattern(tmp_path: Path) -> None:
    config = settings(pattern="strided", combine="heads")
    artifacts.save(trained(config), corpus(), config, folder(tmp_path))
    with np.load(tmp_path / "artifacts" / "samples.npz") as found:
        assert found["tokens"].shape == found["data"].shape == (2, 24) and found["tokens"].dtype == np.uint8
        assert np.array_equal(found["data"].ravel(), corpus().test[:48]) and str(found["decode"]) == "text"
    with np.load(tmp_path / "artifacts" / "attention.npz") as found:
        weights = found["weights"].astype(np.float32)
        assert list(found["layers"]) == list(found["heads"]) == [0, 1] and found["cell"] == 1
    mask = full_mask(trained(config).blocks[0].attention.patterns, 24, 2, torch.device("cpu")).numpy()
    assert ((weights > 0) == mask).all() and np.allclose(weights.sum(-1), 1, atol=2e-3)


def test_long_sequences_are_cut_and_their_maps_pooled(tmp_path: Path) -> None:
    config = settings(context=600, stride=24, pattern="local", heads=1, layers=1)
    artifacts.save(trained(config), corpus(), config, folder(tmp_path))
    with np.load(tmp_path / "artifacts" / "attention.npz") as found:
        assert found["weights"].shape == (1, 1, 128, 128) and (found["length"], found["cell"]) == (512, 4)
        assert found["weights"].dtype == np.float16
    with np.load(tmp_path / "artifacts" / "samples.npz") as found:
        assert found["tokens"].shape == (2, 512)


def test_large_networks_and_later_seeds_leave_nothing(tmp_path: Path) -> None:
    for config, kind, seed in ((settings(), "text", 1001), (settings(layers=400, width=1024), "image", 1000)):
        network = SimpleNamespace(eval=lambda: None)
        artifacts.save(network, corpus(kind), config, folder(tmp_path, seed))  # type: ignore[arg-type]
    assert not list((tmp_path / "artifacts").iterdir())


def test_without_runs_only_the_patterns_are_drawn(tmp_path: Path) -> None:
    (picture,) = pictures.draw({"runs": []}, tmp_path)
    assert picture.name == "connectivity" and png(picture.figure, picture.name).startswith(b"\x89PNG")


def test_time_and_memory_are_drawn_with_their_floors(tmp_path: Path) -> None:
    def timing(value: float) -> dict[str, float]:
        return {"mean": value, "std": 0.1, "n": 3}

    sizes = {"sizes": [64, 256], "heads": [4, 2], "calls": [1, 1], "seed": 1000}
    measured: dict[str, Any] = {"sparse_ms_64": timing(4), "sparse_ms_256": timing(8), "slope": timing(1.0)}
    ratios = {"masked_ratio_64": timing(2), "causal_ratio_64": timing(1.5), "masked_ratio_256": timing(4)}
    runs = [
        store(tmp_path, run("speed", "strided", **measured, **ratios), sizes),
        store(tmp_path, run("speed", "fixed", **measured), {**sizes, "pattern": "fixed", "summary": 2}),
        store(tmp_path, run("length", "network-512", working_gb=0.5), {"context": 512, "stride": 16, "layers": 2,
                                                                       "width": 8, "seed": 1000}),
    ]  # fmt: skip
    found = {picture.name: picture for picture in pictures.draw({"runs": runs}, tmp_path)}
    assert [*found] == ["connectivity", "length"]
    time, memory = found["length"].figure.axes
    lines = {str(line.get_label()): line for line in time.lines}
    assert list(lines["strided (slope 1.00)"].get_ydata()) == [1.0, 4.0], "of one head"
    assert list(lines["dense, same mask"].get_ydata()) == [2.0, 16.0]
    pairs = int(full_mask(Pattern("strided", 16), 256, 1, torch.device("cpu")).sum())
    floor = lines["strided, its pairs at dense speed"].get_ydata()
    assert np.asarray(floor)[1] == pytest.approx(pairs * 16 / 256**2)
    assert "network, 2 layers, d = 8" in {str(line.get_label()) for line in memory.lines}


def test_bits_against_context_and_time_are_drawn(tmp_path: Path) -> None:
    runs = [run("context", f"context-{m}", context_bits=4 - m / 100) for m in (12, 16, 20)]
    for method, end in (("dense", 2.0), ("fixed", 1.5)):
        timed = store(tmp_path, run("imdb-time", method, validation_bits=end), {})
        (place(tmp_path, timed) / "curves.csv").write_text(
            f"step,samples,seconds,name,value\n10,40,1.0,validation_bits,3.0\n20,80,2.5,validation_bits,{end}\n"
        )
        runs.append(timed)
    found = {picture.name: picture for picture in pictures.draw({"runs": runs}, tmp_path)}
    assert [*found] == ["connectivity", "context", "imdb-time-seconds"]
    ours, paper = found["context"].figure.axes
    assert list(ours.lines[-1].get_ydata()) == pytest.approx([3.88, 3.84, 3.8])
    assert list(paper.lines[-1].get_ydata()) == list(pictures.TABLE_3.values())
    assert list(found["imdb-time-seconds"].figure.axes[0].lines[1].get_xdata()) == [1.0, 2.5]


@pytest.mark.parametrize("decode", ["text", "image", "audio", "midi", "bytes"])
def test_samples_and_attention_of_every_kind_of_data_are_drawn(tmp_path: Path, decode: str) -> None:
    runs = [run("things", method, validation_bits=2.0) for method in ("strided", "dense", "odd")]
    data = corpus(decode, 90)
    for each in runs[:2]:
        config = settings(pattern=each["method"])
        artifacts.save(trained(config, 90, data.grid), data, config, folder(place(tmp_path, each)))
    found = {picture.name: picture for picture in pictures.draw({"runs": runs}, tmp_path)}
    assert [*found] == ["connectivity", "things-attention", "things-samples"]
    assert [axes.get_ylabel() for axes in found["things-attention"].figure.axes[::4]] == ["dense", "strided"]
    assert png(found["things-samples"].figure, "samples", dpi=40)


def test_text_is_wrapped_and_what_cannot_be_shown_is_a_dot() -> None:
    tokens = np.frombuffer("if a:\n    b = 'ab cd'\n\n\x00é".encode() + b"\xff", np.uint8)
    assert gallery._wrapped(tokens, 11) == ["if a:", "    b = 'ab", " cd'", "", "·é·"]
