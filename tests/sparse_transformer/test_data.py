"""Corpora by name and of the user's files, and their batches."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.corpora import SETS, find
from common.errors import UserError
from papers.sparse_transformer import readers
from papers.sparse_transformer.data import (
    Batches,
    Corpus,
    columns,
    corpus_of_files,
    load_corpus,
    sines,
    to_images,
)
from papers.sparse_transformer.music import chorale_tokens, write_wav
from tests.miniatures import write_cifar10

PIECES = {"train": [[[60, 55, 52, 48]] * 30], "valid": [[[62, 55, -1, 48]] * 20], "test": [[[64, 55, 52, 36]] * 10]}


def settings(**values: Any) -> Any:
    """What `load_corpus` reads of a config."""
    base = {"context": 16, "levels": 16, "noise": 0.05, "side": 16, "size": 0, "split": "official", "text_bytes": 0}
    return SimpleNamespace(**{**base, **values})


def custom(folder: Path, name: str, stored: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(stored)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(stored).hexdigest()}  {name}\n")


def png(size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


class TestBatches:
    def test_items_come_once_an_epoch(self):
        items = np.arange(30, dtype=np.uint8).reshape(10, 3)
        batches = Batches(items, 3)
        index = batches.draw(1000, range(5), 4)
        assert index.shape == (5, 4) and len(batches) == 10
        assert sorted(index.flatten()[:10].tolist()) == list(range(10))
        assert sorted(index.flatten()[10:].tolist()) == list(range(10))
        assert torch.equal(batches.tokens(index[0]), torch.from_numpy(items).long()[index[0]])
        assert batches.tokens(index).shape == (5, 4, 3)

    def test_streams_are_cut_into_adjoining_pieces_from_a_random_offset(self):
        stream = np.arange(103, dtype=np.uint8)
        batches = Batches(stream, 10)
        starts = batches.draw(1000, range(2 * len(batches)), 1).flatten()
        offsets = set()
        for epoch in starts.view(2, len(batches)):
            assert sorted((epoch - epoch.min()).tolist()) == list(range(0, 10 * len(batches), 10))
            offsets.add(int(epoch.min()))
            assert epoch.max() <= 93
        assert len(offsets) == 2
        tokens = batches.tokens(starts)
        assert tokens.dtype == torch.int64 and (tokens == starts[:, None] + torch.arange(10)).all()

    def test_every_token_can_be_drawn(self):
        seen = Batches(np.arange(10, dtype=np.uint8), 4).draw(1, range(200), 1)
        assert seen.min() == 0 and seen.max() == 6

    def test_batches_are_functions_of_seed_and_step(self):
        batches = Batches(np.zeros(997, np.uint8), 10)
        whole = batches.draw(1000, range(40), 8)
        assert torch.equal(whole[17:29], batches.draw(1000, range(17, 29), 8))
        assert not torch.equal(whole, batches.draw(1001, range(40), 8))

    def test_contexts_begin_at_whole_steps(self):
        starts = Batches(np.zeros(402, np.uint8), 8, unit=4).draw(7, range(100), 16)
        assert (starts % 4 == 0).all() and (starts % 8 == 4).any() and starts.max() + 8 <= 402

    def test_evaluation_is_evenly_spread(self):
        stream = Batches(np.arange(107, dtype=np.uint8), 10)
        assert stream.evaluation().shape == (10, 10)
        assert stream.evaluation_index(4).tolist() == [0, 20, 50, 70]
        assert torch.equal(stream.evaluation(99), stream.evaluation())
        items = Batches(np.zeros((7, 5), np.uint8), 5)
        assert items.evaluation_index(3).tolist() == [0, 2, 4] and items.evaluation(0).shape == (7, 5)

    def test_bytes_stay_bytes(self):
        part = np.zeros(100, np.uint8)
        part.flags.writeable = False
        assert Batches(part, 10).data.dtype == torch.uint8
        assert Batches(np.zeros(10, np.uint8), 10).draw(0, range(3), 2).tolist() == [[0, 0]] * 3

    def test_impossible_values(self):
        for part, context, unit in (
            (np.zeros(9, np.uint8), 10, 1),
            (np.zeros((3, 9), np.uint8), 10, 1),
            (np.zeros((0, 10), np.uint8), 10, 1),
            (np.zeros(90, np.int64), 10, 1),
            (np.zeros(90, np.uint8), 10, 4),
        ):
            with pytest.raises(ValueError, match=r"context|uint8"):
                Batches(part, context, unit=unit)


class TestGenerated:
    def test_columns(self):
        images = columns(400, "train", 16, 16, 0.05).reshape(400, 16, 16)
        assert images.dtype == np.uint8 and images.max() == 15
        column = np.median(images, axis=1, keepdims=True)
        # A noise pixel keeps the column's level with probability 1/16.
        assert (images != column).mean() == pytest.approx(0.05 * 15 / 16, abs=0.003)
        assert np.bincount(column.astype(int).flatten(), minlength=16) / column.size == pytest.approx(1 / 16, abs=0.02)
        assert (columns(3, "train", 16, 16, 0.05) == images[:3].reshape(3, -1)).all()
        assert (columns(400, "test", 16, 16, 0.05) != images.reshape(400, -1)).any()

    def test_the_corpus_is_the_same_for_all_seeds(self):
        first = load_corpus(settings(data="columns", context=256), 1000, None)
        other = load_corpus(settings(data="columns", context=256), 1001, None)
        assert first.train.shape == (8192, 256) and first.validation.shape == (512, 256)
        assert (first.test == other.test).all() and first.test.shape == (1024, 256)
        assert (first.kind, first.vocabulary, first.grid, first.decode) == ("items", 16, (16, 16, 1), "image")
        with pytest.raises(UserError, match=r"an image has 256 tokens: set context to that$"):
            load_corpus(settings(data="columns", context=255), 0, None)

    def test_python_source(self):
        corpus = load_corpus(settings(data="python", text_bytes=1_000_000), 0, None)
        assert (corpus.kind, corpus.vocabulary, corpus.grid, corpus.decode) == ("stream", 128, None, "text")
        assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (900_000, 50_000, 50_000)
        assert corpus.train.max() < 128 and "Python 3." in corpus.label and corpus.label.endswith("1,000,000 bytes")

    def test_sines(self):
        tokens = sines(20, "train")
        assert tokens.shape == (20 * 2048,) and tokens.dtype == np.uint8 and (sines(20, "train") == tokens).all()
        assert 100 < tokens.mean() < 155 and tokens.std() > 20
        corpus = load_corpus(settings(data="sines"), 0, None)
        assert corpus.decode == "audio" and len(corpus.train) == 1 << 20 and corpus.vocabulary == 256

    def test_to_images(self):
        images = to_images(np.array([[0, 1, 2, 15]]), (2, 2, 1), 16)
        assert images.shape == (1, 2, 2, 1) and images.flatten().tolist() == [0, 17, 34, 255]


class TestRealSets:
    def test_enwik8_is_split_as_the_paper_does(self, tmp_path):
        stream = np.random.RandomState(0).bytes(10_000)
        custom(tmp_path / "enwik8", "enwik8", stream)
        corpus = load_corpus(settings(data="enwik8"), 0, tmp_path)
        assert corpus.label == "custom (in the format of enwik8)" and corpus.vocabulary == 256
        assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [9000, 500, 500]
        assert np.concatenate([corpus.train, corpus.validation, corpus.test]).tobytes() == stream
        with pytest.raises(UserError, match=r"too short: .* 9,000, 500, 500 tokens, and each needs 501 \("):
            load_corpus(settings(data="enwik8", context=501), 0, tmp_path)

    def test_imdb_layouts_give_the_same_bytes(self, tmp_path, monkeypatch):
        reviews = [f"review {i} <br /> of film {i} é" for i in range(12)]
        table = "".join(f"{i}\tunsup\t0\t{review}\n" for i, review in enumerate(reviews)).encode()
        custom(tmp_path / "tsv" / "imdb", "imdb_unsup.tsv.bz2", bz2.compress(table))
        folder = tmp_path / "folder" / "imdb" / "aclImdb" / "train" / "unsup"
        folder.mkdir(parents=True)
        for i, review in enumerate(reviews):
            (folder / f"{i}_0.txt").write_text(f" {review.replace(' of ', chr(9) + 'of ')}\n")
        (tmp_path / "packed" / "imdb").mkdir(parents=True)
        path = tmp_path / "packed" / "imdb" / "aclImdb_v1.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "folder" / "imdb" / "aclImdb", "aclImdb")
        texts = [readers.imdb(find("imdb", tmp_path / layout)).tobytes() for layout in ("tsv", "folder")]
        monkeypatch.setattr(readers, "check_archive", lambda found: None)
        texts.append(readers.imdb(find("imdb", tmp_path / "packed")).tobytes())
        assert texts == ["".join(f"{review}\n" for review in reviews).encode()] * 3
        assert len(readers.imdb(find("imdb", tmp_path / "tsv"), 50)) == 50
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(UserError, match="is not a whole archive"):
            readers.imdb(find("imdb", tmp_path / "packed"))

    def test_chorales(self, tmp_path):
        custom(tmp_path / "jsb_chorales", "Jsb16thSeparated.json", json.dumps(PIECES).encode())
        corpus = load_corpus(settings(data="chorales", context=8), 0, tmp_path)
        assert (corpus.train == chorale_tokens(map(np.array, PIECES["train"]))).all()
        assert (corpus.unit, corpus.vocabulary, corpus.decode, corpus.grid) == (4, 90, "midi", None)
        with pytest.raises(UserError, match=r"4 tokens: set context to a multiple of that$"):
            load_corpus(settings(data="chorales", context=10), 0, tmp_path)
        for text in ("[1", "{}", json.dumps({**PIECES, "test": [[[1, 2]]]})):
            with pytest.raises(UserError, match="x does not hold chorales as"):
                readers.chorales(text.encode(), "x")

    def test_imagenet64_from_folders_tars_and_arrays(self, tmp_path):
        rows = np.arange(44, dtype=np.uint8)
        for name, part in (("train_64x64", rows[:40]), ("valid_64x64", rows[40:])):
            folder = tmp_path / "a" / "imagenet64" / name
            folder.mkdir(parents=True)
            for i in part:
                (folder / f"{i:07}.png").write_bytes(png((64, 64), (int(i), 1, 2)))
            (tmp_path / "b").mkdir(exist_ok=True)
            with tarfile.open(tmp_path / "b" / f"{name}.tar", "w") as archive:
                archive.add(folder, name)
        corpus = load_corpus(settings(data="imagenet64", context=12_288), 0, tmp_path / "a")
        packed = load_corpus(settings(data="imagenet64", context=12_288), 0, tmp_path / "b")
        assert corpus.grid == (64, 64, 3) and corpus.label.endswith("40 + 4 images")
        for part, first in (("train", 0), ("validation", 38), ("test", 40)):
            array = getattr(corpus, part)
            assert array[:, 0].tolist() == rows[first : first + len(array)].tolist()
            assert (array == getattr(packed, part)).all()
        assert corpus.train[0, :6].tolist() == [0, 1, 2, 0, 1, 2]
        (tmp_path / "c").mkdir()
        np.save(tmp_path / "c" / "imagenet64-train.npy", corpus.train)
        np.save(tmp_path / "c" / "imagenet64-valid.npy", corpus.test.reshape(-1, 64, 64, 3))
        arrays = readers.imagenet64(find("imagenet64", tmp_path / "c"))
        assert (arrays[0] == corpus.train[:-1]).all() and (arrays[2] == corpus.test).all()
        np.save(tmp_path / "c" / "imagenet64-valid.npy", corpus.test.astype(np.float32))
        with pytest.raises(UserError, match=r"float32 \[4, 12288\], not uint8 64x64x3"):
            readers.imagenet64(find("imagenet64", tmp_path / "c"))
        (tmp_path / "a/imagenet64/valid_64x64/0000041.png").write_bytes(png((32, 64), (0, 0, 0)))
        with pytest.raises(UserError, match=r"0000041.png is 32x64, not 64x64"):
            load_corpus(settings(data="imagenet64", context=12_288), 0, tmp_path / "a")

    def test_recordings_keep_to_one_part(self, tmp_path):
        for i in range(3):
            write_wav(tmp_path / "piano" / f"{i}.wav", np.full(400, i / 4))
        corpus = load_corpus(settings(data="music"), 0, tmp_path)
        assert [len(set(p.tolist())) for p in (corpus.train, corpus.validation, corpus.test)] == [1, 1, 1]
        assert corpus.train[0] < corpus.validation[0] < corpus.test[0] and corpus.label.endswith("3 WAV files, 12 kHz")
        with (tmp_path / "piano" / "maestro-v3.0.0.csv").open("w", newline="") as file:
            rows = [["split", "audio_filename"], ["test", "0.wav"], ["train", "2004/1.wav"], ["validation", "2.wav"]]
            csv.writer(file).writerows(rows)
        official = load_corpus(settings(data="music"), 0, tmp_path)
        assert official.test[0] < official.train[0] < official.validation[0]


class TestCifar:
    def test_reduction_is_an_area_average(self):
        image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
        assert readers.reduced(image, 2).flatten().tolist() == [3, 5, 11, 13]  # 2.5, 4.5, 10.5, 12.5
        assert readers.reduced(np.full((2, 4, 4, 3), 255, np.uint8), 1).max() == 255
        with pytest.raises(UserError, match="cannot be reduced to 3x3"):
            readers.reduced(image, 3)

    def test_validation_is_that_of_the_code(self):
        from sklearn.model_selection import train_test_split as official

        from common.data.splits import train_test_split

        train, validation = train_test_split(50_000, readers.CIFAR_VALIDATION, readers.CIFAR_SEED)
        expected = official(np.arange(50_000), test_size=2000, random_state=11172018)
        assert set(train) == set(expected[0]) and set(validation) == set(expected[1])

    def test_items_are_rows_of_pixels(self, tmp_path, monkeypatch):
        monkeypatch.setattr(readers, "CIFAR_VALIDATION", 6)
        write_cifar10(tmp_path, 20, test=False)
        corpus = load_corpus(settings(data="cifar10", context=3072, split="holdout"), 0, tmp_path)
        assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [74, 6, 20]
        assert corpus.grid == (32, 32, 3) and "holdout" in corpus.label
        small = load_corpus(settings(data="cifar10", context=192, size=8, split="holdout"), 0, tmp_path)
        assert small.grid == (8, 8, 3) and small.train.shape == (74, 192) and small.label.endswith("reduced to 8x8")
        pixels = corpus.train[0].reshape(32, 32, 3)
        assert small.train[0].reshape(8, 8, 3)[0, 0, 0] == (pixels[:4, :4, 0].sum(dtype=int) + 8) // 16


class TestOwnFiles:
    @pytest.mark.parametrize(
        ("name", "pack"),
        [("a.txt", bytes), ("a.gz", gzip.compress), ("a.txt.bz2", bz2.compress), ("a.xz", lzma.compress)],
    )
    def test_any_file_is_bytes(self, name, pack, tmp_path):
        text = "Größe und Maß. ".encode() * 100
        (tmp_path / name).write_bytes(pack(text))
        corpus = corpus_of_files([tmp_path / name], 32)
        assert np.concatenate([corpus.train, corpus.validation, corpus.test]).tobytes() == text
        assert (corpus.kind, corpus.decode, corpus.vocabulary, corpus.label) == ("stream", "text", 256, name)
        assert corpus.item_length is None and len(corpus.test) == len(text) // 20

    def test_each_part_holds_a_context(self, tmp_path):
        (tmp_path / "x.bin").write_bytes(bytes(range(90)))
        corpus = corpus_of_files([tmp_path / "x.bin"], 30)
        assert [len(p) for p in (corpus.train, corpus.validation, corpus.test)] == [30, 30, 30]
        assert corpus.decode == "bytes"
        with pytest.raises(UserError, match=r"x.bin is too short: train, .* smaller context$"):
            corpus_of_files([tmp_path / "x.bin"], 31)

    def test_folders_of_any_files(self, tmp_path):
        for name in ("b.py", "a.py", ".hidden"):
            (tmp_path / name).write_text(name * 40)
        corpus = corpus_of_files([tmp_path], 4)
        assert corpus.train.tobytes().startswith(b"a.py") and corpus.test.tobytes().endswith(b"b.py")

    def test_images(self, tmp_path):
        for i in range(5):
            (tmp_path / f"{i}.png").write_bytes(png((6, 4), (i, 0, 0)))
        (tmp_path / "about.txt").touch()
        corpus = corpus_of_files([tmp_path], 999)
        assert (corpus.kind, corpus.grid, corpus.item_length) == ("items", (4, 6, 3), 72)
        parts = [corpus.train, corpus.validation, corpus.test]
        assert [len(part) for part in parts] == [3, 1, 1] and sorted(np.concatenate(parts)[:, 0]) == list(range(5))
        (tmp_path / "5.png").write_bytes(png((4, 6), (0, 0, 0)))
        with pytest.raises(UserError, match=r"5.png is 4x6, but .*0.png is 6x4: give all images the same size"):
            corpus_of_files([tmp_path])
        (tmp_path / "5.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"5.png cannot be read as an image \(it is empty\)"):
            corpus_of_files([tmp_path])

    def test_grey_images_have_one_channel(self, tmp_path):
        for i in range(3):
            (tmp_path / f"{i}.png").write_bytes(png((4, 4), (i, i, i)))
        assert corpus_of_files([tmp_path]).grid == (4, 4, 1)
        with pytest.raises(UserError, match="1 images are too few"):
            corpus_of_files([tmp_path / "1.png"])

    def test_arrays(self, tmp_path):
        images = np.random.RandomState(0).randint(0, 256, (40, 4, 4), np.uint8)
        np.savez(tmp_path / "x.npz", images=images, labels=np.arange(40))
        np.save(tmp_path / "x.npy", images[..., None])
        for name in ("x.npz", "x.npy"):
            corpus = corpus_of_files([tmp_path / name])
            assert corpus.grid == (4, 4, 1) and [len(corpus.train), len(corpus.test)] == [36, 2]
        np.save(tmp_path / "x.npy", images.astype(np.float32))
        with pytest.raises(UserError, match=r"x.npy has 0 uint8 arrays"):
            corpus_of_files([tmp_path / "x.npy"])
        (tmp_path / "x.npy").write_bytes(b"nothing")
        with pytest.raises(UserError, match=r"x.npy cannot be read as NumPy arrays"):
            corpus_of_files([tmp_path / "x.npy"])

    def test_audio_and_chorales(self, tmp_path):
        write_wav(tmp_path / "a.wav", np.zeros(400))
        corpus = corpus_of_files([tmp_path / "a.wav"], 16)
        assert corpus.decode == "audio" and [len(corpus.train), len(corpus.test)] == [360, 20]
        (tmp_path / "x.json.xz").write_bytes(lzma.compress(json.dumps(PIECES).encode()))
        assert corpus_of_files([tmp_path / "x.json.xz"], 16).decode == "midi"
        assert corpus_of_files([tmp_path / "x.json.xz"], 16, kind="bytes").decode == "text"
        (tmp_path / "y.json").write_text('{"other": 1}' * 20)
        assert corpus_of_files([tmp_path / "y.json"], 4).decode == "text"

    def test_what_is_wrong_is_one_line(self, tmp_path):
        (tmp_path / "a.txt").write_text("a")
        (tmp_path / "empty").mkdir()
        (tmp_path / "bad.gz").write_bytes(b"no")
        for paths, kind, message in (
            ([tmp_path / "none"], "auto", r"none does not exist: correct its name$"),
            ([tmp_path / "empty"], "auto", r"empty is an empty folder: put files there$"),
            ([], "auto", r"^no files"),
            ([tmp_path / "a.txt"], "pictures", r"no kind of data 'pictures'; there is auto, bytes"),
            ([tmp_path / "a.txt"], "images", r"has no images \(.png"),
            ([tmp_path / "a.txt"], "chorales", r"a.txt does not hold chorales"),
            ([tmp_path / "a.txt"], "auto", r"a.txt is too short"),
            ([tmp_path / "bad.gz"], "auto", r"bad.gz is not a whole gz file: get a fresh copy$"),
        ):
            with pytest.raises(UserError, match=message) as raised:
                corpus_of_files(paths, 4, kind)
            assert "\n" not in str(raised.value)
        with pytest.raises(UserError, match="files of your own"):
            load_corpus(settings(data="bytes"), 0, None)


@pytest.mark.parametrize(("data", "name"), [("text", "imdb"), ("chorales", "jsb_chorales"), ("music", "piano")])
def test_sets_that_are_not_there(data, name):
    assert name in SETS
    with pytest.raises(UserError, match=f"^{name} was not found"):
        load_corpus(settings(data=data), 0, None)


def test_a_corpus_says_what_it_is():
    zeros = np.zeros((3, 4), np.uint8)
    assert Corpus("items", zeros, zeros, zeros, 256, (2, 2, 1), "x", "image").item_length == 4
