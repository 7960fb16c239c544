"""The region-proposal network with and without coordinates (spec, section 4): 81,590 and 83,838 parameters."""

import torch
from torch import Tensor, nn

from papers.coordconv.detection.method import CENTRES, TEMPLATES
from papers.coordconv.method import AddCoords
from papers.coordconv.tf_layers import he_normal_

FEATURES = 32


class RegionProposal(nn.Module):
    """5x5x32, pool, 5x5x64, pool, 3x3x32; a 1x1 scorer of 2 and a mover (3x3x32, 1x1, starting at 0) of 4 an anchor.

    Kernels are He's, biases 0 (Keras). Pooling comes before ReLU, which gives the same and costs a quarter; `plain`
    is the order of the paper.

    Args:
        coordinates: whether coordinates come in before the first convolution, before the 3x3 one on the features and
            before the mover's last.
        padding: of the two 5x5 convolutions, "valid" (13 x 13 cells) or "same" (16 x 16).
        coordinate_range: "symmetric" [-1, 1] or "unit" [0, 1] (the released file's own layer).
    """

    def __init__(
        self,
        coordinates: bool,
        padding: str = "valid",
        coordinate_range: str = "symmetric",
        plain: bool = False,
    ):
        super().__init__()
        extra = 2 if coordinates else 0
        self.cells, self.anchors = len(CENTRES[padding]), len(TEMPLATES)
        self.coordinates, self.unit, self.plain = coordinates, coordinate_range == "unit", plain
        margin = 2 if padding == "same" else 0
        self.first = nn.Conv2d(1 + extra, 32, 5, padding=margin)
        self.second = nn.Conv2d(32, 64, 5, padding=margin)
        self.features = nn.Conv2d(64 + extra, FEATURES, 3, padding=1)
        self.scorer = nn.Conv2d(FEATURES, 2 * self.anchors, 1)
        self.mover = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.transform = nn.Conv2d(FEATURES + extra, 4 * self.anchors, 1)
        self.add = AddCoords()
        for layer in (self.first, self.second, self.features, self.scorer, self.mover):
            he_normal_(layer.weight, layer.weight[0].numel())
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.transform.weight)
        nn.init.zeros_(self.transform.bias)  # type: ignore[arg-type]

    def _with_coordinates(self, x: Tensor) -> Tensor:
        if not self.coordinates:
            return x
        out = self.add(x)
        if self.unit:
            out = torch.cat([x, (out[:, -2:] + 1) / 2], dim=1)
        return out.contiguous(memory_format=torch.channels_last)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.plain:
            return nn.functional.max_pool2d(x.relu(), 2)
        return nn.functional.max_pool2d(x, 2).relu()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, 1, 64, 64] to score logits [B, cells^2 * 9, 2] and transforms [B, cells^2 * 9, 4]."""
        x = self._pooled(self.first(self._with_coordinates(images)))
        x = self._pooled(self.second(x))
        x = self.features(self._with_coordinates(x)).relu()
        moved = self.transform(self._with_coordinates(self.mover(x).relu()))
        return self._by_anchor(self.scorer(x), 2), self._by_anchor(moved, 4)

    def _by_anchor(self, outputs: Tensor, numbers: int) -> Tensor:
        """[B, 9 * numbers, cells, cells] to [B, cells^2 * 9, numbers], the order of `make_anchors`."""
        return outputs.permute(0, 2, 3, 1).reshape(len(outputs), -1, numbers)

    def kernels(self) -> list[Tensor]:
        """What the weight penalty is over: no biases."""
        return [parameter for name, parameter in self.named_parameters() if name.endswith("weight")]
