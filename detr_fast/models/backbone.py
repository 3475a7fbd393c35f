"""Backbones: an image to one feature map (paper, section 3.2 and appendix A.4)."""

from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


class ResNetBackbone(nn.Module):
    """A torchvision ResNet without its classifier; its last feature map has stride 32 (DC5: 16).

    Args:
        name: one of ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``.
        weights: ``None`` (random), ``"imagenet"`` (torchvision downloads its first ImageNet
            weights, those of the paper), or the path of a torchvision ResNet state dict.
        norm: ``"frozen"`` (fixed statistics, as in the paper) or ``"batch"`` (trained).
        dilation: DC5, that is a dilated last stage with stride 1. ResNet-50 and -101 only.
        trainable_layers: how many of (layer4, layer3, layer2, layer1, stem) are trained, counted
            from the end, as torchvision counts them. The paper trains 3.

    Raises:
        ValueError: an unknown name or norm, DC5 for a ResNet without bottlenecks, or a weights
            file that does not fit.
        FileNotFoundError: the weights file does not exist.
    """

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | Path | None = None,
        norm: str = "frozen",
        dilation: bool = False,
        trainable_layers: int = 5,
    ) -> None:
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"unknown backbone {name!r}, expected one of {', '.join(RESNETS)}")
        if norm not in ("frozen", "batch"):
            raise ValueError(f"norm is {norm!r}, expected 'frozen' or 'batch'")
        if not 0 <= trainable_layers <= 5:
            raise ValueError(f"trainable_layers is {trainable_layers}, expected 0..5")
        if dilation and name in ("resnet18", "resnet34"):
            raise ValueError(f"DC5 needs bottleneck blocks, which {name} does not have")
        resnet = getattr(torchvision.models, name)(
            weights="IMAGENET1K_V1" if weights == "imagenet" else None,
            replace_stride_with_dilation=[False, False, dilation],
            norm_layer=FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d,
        )
        if weights not in (None, "imagenet"):
            _load_resnet(resnet, Path(weights))
        trained = ("layer4", "layer3", "layer2", "layer1", "stem")[:trainable_layers]
        for parameter_name, parameter in resnet.named_parameters():
            stage = parameter_name.split(".")[0]
            parameter.requires_grad_((stage if stage.startswith("layer") else "stem") in trained)
        self.num_channels: int = resnet.fc.in_features
        self.body = IntermediateLayerGetter(resnet, {"layer4": "features"})

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, C, h, w]
        return self.body(images)["features"]


def _load_resnet(resnet: nn.Module, path: Path) -> None:
    """Load a torchvision state dict, with or without its classifier, into ``resnet``."""
    if not path.is_file():
        raise FileNotFoundError(f"backbone weights {path} do not exist")
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    try:
        missing, unexpected = resnet.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a tensor of another shape
        raise ValueError(f"backbone weights {path} do not fit: {error}") from error
    missing = [name for name in missing if not name.startswith("fc.")]
    if missing or unexpected:
        raise ValueError(
            f"backbone weights {path} do not fit: missing {missing[:3]} ({len(missing)} in all), "
            f"unexpected {unexpected[:3]} ({len(unexpected)} in all)"
        )


class ConvBackbone(nn.Module):
    """A small convolutional backbone with batch norm, to train from scratch on small images.

    Four stages of a strided convolution and a residual block.

    Args:
        channels: output channels of the four stages.
        stride: of the last feature map, 8 or 16.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128, 128), stride: int = 8) -> None:
        super().__init__()
        if stride not in (8, 16):
            raise ValueError(f"stride is {stride}, expected 8 or 16")
        strides = (2, 2, 2, stride // 8)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        previous = 3
        for index, (width, step) in enumerate(zip(channels, strides, strict=True), start=1):
            stages[f"stage{index}"] = nn.Sequential(
                _conv_norm_relu(previous, width, step), ResidualBlock(width)
            )
            previous = width
        self.body = nn.Sequential(stages)
        self.num_channels = previous

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, C, h, w]
        return self.body(images)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, h, w]
        return torch.relu(x + self.norm2(self.conv2(self.conv1(x))))


def _conv_norm_relu(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
