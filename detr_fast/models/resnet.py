"""A ResNet's forward pass with frozen batch norm folded into the convolutions.

Frozen batch norm is a fixed scale and shift of each channel. Scaling the convolution's weight
instead of its output leaves one operation of three, and no second copy of the largest feature maps
to keep for the backward pass. Where the output is smaller than the weight, as in the last stage,
the output is scaled instead. The parameters stay as they are, so that state dicts equal the
published ones, and gradients go to the weight itself.

A ResNet whose modules were changed or are listened to is run module by module, as torchvision does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

_is_exporting = getattr(torch.compiler, "is_exporting", bool)  # bool() is False: before torch 2.7


def conv_norm(
    x: Tensor,  # [B, C, h, w]
    conv: nn.Conv2d,  # without a bias
    norm: nn.Module,
) -> Tensor:
    """Return ``norm(conv(x))``, as one convolution if the norm is a ``FrozenBatchNorm2d``."""
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    weight = conv.weight
    # Not checked while compiling: torch would then guard on the size.
    small = not torch.compiler.is_compiling() and _is_small_map(x, conv)
    if not small:
        weight = weight * scale[:, None, None, None]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    options = conv.stride, conv.padding, conv.dilation, conv.groups
    if not small:
        return F.conv2d(x, weight, shift.to(x.dtype), *options)
    if weight.requires_grad and _has_patches(x, conv):
        out = _SmallMapConvolution.apply(x, weight)
    else:
        out = F.conv2d(x, weight, None, *options)
    return torch.addcmul(shift[:, None, None], out, scale[:, None, None]).to(out.dtype)


def _is_small_map(x: Tensor, conv: nn.Conv2d) -> bool:
    """Return whether a convolution's output has fewer entries than its weight."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return pixels < conv.weight[0].numel()


def _has_patches(x: Tensor, conv: nn.Conv2d) -> bool:
    """Return whether this is a 3x3 convolution on a CPU, with no more pixels than channels."""
    return (
        x.is_cpu
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups) == ((1, 1), 1)
        and x.shape[0] * x.shape[2] * x.shape[3] <= x.shape[1]
    )


class _SmallMapConvolution(torch.autograd.Function):
    """A 3x3 convolution whose weight's gradient is one matrix product over all patches.

    Measured against oneDNN's, 512 channels, one thread: at 400 pixels 17 ms instead of 32 in
    float32 and 5 instead of 8 in bfloat16; at 100 pixels a quarter; no gain from 800 pixels on.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, padding=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        by_x = None
        if ctx.needs_input_grad[0]:
            ones, no = [1, 1], [0, 0]
            by_x, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, ones, ones, ones, False, no, 1, [True, False, False]
            )
        b, c, h, w = x.shape
        padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()  # [B, h + 2, w + 2, C]
        image, row, column, _ = padded.stride()
        patches = padded.as_strided((b, h, w, 3, 3, c), (image, row, column, row, column, 1))
        patches = patches.reshape(b * h * w, 9 * c)
        by_weight = gradient.permute(0, 2, 3, 1).flatten(0, 2).mT @ patches
        return by_x, by_weight.view(-1, 3, 3, c).permute(0, 3, 1, 2)


def block_forward(
    block: BasicBlock | Bottleneck,
    x: Tensor,  # [B, C, h, w]
) -> Tensor:
    """Return a residual block's output."""
    out = F.relu(conv_norm(x, block.conv1, block.bn1), inplace=True)
    out = conv_norm(out, block.conv2, block.bn2)
    if isinstance(block, Bottleneck):
        out = conv_norm(F.relu(out, inplace=True), block.conv3, block.bn3)
    if block.downsample is not None:
        x = conv_norm(x, *block.downsample)
    return F.relu(out + x, inplace=True)


_STOCK = (
    *(nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, nn.ReLU),
    *(nn.MaxPool2d, BasicBlock, Bottleneck),
)


def is_stock(module: nn.Module) -> bool:
    """Return whether a ResNet's part computes what torchvision's does, and nobody listens in.

    Hooks, other types (of pruning, quantisation, adapters), a bias, padding with other values than
    zeros or a replaced ``forward`` take effect only where each module is called. Hooks on all
    modules of the process, as of ``register_module_forward_hook``, are not looked for.
    """
    # Lists: some versions of torch.compile stop at ``all``, or at classes in a set.
    others = [
        part
        for part in module.modules()
        if type(part) not in _STOCK
        or (part._forward_hooks or part._forward_pre_hooks)
        or (part._backward_hooks or part._backward_pre_hooks)
        or "forward" in part.__dict__
        or (type(part) is nn.Conv2d and (part.bias is not None or part.padding_mode != "zeros"))
    ]
    return not others


def resnet_forward(
    body: Mapping[str, nn.Module],  # a torchvision ResNet's parts by name, without the classifier
    x: Tensor,  # [B, 3, H, W]
    checkpointing: bool = False,
) -> Tensor:  # [B, C, h, w]
    """Return the last stage's feature map.

    Args:
        checkpointing: keep only each block's input, and recompute the rest for gradients.
    """
    if [part for part in body.values() if not is_stock(part)]:
        return _module_by_module(body, x, checkpointing)
    # ReLU after the pooling: the same result, from a quarter of the largest map.
    x = F.relu(_max_pool(body["maxpool"], conv_norm(x, body["conv1"], body["bn1"])), inplace=True)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for block in body[stage]:
            if checkpointing:
                x = checkpoint(block_forward, block, x, use_reentrant=False)
            else:
                x = block_forward(block, x)
    return x


def _module_by_module(body: Mapping[str, nn.Module], x: Tensor, checkpointing: bool) -> Tensor:
    for name, part in body.items():
        if checkpointing and name.startswith("layer"):
            for block in part:
                x = checkpoint(block, x, use_reentrant=False)
        else:
            x = part(x)
    return x


def _max_pool(pool: nn.Module, x: Tensor) -> Tensor:
    """Return ``pool(x)``, such that an exported model takes even and odd sizes.

    Of a pooling with stride 2, ``torch.export`` records the parity of the size that it was given,
    and refuses others. Every second result of one with stride 1 is the same.
    """
    plain = type(pool) is nn.MaxPool2d and isinstance(pool.stride, int) and not pool.ceil_mode
    if not plain or not _is_exporting():
        return pool(x)
    dense = F.max_pool2d(x, pool.kernel_size, 1, pool.padding, pool.dilation)
    return dense[..., :: pool.stride, :: pool.stride]
