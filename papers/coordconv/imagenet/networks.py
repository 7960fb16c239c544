"""A classifier behind an extra 1x1 layer, plain or coordinate-aware (spec, section 4)."""

from torch import Tensor, nn

from common.models.convnet import ConvNet
from papers.coordconv.imagenet.config import Config
from papers.coordconv.method import CoordConv2d


class FrontedClassifier(nn.Module):
    """`body` behind a 1x1 convolution of `front_channels`; the two arms differ in that layer's two extra channels."""

    def __init__(self, front: nn.Module, body: nn.Module):
        super().__init__()
        self.front, self.body = front, body

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]."""
        output = self.body(self.front(images))
        return output if isinstance(output, Tensor) else output.logits


def build(config: Config, num_classes: int, channels: int) -> FrontedClassifier:
    """The network of `config.model`, initialised by torch's current generator. Nothing is downloaded."""
    layer = CoordConv2d if config.front == "coordconv" else nn.Conv2d
    front = layer(channels, config.front_channels, 1)
    if config.model == "convnet":
        widths = (config.width, 2 * config.width, 2 * config.width)
        return FrontedClassifier(front, ConvNet(num_classes, config.front_channels, widths))
    return FrontedClassifier(front, resnet(config, num_classes))


def resnet(config: Config, num_classes: int) -> nn.Module:
    """ResNet-50 (stride in the 3x3 convolutions, as is usual today), or a tiny network of the same kind."""
    from transformers import ResNetConfig, ResNetForImageClassification

    if config.model == "resnet50":
        settings = ResNetConfig(num_channels=config.front_channels, num_labels=num_classes)
    else:
        settings = ResNetConfig(
            num_channels=config.front_channels,
            num_labels=num_classes,
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
        )
    return ResNetForImageClassification(settings)
