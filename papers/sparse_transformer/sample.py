"""New text, images, music or bytes from a trained model: `python -m papers.sparse_transformer.sample --model FOLDER`.

As a library:

    model, info = load("runs/own")
    tokens = generate(model, 100, prompt=tokens_of_text("Once upon", info), temperature=0.8)      # [1, 100]
"""

import sys
from collections.abc import Iterator, Sequence
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.command import parse
from common.errors import UserError, main
from common.files import atomic_path, write_bytes, write_text
from papers.sparse_transformer.own_data import ModelInfo, read_info

if TYPE_CHECKING:
    from torch import Tensor

    from papers.sparse_transformer.network import SparseTransformer

SUFFIX = {"text": ".txt", "image": ".png", "audio": ".wav", "midi": ".mid", "bytes": ".bin"}
"""How the files of each kind of data end."""


def load(folder: Path | str, device: str = "cpu") -> tuple["SparseTransformer", ModelInfo]:
    """A trained network in evaluation mode, and what is known of it; also of a run of the experiments.

    Raises UserError in one line for a folder without a model and for missing or damaged files.
    """
    from safetensors import SafetensorError

    from papers.sparse_transformer.network import load_model

    info = read_info(Path(folder))
    try:
        model, _, _ = load_model(folder)
    except (SafetensorError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:100]
        raise UserError(f"the weights in {folder} are damaged or not of this model ({cause}): train again") from None
    return model.to(device), info


# ---------------------------------------------------------------- prompts


def tokens_of_text(text: str | bytes, info: ModelInfo) -> np.ndarray:
    """The UTF-8 bytes of a text as tokens, int64 [N]; UserError for one that the model has never seen."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return _known(np.frombuffer(data, np.uint8).astype(np.int64), info)


def tokens_of_file(path: Path, info: ModelInfo, keep: float | None = None) -> np.ndarray:
    """The tokens of a prompt's file, int64 [N]: text, bytes or a recording from its start, an image from its top.

    keep: the part of it that is given; by default all, of an image the upper half. An image is stretched to the size
    that the model draws, and cut after a whole row. UserError for a file that is missing or of another kind.
    """
    if not path.is_file():
        raise UserError(f"--prompt_file {path}: there is no such file")
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"--keep lies above 0 and up to 1, not {keep}")
    if info.decode == "midi":
        raise UserError("chorales take no prompt: leave --prompt and --prompt_file out")
    if info.decode == "image":
        rows = _image_rows(path, info)
        return _known(rows[: round(len(rows) * (0.5 if keep is None else keep))].reshape(-1), info)
    if info.decode == "audio":
        from papers.sparse_transformer.music import encode_mu_law, read_wav

        tokens = encode_mu_law(read_wav(path, info.rate)).astype(np.int64)
    else:
        tokens = tokens_of_text(path.read_bytes(), info)
    return tokens[: round(len(tokens) * (1 if keep is None else keep))]


def _image_rows(path: Path, info: ModelInfo) -> np.ndarray:
    from common.data.images import open_image, why_unreadable

    assert info.grid is not None
    height, width, channels = info.grid
    try:
        image = open_image(path, "L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders have many families of errors
        raise UserError(f"--prompt_file: {why_unreadable(path, error)}") from None
    if image.size != (width, height):
        image = image.resize((width, height))
    pixels = np.asarray(image).astype(np.int64)
    return (pixels * (info.vocabulary - 1) + 127) // 255 if info.vocabulary < 256 else pixels


def _known(tokens: np.ndarray, info: ModelInfo) -> np.ndarray:
    if len(tokens) and tokens.max() >= info.vocabulary:
        raise UserError(f"the prompt holds byte {tokens.max()}, and the model only knows those below {info.vocabulary}")
    return tokens


# ---------------------------------------------------------------- what is written


def pictures(tokens: np.ndarray, info: ModelInfo) -> np.ndarray:
    """Images uint8 [N, H, W, C] of tokens [N, H W C]."""
    from papers.sparse_transformer.data import to_images

    assert info.grid is not None
    return to_images(tokens, info.grid, info.vocabulary).reshape(-1, *info.grid)


def sheet(images: np.ndarray) -> np.ndarray:
    """All images [N, H, W, C] on one, in rows as many as columns or one less, with a white line between: [h, w, C]."""
    count, height, width, channels = images.shape
    columns = -(-count // max(1, round(sqrt(count))))
    rows = -(-count // columns)
    page = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        page[top : top + height, left : left + width] = image
    return page


def _write_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(temporary, format="PNG")


def text_of(tokens: np.ndarray) -> str:
    """Bytes [N] as text; what is no UTF-8 becomes the replacement character."""
    return tokens.astype(np.uint8).tobytes().decode("utf-8", "replace")


def write(path: Path, tokens: np.ndarray, info: ModelInfo) -> None:
    """One sample, tokens [N] with its prompt, as a file of its kind. Chorales: the longest of the pieces it holds."""
    if info.decode == "image":
        _write_png(path, pictures(tokens, info)[0])
    elif info.decode == "audio":
        from papers.sparse_transformer.music import decode_mu_law, write_wav

        write_wav(path, decode_mu_law(tokens.astype(np.uint8)), info.rate)
    elif info.decode == "midi":
        from papers.sparse_transformer.music import VOICES, chorales_of_tokens, write_midi

        pieces = chorales_of_tokens(tokens)
        write_midi(path, max(pieces, key=len) if pieces else np.full((1, VOICES), -1))
    elif info.decode == "text":
        write_text(path, text_of(tokens))
    else:
        write_bytes(path, tokens.astype(np.uint8).tobytes())


# ---------------------------------------------------------------- the command


def build_parser() -> Any:
    """The command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m papers.sparse_transformer.sample",
        description="Draw new text, images, music or bytes from a trained model.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--model", default=None, type=str | None, help="the --out folder of the training (required)")
    add("--count", default=1, type=int, help="how many samples")
    add("--length", default=None, type=int | None, help="new tokens of each; default up to the model's context")
    add("--out", default=None, type=str | None, help="file, or folder for a file of each; text also to the terminal")
    add("--prompt", default=None, type=str | None, help="text to continue")
    add(
        "--prompt_file", "--prompt-file", default=None, type=str | None, help="file to continue: text, image, recording"
    )
    add(
        "--keep",
        default=None,
        type=float | None,
        help="part of the prompt's file that is given; default all, images 0.5",
    )
    add("--temperature", default=1.0, type=float, help="below 1 likelier samples, above 1 wilder ones; 0 the likeliest")
    add("--top_p", "--top-p", default=1.0, type=float, help="draw from the likeliest tokens of this probability only")
    add("--seed", default=0, type=int, help="of the draws")
    add("--batch_size", "--batch-size", default=32, type=int, help="samples at once")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _check(parsed: Any, info: ModelInfo) -> None:
    for name in ("count", "batch_size"):
        if parsed[name] < 1:
            raise UserError(f"--{name} must be at least 1, not {parsed[name]}")
    if parsed.length is not None and parsed.length < 1:
        raise UserError(f"--length must be at least 1, not {parsed.length}")
    if not 0 <= parsed.temperature < float("inf"):
        raise UserError(f"--temperature is a number from 0 up, not {parsed.temperature}")
    if not 0 < parsed.top_p <= 1:
        raise UserError(f"--top_p lies above 0 and up to 1, not {parsed.top_p}")
    if parsed.prompt is not None and parsed.prompt_file is not None:
        raise UserError("give --prompt or --prompt_file, not both")
    if parsed.prompt is not None and info.decode not in ("text", "bytes"):
        raise UserError(f"--prompt is for text, and this model draws {info.decode}: give --prompt_file")
    if parsed.out is None:
        if info.decode != "text":
            raise UserError(f"--out is missing: give a file *{SUFFIX[info.decode]} or a folder for the {info.decode}")
        return
    out = Path(parsed.out)
    is_file = out.suffix.lower() == SUFFIX[info.decode]
    if blocked := [parent for parent in out.parents if parent.is_file()]:
        raise UserError(f"--out {out}: {blocked[0]} is a file, not a folder: choose another")
    if is_file and out.is_dir():
        raise UserError(f"--out {out} is a folder: choose another name")
    if not is_file and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder, or a file *{SUFFIX[info.decode]}")
    if is_file and parsed.count > 1 and info.decode not in ("text", "image"):
        raise UserError(f"--out {out} is one file for {parsed.count} samples: give a folder")


def _prompt(parsed: Any, info: ModelInfo) -> np.ndarray:
    if parsed.prompt is not None:
        prompt = tokens_of_text(parsed.prompt, info)
    elif parsed.prompt_file is not None:
        prompt = tokens_of_file(Path(parsed.prompt_file), info, parsed.keep)
    else:
        return np.zeros(0, np.int64)
    new = parsed.length or 1
    if len(prompt) + new > info.context:
        shorten = "shorten it" if parsed.prompt is not None else "give a smaller part of it with --keep"
        raise UserError(
            f"{len(prompt):,} tokens of prompt and {new:,} new do not fit into the model's context of "
            f"{info.context:,}: {shorten}"
        )
    return prompt


def samples(model: "SparseTransformer", parsed: Any, prompt: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Each sample with its prompt, int64 [N], as they are drawn."""
    import torch

    from papers.sparse_transformer.sampling import generate

    given: Tensor | None = torch.from_numpy(prompt) if len(prompt) else None
    for first in range(0, parsed.count, parsed.batch_size):
        batch = min(parsed.batch_size, parsed.count - first)
        drawn = generate(model, length, given, parsed.temperature, parsed.top_p, parsed.seed, batch, first)
        yield from np.concatenate([np.tile(prompt, (batch, 1)), drawn.cpu().numpy()], 1)


def command(arguments: Sequence[str] | None = None) -> int:
    """The whole command; the exit status. UserError for everything the user can mend."""
    parsed = parse(build_parser(), arguments)
    if not parsed.model:
        raise UserError("--model is missing: give --model FOLDER; --help explains it")
    info = read_info(Path(parsed.model))
    _check(parsed, info)
    prompt = _prompt(parsed, info)
    length = parsed.length or info.context - len(prompt)
    if info.grid is not None and len(prompt) + length != prod(info.grid):
        raise UserError(f"an image has {prod(info.grid):,} tokens: leave --length out")
    if length > info.context:
        raise UserError(f"--length {length:,} is more than the model's context of {info.context:,}: give less")

    from common.engines import probe_devices
    from common.paper import Preset
    from common.reproduce import Options, choose_execution

    options = Options(device=parsed.device)
    options.check()
    model, info = load(parsed.model, choose_execution(Preset("", (), "", ""), options, probe_devices()).device)
    drawn = samples(model, parsed, prompt, length)
    if parsed.out is None:
        for number, tokens in enumerate(drawn):
            if parsed.count > 1:
                print(f"--- {number + 1}")
            print(text_of(tokens))
        sys.stdout.flush()
        return 0
    out, suffix = Path(parsed.out), SUFFIX[info.decode]
    if out.suffix.lower() != suffix:
        width = len(str(parsed.count))
        for number, tokens in enumerate(drawn):
            write(out / f"{number + 1:0{width}}{suffix}", tokens, info)
    elif info.decode == "image":
        _write_png(out, sheet(pictures(np.stack(list(drawn)), info)))
    elif parsed.count > 1:
        write_text(out, "\n".join(f"--- {i + 1}\n{text_of(tokens)}" for i, tokens in enumerate(drawn)) + "\n")
    else:
        write(out, next(drawn), info)
    print(f"{parsed.count} {'sample' if parsed.count == 1 else 'samples'} of {length:,} new tokens: {out}")
    return 0


if __name__ == "__main__":
    main(command)
