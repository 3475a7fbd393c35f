"""Backbones: from an image to one feature map (paper, section 3.2 and appendix A.4)."""

import math
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from detr_fast.models.resnet import resnet_forward
from detr_fast.models.weights import CheckpointError, read_weights

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


class ResNetBackbone(nn.Module):
    """A torchvision ResNet without its classifier; ``stride`` of its feature map: 32 (DC5: 16).

    Args:
        name: one of ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``.
        weights: ``None`` (random), ``"imagenet"`` (torchvision downloads its first ImageNet
            weights, those of the paper), or the path of a torchvision ResNet state dict.
        norm: ``"frozen"`` (fixed statistics, as in the paper) or ``"batch"`` (trained).
        dilation: DC5, that is a dilated last stage with stride 1. ResNet-50 and -101 only.
        trainable_layers: how many of (layer4, layer3, layer2, layer1, stem) are trained, counted
            from the end, as torchvision counts them. The paper trains 3.

    With ``checkpointing`` set and a frozen norm, training keeps only each block's input and
    recomputes the rest in the backward pass.

    Raises:
        ValueError: an unknown name or norm, or DC5 for a ResNet without bottlenecks.
        CheckpointError: a weights file that does not exist, cannot be read or does not fit, or
            ImageNet weights that cannot be downloaded.
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
            replace_stride_with_dilation=[False, False, dilation],
            norm_layer=FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d,
        )
        if weights == "imagenet":
            resnet.load_state_dict(_imagenet_state(name))
        elif weights is not None:
            _load_resnet(resnet, Path(weights))
        trained = ("layer4", "layer3", "layer2", "layer1", "stem")[:trainable_layers]
        for parameter_name, parameter in resnet.named_parameters():
            stage = parameter_name.split(".")[0]
            parameter.requires_grad_((stage if stage.startswith("layer") else "stem") in trained)
        self.num_channels: int = resnet.fc.in_features
        self.stride = 16 if dilation else 32
        self.body = IntermediateLayerGetter(resnet, {"layer4": "features"})
        self.norm = norm
        self.checkpointing = False

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, C, h, w]
        # Trained batch norm would count each batch twice.
        checkpointing = self.checkpointing and self.training and self.norm == "frozen"
        return resnet_forward(self.body, images, checkpointing)


def _imagenet_state(name: str) -> dict[str, Any]:
    """Return torchvision's first ImageNet weights, downloaded unless torch has them already."""
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    # The network, the disk, a file that is not what its name says, a file that is damaged.
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise CheckpointError(
            f"cannot load the ImageNet weights of {name} from {weights.url} "
            f"({type(error).__name__}: {' '.join(str(error).split())}): put that file at {file}, "
            "or pass --backbone-weights PATH, or none to train from random weights"
        ) from error


def _load_resnet(resnet: nn.Module, path: Path) -> None:
    """Load a torchvision state dict, with or without its classifier, into ``resnet``."""
    state = read_weights(path)
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    try:
        missing, unexpected = resnet.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a tensor of another shape
        reason = " ".join(str(error).split())
        raise CheckpointError(f"backbone weights {path} do not fit: {reason}") from error
    missing = [name for name in missing if not name.startswith("fc.")]
    if missing or unexpected:
        raise CheckpointError(
            f"backbone weights {path} do not fit: missing {missing[:3]} ({len(missing)} in all), "
            f"unexpected {unexpected[:3]} ({len(unexpected)} in all)"
        )


class ConvBackbone(nn.Module):
    """A small convolutional backbone with batch norm, to train from scratch on small images.

    One stage per entry: a strided convolution (7x7 where it strides by four, else 3x3) and a
    residual block. ``stride``, that of the feature map, is the product of the strides.

    Args:
        channels: output channels of each stage.
        strides: of each stage.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 128),
        strides: Sequence[int] = (2, 2, 2, 1),
    ) -> None:
        super().__init__()
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        previous = 3
        for index, (width, stride) in enumerate(zip(channels, strides, strict=True), start=1):
            stages[f"stage{index}"] = nn.Sequential(
                _conv_norm_relu(previous, width, 7 if stride == 4 else 3, stride),
                ResidualBlock(width),
            )
            previous = width
        self.body = nn.Sequential(stages)
        self.num_channels = previous
        self.stride = math.prod(strides)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, C, h, w]
        return self.body(images)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, h, w]
        return torch.relu(x + self.norm2(self.conv2(self.conv1(x))))


def _conv_norm_relu(
    channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
