"""A ResNet's forward pass with frozen batch norm folded into the convolutions.

Frozen batch norm is a fixed scale and shift of each channel. Scaling the convolution's weight
instead of its output leaves one operation of three, and no second copy of the largest feature maps
to keep for the backward pass. The parameters stay as they are, so that state dicts are the
published ones, and the gradient goes through the product to the weight itself.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d


def conv_norm(
    x: Tensor,  # [B, C, h, w]
    conv: nn.Conv2d,  # without a bias
    norm: nn.Module,
) -> Tensor:
    """``norm(conv(x))``, as one convolution where the norm is a ``FrozenBatchNorm2d``."""
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale[:, None, None, None]
    shift = norm.bias - norm.running_mean * scale
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def block_forward(
    block: BasicBlock | Bottleneck,
    x: Tensor,  # [B, C, h, w]
) -> Tensor:
    """A residual block."""
    out = F.relu(conv_norm(x, block.conv1, block.bn1), inplace=True)
    out = conv_norm(out, block.conv2, block.bn2)
    if isinstance(block, Bottleneck):
        out = conv_norm(F.relu(out, inplace=True), block.conv3, block.bn3)
    if block.downsample is not None:
        x = conv_norm(x, *block.downsample)
    return F.relu(out + x, inplace=True)


def resnet_forward(
    body: Mapping[str, nn.Module],  # a torchvision ResNet's parts by name, without the classifier
    x: Tensor,  # [B, 3, H, W]
    checkpointing: bool = False,
) -> Tensor:  # [B, C, h, w]
    """The last stage's feature map.

    Args:
        checkpointing: keep each block's input alone for the backward pass, and compute the rest anew.
    """
    x = F.relu(conv_norm(x, body["conv1"], body["bn1"]), inplace=True)
    x = body["maxpool"](x)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for block in body[stage]:
            if checkpointing:
                x = checkpoint(block_forward, block, x, use_reentrant=False)
            else:
                x = block_forward(block, x)
    return x
