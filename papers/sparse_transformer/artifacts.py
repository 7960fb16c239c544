"""What a trained network leaves for the pictures: a few samples and the weights of some heads, both small."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.files import atomic_path
from common.runs import FIRST_CONFIRMING_SEED, Folder
from papers.sparse_transformer.attention import attention_weights
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.sampling import generate

if TYPE_CHECKING:
    from papers.sparse_transformer.data import Corpus
    from papers.sparse_transformer.network import SparseTransformer

SAMPLES, ATTENTION = "samples.npz", "attention.npz"
IMAGES, STREAMS, STREAM_TOKENS = 8, 2, 512
"""How many images, and how many texts or melodies of how many tokens, are drawn."""
MOST_TOKENS, CELLS = 512, 128
"""Of the sequence whose attention is kept, and the sides of a map that is kept."""
# Layers times tokens, and that times the width: what a second or two of one core can do, token by token and at once.
SAMPLING_STEPS, SAMPLING_WORK, FORWARD_WORK = 1 << 13, 1 << 20, 1 << 23


def save(model: "SparseTransformer", corpus: "Corpus", config: Config, folder: Folder) -> None:
    """Write `artifacts/samples.npz` and `artifacts/attention.npz` where the network is small enough for each.

    Only up to the first confirming seed: pictures show one run of each method. The model is left in evaluation mode.

    samples.npz: tokens, data uint8 [B, n], from the model and from the data; vocabulary, grid, decode, as `Corpus`.
    attention.npz: weights float16 [layers shown, heads shown, s, s], the largest weight of each cell of a square of
    `cell` queries and keys, s <= 128; layers, heads, their numbers; length, of the sequence.
    """
    if folder.spec.seed > FIRST_CONFIRMING_SEED:
        return
    model.eval()
    part = next(part for part in (corpus.test, corpus.validation, corpus.train) if len(part))
    count = _sampled(config, corpus)
    if count:
        number = IMAGES if corpus.kind == "items" else STREAMS
        with torch.no_grad():
            tokens = generate(model, count, seed=folder.spec.seed, batch_size=number)
        data = part[:number] if corpus.kind == "items" else part[: len(part) // count * count].reshape(-1, count)
        _write(
            folder, SAMPLES, tokens=tokens.cpu().numpy().astype(np.uint8), data=data[:number], decode=corpus.decode,
            vocabulary=corpus.vocabulary, grid=np.array(corpus.grid or (), np.int64),
        )  # fmt: skip
    length = min(config.context, MOST_TOKENS)
    if config.layers * config.width * length <= FORWARD_WORK:
        sequence = (part[0] if corpus.kind == "items" else part)[:length]
        inputs = torch.as_tensor(sequence.astype(np.int64), device=model.start.device)[None]
        _write(folder, ATTENTION, **attention_maps(model, inputs))


def _sampled(config: Config, corpus: "Corpus") -> int:
    """How many tokens can be sampled in a second or two; 0 where that is too few to look at."""
    fit = min(SAMPLING_STEPS, SAMPLING_WORK // config.width) // config.layers
    if corpus.kind == "items":
        return config.context if config.context <= fit else 0
    count = min(STREAM_TOKENS, config.context, fit) // corpus.unit * corpus.unit
    return count if count >= min(64, config.context) else 0


@torch.no_grad()
def attention_maps(model: "SparseTransformer", tokens: Tensor) -> dict[str, Any]:
    """The arrays of attention.npz: the first and the last head of the first and the last layer on tokens [1, n]."""
    n, last = tokens.shape[1], len(model.blocks) - 1
    layers, heads = sorted({0, last}), sorted({0, model.config.heads - 1})
    cell = -(-n // CELLS)
    found = []
    x = model.embed(tokens)
    blocks: Any = model.blocks
    for layer, block in enumerate(blocks):
        if layer in layers:
            q, k, _ = block.attention.split(block.norm1(x))
            weights = attention_weights(q, k, block.attention.patterns)[:, heads].float()
            found.append(F.max_pool2d(weights, cell, ceil_mode=True)[0])
        x = block(x)
    return {
        "weights": torch.stack(found).half().cpu().numpy(),
        "layers": layers,
        "heads": heads,
        "length": n,
        "cell": cell,
    }


def _write(folder: Folder, name: str, **arrays: Any) -> None:
    with atomic_path(folder.artifact(name)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
