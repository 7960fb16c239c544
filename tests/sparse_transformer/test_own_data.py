"""The user's own files: `papers.sparse_transformer.train` and `papers.sparse_transformer.sample`."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.curves import read_rows
from common.errors import UserError
from papers.sparse_transformer import own_data, sample, train
from papers.sparse_transformer.module import LanguageModel
from papers.sparse_transformer.music import read_wav, write_wav
from papers.sparse_transformer.sampling import generate

TINY = """
layers: 1
width: 16
heads: 2
steps: 6
batch_size: 4
log_every: 1
evaluate_every: 3
checkpoint_every: 2
steps_per_call: 3
evaluation_items: 4
threads: 1
device: cpu
"""
DIGITS = "0123456789"
random = np.random.default_rng(0)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of data, and a YAML file with settings for a short run."""
    root = tmp_path_factory.mktemp("files")
    (root / "tiny.yaml").write_text(TINY)
    (root / "digits.txt").write_text(DIGITS * 200)
    (root / "short.txt").write_text(DIGITS * 9)
    (root / "empty.txt").write_text("")
    (root / "noise.dat").write_bytes(random.integers(0, 256, 1500, dtype=np.uint8).tobytes())
    for i in range(12):
        pixels = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"images/{i}.png")
    np.savez(root / "grey.npz", images=random.integers(0, 256, (9, 4, 5), dtype=np.uint8), labels=np.arange(9))
    write_wav(root / "hum.wav", np.sin(np.arange(2000) / 7), 12_000)
    piece = [[60 + i % 5, 55, 52, 48 - i % 3] for i in range(40)]
    (root / "chorales.json").write_text(json.dumps({"train": [piece] * 2, "valid": [piece], "test": [piece]}))
    return root


def train_on(run: Run, files: Path, name: str, out: Path, *more: object) -> tuple[int, str, str]:
    return run(train.command, "--data", files / name, "--out", out, "--config", files / "tiny.yaml", *more)


def build(files: Path, name: str, out: Path, *more: object) -> Path:
    arguments = ["--data", files / name, "--out", out, "--config", files / "tiny.yaml", *more]
    assert train.command([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture(scope="module")
def trained(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to count."""
    more = ("--context", 32, "--steps", 120, "--learning_rate", 0.01, "--dropout", 0)
    return build(files, "digits.txt", tmp_path_factory.mktemp("trained") / "model", *more)


@pytest.fixture(scope="module")
def tiny(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after six steps."""
    return build(files, "digits.txt", tmp_path_factory.mktemp("tiny") / "model", "--context", 32)


# ---------------------------------------------------------------- training


def test_text_is_learnt_and_continued(trained: Path, run: Run, tmp_path: Path) -> None:
    info = json.loads((trained / "model.json").read_text())
    assert next(iter(info)) == "schema_version" and info["schema_version"] == 1
    assert (info["decode"], info["vocabulary"], info["grid"], info["label"]) == ("text", 256, None, "digits.txt")
    assert info["tokens"] == {"train": 1800, "validation": 100, "test": 100}
    assert 0 < info["bits"]["test"] < 1.5 and set(info["bits"]) == {"test", "validation", "train"}
    assert (info["config"]["pattern"], info["config"]["stride"], info["config"]["summary"]) == ("fixed", 16, 8)
    status, out, err = run(sample.command, "--model", trained, "--prompt", "34567", "--temperature", 0)
    assert (status, err) == (0, "") and out == (DIGITS * 4)[3:35] + "\n"
    three = ("--model", trained, "--count", 3, "--length", 9, "--prompt", "0", "--seed", 5)
    status, out, err = run(sample.command, *three)
    assert (status, err) == (0, "") and out.splitlines()[::2] == ["--- 1", "--- 2", "--- 3"]
    assert run(sample.command, *three, "--batch_size", 2)[1] == out != run(sample.command, *three, "--seed", 6)[1]
    status, report, _ = run(sample.command, *three, "--out", tmp_path / "all.txt")
    assert (status, report) == (0, f"3 samples of 9 new tokens: {tmp_path / 'all.txt'}\n")
    assert (tmp_path / "all.txt").read_text() == out
    assert run(sample.command, *three, "--out", tmp_path / "each")[0] == 0
    assert [(tmp_path / f"each/{i}.txt").read_text() for i in (1, 2, 3)] == out.splitlines()[1::2]


def test_a_model_is_a_library(trained: Path) -> None:
    model, info = sample.load(trained)
    prompt = sample.tokens_of_text("789", info)
    assert prompt.tolist() == [55, 56, 57]
    tokens = generate(model, 6, torch.from_numpy(prompt), temperature=0)
    assert sample.text_of(tokens[0].numpy()) == "012345"


def test_the_same_command_does_nothing_twice(files: Path, tmp_path: Path, run: Run) -> None:
    def once(*more: object) -> tuple[int, str, str]:
        return train_on(run, files, "digits.txt", tmp_path / "model", "--steps", 2, "--context", 32, *more)

    status, out, err = once()
    assert (status, err) == (0, "")
    assert "data: text, 1,800 bytes to train on, 100 for validation, 100 for the test\n" in out
    assert "fixed attention with stride 16, summary 8\n" in out
    assert "bits per byte (of data that training never saw)\ntrain: " in out
    before = (tmp_path / "model/weights.safetensors").stat().st_mtime_ns
    status, out, _ = once()
    assert status == 0 and "finished already" in out
    assert (tmp_path / "model/weights.safetensors").stat().st_mtime_ns == before
    status, out, _ = once("--pattern", "strided", "--stride", 8)
    assert status == 0 and "it had pattern fixed instead of strided, stride 16 instead of 8" in out
    assert (tmp_path / "model.old-1/model.json").exists()


def test_interrupted_training_ends_as_if_it_had_not_been(
    tiny: Path, files: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimise, calls = LanguageModel.optimise, []

    def interrupted(self: LanguageModel, *arguments: Any) -> Any:
        calls.append(self.now)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return optimise(self, *arguments)

    monkeypatch.setattr(LanguageModel, "optimise", interrupted)
    status, out, _ = train_on(run, files, "digits.txt", tmp_path / "model", "--context", 32)
    assert status == 130 and "stopped (interrupted): the same command resumes" in out
    assert len(calls) == 3 and not (tmp_path / "model/weights.safetensors").exists()
    status, out, err = run(sample.command, "--model", tmp_path / "model")
    assert status == 2 and "has not finished: run the same train command again" in err
    assert train_on(run, files, "digits.txt", tmp_path / "model", "--context", 32)[0] == 0
    assert calls == [0, 1, 2, 3, 4, 5]
    for name in ("weights.safetensors", "model.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tiny / name).read_bytes()
    values = [
        [(r["step"], r["name"], r["value"]) for r in read_rows(p / "curves.csv")] for p in (tiny, tmp_path / "model")
    ]
    assert values[0] == values[1]


# ---------------------------------------------------------------- other kinds of data


def test_images_are_drawn_and_completed(files: Path, tmp_path: Path, run: Run) -> None:
    status, out, err = train_on(run, files, "images", tmp_path / "model", "--steps", 1)
    assert (status, err) == (0, "") and "10 images to train on, 1 for validation, 1 for the test; 4x6 colour" in out
    assert "context 72, strided attention with stride 18" in out and "bits per dimension" in out
    model = ("--model", tmp_path / "model")
    assert run(sample.command, *model, "--count", 5, "--out", tmp_path / "sheet.png")[0] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.mode, sheet.size) == ("RGB", (3 * 7 - 1, 2 * 5 - 1))
    given = files / "images/7.png"
    for keep, rows in ((None, 2), (0.75, 3)):
        more = () if keep is None else ("--keep", keep)
        status, out, err = run(sample.command, *model, "--prompt-file", given, "--out", tmp_path / "done", *more)
        assert (status, err) == (0, "") and f"1 sample of {72 - 18 * rows} new tokens" in out
        with Image.open(given) as before, Image.open(tmp_path / "done/1.png") as after:
            assert (np.asarray(before)[:rows] == np.asarray(after)[:rows]).all()
            assert (np.asarray(before)[rows:] != np.asarray(after)[rows:]).any()


def test_recordings_chorales_arrays_and_bytes(files: Path, tmp_path: Path, run: Run) -> None:
    short = ("--steps", 1, "--context", 32)
    status, out, _ = train_on(run, files, "hum.wav", tmp_path / "hum", *short, "--rate", 6000)
    assert status == 0 and "data: audio, 900 samples to train on" in out and "strided attention with stride 6" in out
    more = ("--prompt_file", files / "hum.wav", "--keep", 0.02)
    assert run(sample.command, "--model", tmp_path / "hum", "--out", tmp_path / "hum.wav", *more)[0] == 0
    assert len(read_wav(tmp_path / "hum.wav", 6000)) == 32

    status, out, _ = train_on(run, files, "chorales.json", tmp_path / "bach", *short)
    assert status == 0 and "data: midi, 328 notes to train on" in out and "stride 4" in out
    assert run(sample.command, "--model", tmp_path / "bach", "--count", 2, "--out", tmp_path / "midi")[0] == 0
    assert [path.read_bytes()[:4] for path in sorted((tmp_path / "midi").iterdir())] == [b"MThd"] * 2

    status, out, _ = train_on(run, files, "noise.dat", tmp_path / "noise", *short)
    assert status == 0 and "data: bytes, 1,350 bytes to train on" in out
    drawn = ("--model", tmp_path / "noise", "--prompt", "abc", "--out", tmp_path / "new.bin")
    assert run(sample.command, *drawn)[0] == 0
    data = (tmp_path / "new.bin").read_bytes()
    assert len(data) == 32 and data.startswith(b"abc")

    status, out, _ = train_on(run, files, "grey.npz", tmp_path / "grey", "--steps", 1, "--pattern", "cubic")
    assert status == 0 and "4x5 grey" in out and "context 20, cubic attention with stride 3" in out
    assert run(sample.command, "--model", tmp_path / "grey", "--out", tmp_path / "grey.png")[0] == 0
    with Image.open(tmp_path / "grey.png") as image:
        assert (image.mode, image.size) == ("L", (5, 4))


def test_settings_follow_from_data_and_context(files: Path) -> None:
    text, images = own_data.read(files / "digits.txt"), own_data.read(files / "images")
    settings = own_data.settings_of({"steps": 400}, text, "cuda")
    assert (settings.context, settings.stride, settings.summary, settings.positions) == (512, 64, 8, "attention")
    assert (settings.warmup, settings.ema_decay, settings.evaluate_every) == (20, 0.975, 40)
    settings = own_data.settings_of({"pattern": "strided", "context": 4900}, text)
    assert (settings.stride, settings.summary, settings.recompute) == (70, 0, True)
    settings = own_data.settings_of({"pattern": "fixed"}, images)
    assert (settings.context, settings.stride, settings.summary, settings.positions) == (72, 18, 8, "data")
    with pytest.raises(UserError, match="an image of this data has 72 tokens"):
        own_data.settings_of({"context": 64}, images)


def test_fingerprint_is_of_the_content(files: Path, tmp_path: Path) -> None:
    def of(path: Path) -> str:
        return own_data.fingerprint(own_data.read(path))

    copy = tmp_path / "copy.txt"
    copy.write_bytes((files / "digits.txt").read_bytes())
    assert of(copy) == of(files / "digits.txt")
    copy.write_bytes((files / "digits.txt").read_bytes()[:-1] + b"x")
    assert of(copy) != of(files / "digits.txt")


# ---------------------------------------------------------------- what is wrong is one line


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ("nothing.txt", (), "there is no such file or folder"),
        ("empty.txt", (), "empty.txt is empty: give a file or a folder with data"),
        ("short.txt", (), "give more data or a smaller context"),
        ("digits.txt", ("--pattern", "spiral"), "no pattern 'spiral'; there is dense, local, strided, fixed, cubic"),
        ("digits.txt", ("--context", 32, "--stride", 33), "--stride 33 is more than the context 32: choose one near 6"),
        ("digits.txt", ("--context", 32, "--summary", 40, "--stride", 16), "summary must lie in 1..16"),
        ("digits.txt", ("--context", 32, "--heads", 3), "3 heads do not divide width = 16"),
        (
            "digits.txt",
            ("--context", 32, "--combine", "interleaved", "--cycle", "block,rows"),
            "no set 'rows' in cycle",
        ),
        ("digits.txt", ("--kind", "film"), "no kind of data 'film'"),
        ("digits.txt", ("--kind", "images"), "no images"),
        ("digits.txt", ("--context", 0), "--context must be at least 1"),
        ("digits.txt", ("--device", "abacus"), "abacus"),
        ("digits.txt", ("--wings", 2), "--wings"),
        ("images", ("--context", 64), "an image of this data has 72 tokens; leave it out"),
        ("chorales.json", ("--context", 30), "multiple"),
    ],
)
def test_wrong_training(data: str, more: tuple, message: str, files: Path, tmp_path: Path, run: Run) -> None:
    status, out, err = train_on(run, files, data, tmp_path / "model", *more)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_wrong_folders(files: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("keep me")
    for out, message in (
        (tmp_path / "full", "holds other files"),
        (tmp_path / "full/letter.txt", "letter.txt is a file: choose a folder"),
        (tmp_path / "full/letter.txt/model", "letter.txt is a file: choose a folder"),
        (files / "images/model", "lies inside the data folder"),
    ):
        status, _, err = train_on(run, files, "images", out)
        assert status == 2 and message in err and err.count("\n") == 1
    assert run(train.command, "--data", files)[::2] == (
        2, "error: --out is missing: give --data FILE_OR_FOLDER --out FOLDER; --help explains them\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--prompt", "0" * 32), "32 tokens of prompt and 1 new do not fit into the model's context of 32: shorten it"),
        (("--prompt", "0" * 30, "--length", 3), "30 tokens of prompt and 3 new do not fit"),
        (("--prompt_file", "digits.txt"), "--keep"),
        (("--prompt_file", "none.txt"), "there is no such file"),
        (("--prompt_file", "short.txt", "--keep", 2), "--keep lies above 0 and up to 1"),
        (("--prompt", "0", "--prompt_file", "digits.txt"), "not both"),
        (("--length", 33), "--length 33 is more than the model's context of 32"),
        (("--temperature", -1), "--temperature is a number from 0 up"),
        (("--top_p", 0), "--top_p lies above 0 and up to 1"),
        (("--count", 0), "--count must be at least 1"),
        (("--out", "short.txt/x"), "short.txt"),
        (("--out", "noise.dat"), "is a file: choose a folder, or a file *.txt"),
    ],
)
def test_wrong_sampling(
    more: tuple, message: str, tiny: Path, files: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    status, out, err = run(sample.command, "--model", tiny, *more)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_folder_without_a_model(tiny: Path, tmp_path: Path, run: Run) -> None:
    def answer() -> tuple[int, str]:
        status, _, err = run(sample.command, "--model", tmp_path / "model")
        assert err.count("\n") == 1
        return status, err

    assert answer()[0] == 2 and "holds no model" in answer()[1]
    (tmp_path / "model").mkdir()
    for name in ("model.json", "settings.json"):
        (tmp_path / "model" / name).write_bytes((tiny / name).read_bytes())
    assert answer()[0] == 2 and "no weights.safetensors" in answer()[1]
    (tmp_path / "model/weights.safetensors").write_bytes((tiny / "weights.safetensors").read_bytes()[:900])
    assert answer()[0] == 2 and "damaged" in answer()[1]
    info = json.loads((tiny / "model.json").read_text())
    (tmp_path / "model/model.json").write_text(json.dumps({**info, "schema_version": 9}))
    assert answer()[0] == 2 and "schema version 9" in answer()[1]
    # A run of the experiments has no model.json.
    (tmp_path / "model/model.json").unlink()
    (tmp_path / "model/weights.safetensors").write_bytes((tiny / "weights.safetensors").read_bytes())
    status, out, err = run(sample.command, "--model", tmp_path / "model", "--length", 3, "--prompt", "ab")
    assert (status, err) == (0, "") and out.startswith("ab")
