"""Random-resized crop, flip, and resize with centre crop, for a whole batch at once.

Resampling with a triangle filter as wide as the reduction (what PIL calls bilinear) is linear and separable, so the
crop, the flip and the change of size of one image are two matrices, and those of a batch are two batched products.
"""

import math

import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, per channel, of values in [0, 1]."""
ATTEMPTS = 10
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def random_crops(sizes: Tensor, uniforms: Tensor) -> Tensor:
    """Crops of random area and shape (Szegedy et al. 2015): float64 [B, 4] of top, left, height, width.

    sizes: [B, 2], height and width; uniforms: [B, 10, 4] in [0, 1). The area is 8 to 100 % of the image's and the
    aspect ratio lies in 3/4..4/3, uniform in its logarithm; the first of ten attempts that fits is taken, and the
    largest central crop of an allowed shape where none does.
    """
    height, width = sizes.double()[:, None].unbind(-1)
    of_area, of_ratio, of_top, of_left = uniforms.double().unbind(-1)
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * of_area)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * of_ratio)
    crop_width, crop_height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (crop_width >= 1) & (crop_width <= width) & (crop_height >= 1) & (crop_height <= height)
    top = (of_top * (height - crop_height + 1)).floor()
    left = (of_left * (width - crop_width + 1)).floor()
    attempts = torch.stack([top, left, crop_height, crop_width], -1)
    first = fits.long().argmax(1)  # 0 where none fits
    chosen = attempts.gather(1, first[:, None, None].expand(-1, 1, 4))[:, 0]
    last_height, last_width = torch.minimum(height, width / RATIO[0]), torch.minimum(width, height * RATIO[1])
    last_height, last_width = last_height.round(), last_width.round()
    middle = [((height - last_height) / 2).floor(), ((width - last_width) / 2).floor(), last_height, last_width]
    return torch.where(fits.any(1)[:, None], chosen, torch.cat(middle, -1))


def centre_crops(sizes: Tensor, size: int) -> Tensor:
    """What stays of an image whose shorter side is made size * 256 / 224 and whose centre is cut out: as `random_crops`
    but, in the image's own pixels, with fractions."""
    sizes = sizes.double()
    short = round(size * 256 / 224)
    resized = (sizes * short / sizes.min(1, keepdim=True).values + 1e-9).floor()
    scale = sizes / resized
    return torch.cat([((resized - size) / 2).round() * scale, size * scale], 1)


def weights(first: Tensor, length: Tensor, low: Tensor, high: Tensor, before: int, after: int) -> Tensor:
    """Matrices float32 [B, after, before] that resample pixels first..first+length of a line of `before` to `after`.

    Only pixels low..high-1 are read (all [B]): the crop's own, or those of the whole image.
    """
    scale = (length / after)[:, None, None]
    centre = first[:, None, None] + (torch.arange(after, device=first.device)[:, None] + 0.5) * scale
    pixel = torch.arange(before, device=first.device)
    weight = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weight = weight * ((pixel >= low[:, None, None]) & (pixel < high[:, None, None]))
    return (weight / weight.sum(-1, keepdim=True)).float()


def resample(canvas: Tensor, sizes: Tensor, crops: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """The crops of a batch at size x size, normalised: float32 [B, 3, size, size] in channels_last memory.

    canvas: uint8 [B, S, S, 3], each image in the upper left corner; sizes: [B, 2]; crops: float64 [B, 4]. With `flip`
    (bool [B]; True mirrors) a crop is cut out before it is resampled, as in training; without it, after (evaluation).
    """
    side = canvas.shape[1]
    top, left, height, width = crops.unbind(-1)
    if flip is None:
        limits = (torch.zeros_like(top), sizes[:, 0], torch.zeros_like(left), sizes[:, 1])
    else:
        limits = (top, top + height, left, left + width)
    rows = weights(top, height, *limits[:2], side, size)
    columns = weights(left, width, *limits[2:], side, size)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    # In float32 whatever the training's precision: bfloat16 would round the weights to a part in 256.
    with torch.autocast(canvas.device.type, enabled=False):
        images = rows @ canvas.flatten(2).float()
        images = columns[:, None] @ images.unflatten(2, (side, 3))  # [B, size, size, 3]
    mean, std = (torch.tensor(values, device=canvas.device) * 255 for values in (MEAN, STD))
    return ((images - mean) / std).permute(0, 3, 1, 2)
