"""What a Sparse Transformer models: token sequences by name, generated or read, and batches of them on the device.

A corpus is a stream (text, music: one long sequence, cut into contexts) or items (images: sequences of one length).
Tokens are bytes; an image is flattened row by row, with the channels of a pixel side by side: token t of a 32x32x3
image is (row t // 96, column t // 3 mod 32, channel t mod 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data import corpora
from common.data.splits import train_test_split
from common.errors import UserError
from common.random import Stream
from papers.sparse_transformer import readers
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.music import CHORALE_VOCABULARY, RATE, VOICES, encode_mu_law
from papers.sparse_transformer.readers import Three, split_stream

DATA_SEED = 0
"""Generated sets are the same for every seed of a run: methods and seeds share a test set."""

COLUMNS = {"train": 8192, "validation": 512, "test": 1024}
NOTES = {"train": 512, "validation": 32, "test": 64}
NOTE_SAMPLES = 4096
KINDS = ("auto", "bytes", "images", "audio", "chorales")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ARRAY_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class Corpus:
    """Tokens in three parts. kind: "stream", parts uint8 [N], or "items", parts uint8 [N, n].

    vocabulary: every token lies below it. grid: (H, W, C) of an image, None of a stream. label: the data in words.
    decode: how samples are shown: "text", "image", "audio", "midi" or "bytes". unit: of a stream, the tokens of one
    step (4 voices of a chorale): contexts begin at multiples of it.
    """

    kind: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    vocabulary: int
    grid: tuple[int, ...] | None
    label: str
    decode: str
    unit: int = 1

    @property
    def item_length(self) -> int | None:
        """Tokens of an item, None of a stream."""
        return int(self.train.shape[1]) if self.kind == "items" else None


class Batches:
    """One part of a corpus on a device, as bytes, from which a batch is one gather.

    part: uint8 [N] of a stream, which is read in pieces of `context` tokens, or [N, n] of items. unit: of the corpus.
    ValueError where the part is shorter than the context, or items have another length.
    """

    def __init__(self, part: np.ndarray, context: int, device: torch.device | str = "cpu", unit: int = 1):
        if part.dtype != np.uint8 or part.ndim not in (1, 2):
            raise ValueError(f"a part is uint8 [N] or [N, n], not {part.dtype} {list(part.shape)}")
        if part.ndim == 2 and part.shape[1] != context:
            raise ValueError(f"items have {part.shape[1]} tokens, not the context's {context}")
        if context % unit:
            raise ValueError(f"a context of {context} tokens is no whole number of steps of {unit}")
        self.is_stream, self.context, self.unit = part.ndim == 1, context, unit
        if len(part) < (context if self.is_stream else 1):
            raise ValueError(f"{len(part)} tokens or items are too few for a context of {context}")
        self.pieces = max(1, (len(part) - context + unit) // context) if self.is_stream else len(part)
        self.data = torch.from_numpy(part if part.flags.writeable else part.copy()).to(device)
        self.device = self.data.device
        self._within = torch.arange(context, device=self.device)

    def __len__(self) -> int:
        """Pieces or items in an epoch."""
        return self.pieces

    def draw(self, seed: int, steps: range, batch_size: int) -> Tensor:
        """What the batches of these steps read, int64 [len(steps), batch_size], a function of (seed, step).

        Items: their numbers, a fresh permutation each epoch. Streams: where each piece begins; an epoch cuts the
        stream into adjoining pieces from a random offset on and shuffles them (spec 9).
        """
        stream = Stream(seed, "batches", self.device)
        index = stream.epochs(steps, batch_size, self.pieces)
        if not self.is_stream:
            return index
        places = torch.arange(steps.start * batch_size, steps.stop * batch_size, device=self.device)
        spare = (len(self.data) - self.pieces * self.context) // self.unit + 1
        offset = stream.child("offset").integers(places // self.pieces, 1, spare) * self.unit
        return index * self.context + offset.view_as(index)

    def tokens(self, index: Tensor) -> Tensor:
        """The tokens at an index of `draw` or `evaluation_index`, int64 [*index.shape, context]."""
        if not self.is_stream:
            return self.data[index].long()
        return self.data[index[..., None] + self._within].long()

    def evaluation_index(self, count: int = 0) -> Tensor:
        """`count` pieces or items evenly spread over the part, int64; all that do not overlap where 0 or too many."""
        there = len(self.data) // self.context if self.is_stream else len(self.data)
        count = min(count or there, there)
        index = torch.arange(count, device=self.device) * there // count
        return index * self.context if self.is_stream else index

    def evaluation(self, count: int = 0) -> Tensor:
        """Their tokens, int64 [count, context]."""
        return self.tokens(self.evaluation_index(count))


def to_images(tokens: np.ndarray, grid: Sequence[int], vocabulary: int) -> np.ndarray:
    """Tokens [..., H * W * C] as images uint8 [..., H, W, C] whose brightest value is 255."""
    levels = np.asarray(tokens, np.int64).reshape(*np.shape(tokens)[:-1], *grid)
    return (levels * 255 // (vocabulary - 1)).astype(np.uint8)


def columns(count: int, name: str, side: int, levels: int, noise: float) -> np.ndarray:
    """Images whose columns each have one random level, with a share of uniformly random pixels (spec 10, E2).

    uint8 [count, side * side], row by row; a function of the name.
    """
    stream, images = Stream(DATA_SEED, f"columns/{name}"), torch.arange(count)
    column = stream.child("levels").integers(images, side, levels)
    noisy = stream.child("noisy").uniform(images, side * side) < noise
    random = stream.child("noise").integers(images, side * side, levels)
    return torch.where(noisy, random, column.repeat(1, side)).to(torch.uint8).numpy()


def sines(notes: int, name: str) -> np.ndarray:
    """Decaying sinusoids at 12 kHz as mu-law bytes, uint8 [notes * 2048]; a function of the name.

    A note begins every 2,048 samples and lasts twice as long, so that two overlap. Its pitch is one of 36 semitones
    from 110 Hz up, with an overtone of half the strength; loudness and the time of decay, 50 to 350 ms, are random.
    """
    stream, index = Stream(DATA_SEED, f"sines/{name}"), torch.arange(notes)
    pitch = 110 * 2.0 ** (stream.child("pitch").integers(index, 1, 36).numpy() / 12)
    loudness, decay = (stream.child("strike").uniform(index, 2).double().numpy() * [0.3, 0.3] + [0.1, 0.05]).T
    seconds = np.arange(NOTE_SAMPLES) / RATE
    wave = np.sin(2 * np.pi * pitch * seconds) + 0.5 * np.sin(4 * np.pi * pitch * seconds)
    wave *= loudness[:, None] * np.exp(-seconds / decay[:, None])
    first, second = wave[:, : NOTE_SAMPLES // 2], wave[:, NOTE_SAMPLES // 2 :]
    first[1:] += second[:-1]
    return encode_mu_law(first.reshape(-1))


def load_corpus(config: Config, seed: int, data_dir: Path | None) -> Corpus:
    """The corpus of a run. Every set is the same for all seeds, generated ones too.

    UserError in one line where the data is not there, is damaged or too short, or where the config's context is not
    what the data has (items: their length; chorales: a multiple of 4).
    """
    name = config.data
    if name == "bytes":
        raise UserError("the data 'bytes' are files of your own: give them to papers.sparse_transformer.train")
    if name == "columns":
        size = config.side, config.levels, config.noise
        first, second, third = (columns(count, part, *size) for part, count in COLUMNS.items())
        label = f"generated columns, {config.side}x{config.side}, {config.levels} levels, {config.noise:.0%} noise"
        grid: tuple[int, ...] | None = (config.side, config.side, 1)
        return _checked(Corpus("items", first, second, third, config.levels, grid, label, "image"), config.context)
    if name == "cifar10":
        (first, second, third), label = readers.cifar10(config.split, config.size or 32, data_dir)
        return _checked(_of_images((first, second, third), label), config.context)
    if name == "sines":
        first, second, third = (sines(count, part) for part, count in NOTES.items())
        return _checked(_audio((first, second, third), "generated decaying sinusoids, 12 kHz"), config.context)
    found = corpora.find({"text": "imdb", "chorales": "jsb_chorales", "music": "piano"}.get(name, name), data_dir)
    if name == "imagenet64":
        images = readers.imagenet64(found)
        return _checked(Corpus("items", *images, 256, (64, 64, 3), found.label, "image"), config.context)
    if name == "chorales":
        parts = readers.chorales(corpora.content(found), str(found.path))
        return _checked(_chorales(parts, found.label), config.context)
    if name == "music":
        return _checked(_audio(readers.piano(found), f"{found.label}, 12 kHz"), config.context)
    label = found.label
    if name == "text":
        text = readers.imdb(found, config.text_bytes)
    else:
        text = readers.python() if name == "python" else readers.as_bytes(corpora.content(found))
        text = text[: config.text_bytes or None]
    if config.text_bytes:
        label = f"{label}, the first {len(text):,} bytes"
    vocabulary = 128 if name == "python" else 256
    return _checked(Corpus("stream", *split_stream(text), vocabulary, None, label, "text"), config.context)


def corpus_of_files(
    paths: Sequence[Path | str], context: int | None = None, kind: str = "auto", rate: int = RATE
) -> Corpus:
    """The user's own data: files, or folders whose files (hidden ones left out) are taken in the order of their names.

    kind: "bytes" (any files, one after the other, .gz, .bz2, .xz and .zip decompressed), "images" (of one size, or
    one .npy/.npz of uint8 [N, H, W(, C)]), "audio" (WAV, resampled to `rate`, mono, mu-law), "chorales" (a JSON file
    like Jsb16thSeparated.json), or "auto": by names, else bytes. context: of the network; each part of a stream gets
    at least that many tokens; images take their own length (`item_length`). The last 5 % are the test part, the 5 %
    before validation; of images random ones, of three or more WAV files whole files, of chorales the file's own parts.
    UserError in one line for what is missing, empty, too short, damaged, or not of one size.
    """
    if kind not in KINDS:
        raise UserError(f"no kind of data '{kind}'; there is {', '.join(KINDS)}")
    if not paths:
        raise UserError("no files: name a file or a folder")
    files = readers.files_of([Path(path) for path in paths])
    if kind == "auto":
        kind = _kind_of(files)
    label = ", ".join(Path(path).name for path in paths[:3]) + (f" and {len(paths) - 3} more" if paths[3:] else "")
    if kind == "images":
        return _checked(_of_images(_image_parts(readers.own_images(_of_type(files, kind))), label), None)
    if kind == "audio":
        return _checked(_audio(readers.recordings(_of_type(files, kind), rate), label), context)
    if kind == "chorales":
        return _checked(_chorales(readers.pieces_of(files), label), context)
    data = readers.own_text(files)
    is_text = 0 not in data[:65_536] and _is_utf8(data[:65_536].tobytes())
    parts = split_stream(data, context or 1)
    return _checked(Corpus("stream", *parts, 256, None, label, "text" if is_text else "bytes"), context)


def _kind_of(files: Sequence[Path]) -> str:
    suffixes = [file.suffix.lower() for file in files]
    if (len(files) == 1 and suffixes[0] in ARRAY_SUFFIXES) or any(suffix in IMAGE_SUFFIXES for suffix in suffixes):
        return "images"
    if ".wav" in suffixes:
        return "audio"
    return "chorales" if len(files) == 1 and readers.holds_chorales(files[0]) else "bytes"


def _of_type(files: Sequence[Path], kind: str) -> list[Path]:
    """Only the files of the kind: a folder of images may hold a text beside them. An array comes alone."""
    if kind == "images" and len(files) == 1 and files[0].suffix.lower() in ARRAY_SUFFIXES:
        return list(files)
    known = IMAGE_SUFFIXES if kind == "images" else (".wav",)
    chosen = [file for file in files if file.suffix.lower() in known]
    if not chosen:
        raise UserError(f"{files[0].parent} has no {kind} ({', '.join(known)}): name another folder or another kind")
    return chosen


def _is_utf8(head: bytes) -> bool:
    """Whether the beginning of a file is UTF-8; a character that the cut divides does not count."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return len(head) - error.start < 4 and error.reason == "unexpected end of data"
    return True


def _image_parts(images: np.ndarray) -> Three:
    held = max(1, len(images) // 20)
    if len(images) < 2 * held + 1:
        raise UserError(f"{len(images)} images are too few: give at least 3, for training, validation and test")
    rest, test = train_test_split(len(images), held, DATA_SEED)
    train, validation = train_test_split(len(rest), held, DATA_SEED)
    return images[rest[train]], images[rest[validation]], images[test]


def _of_images(parts: Three, label: str) -> Corpus:
    """uint8 [N, H, W, C] as items in the order row, column, channel."""
    first, second, third = (part.reshape(len(part), -1) for part in parts)
    return Corpus("items", first, second, third, 256, parts[0].shape[1:], label, "image")


def _audio(parts: Three, label: str) -> Corpus:
    return Corpus("stream", *parts, 256, None, label, "audio")


def _chorales(parts: Three, label: str) -> Corpus:
    return Corpus("stream", *parts, CHORALE_VOCABULARY, None, label, "midi", VOICES)


def _checked(corpus: Corpus, context: int | None) -> Corpus:
    """UserError where the context does not fit the corpus."""
    if corpus.item_length is not None:
        if context not in (None, corpus.item_length):
            raise UserError(f"{corpus.label}: an image has {corpus.item_length:,} tokens: set context to that")
        return corpus
    least = context or 1
    if least % corpus.unit:
        raise UserError(f"a step of {corpus.label} has {corpus.unit} tokens: set context to a multiple of that")
    lengths = [len(part) for part in (corpus.train, corpus.validation, corpus.test)]
    if min(lengths) < least:
        raise UserError(
            f"{corpus.label} is too short: train, validation and test have {', '.join(f'{n:,}' for n in lengths)} "
            f"tokens, and each needs {least:,} (the context): give more data or a smaller context"
        )
    return corpus
