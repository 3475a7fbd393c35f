"""The published DETR's way of computing: its model, layer by layer, as its users run it.

Written from the paper and the behaviour of the published code: sequence first, attention by
``nn.MultiheadAttention`` with its weights returned (and not used), frozen batch norm as elementwise
arithmetic after each convolution, a padding mask whether or not anything is padded, and the
position encoding computed anew in every step. State dict names are the published ones.
"""

import math

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout)
        self.linear1, self.linear2 = (
            nn.Linear(dim, dim_feedforward),
            nn.Linear(dim_feedforward, dim),
        )
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(dropout) for _ in range(3))

    def forward(
        self,
        x: Tensor,  # [S, B, D]
        position: Tensor,  # [S, B, D]
        mask: Tensor,  # [B, S] bool, True = padding
    ) -> Tensor:  # [S, B, D]
        key = x + position
        attended, _ = self.self_attn(key, key, value=x, key_padding_mask=mask)
        x = self.norm1(x + self.dropout1(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm2(x + self.dropout2(hidden))


class DecoderLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, dropout)
        self.linear1, self.linear2 = (
            nn.Linear(dim, dim_feedforward),
            nn.Linear(dim_feedforward, dim),
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (
            nn.Dropout(dropout) for _ in range(4)
        )

    def forward(
        self,
        x: Tensor,  # [N, B, D]
        query_position: Tensor,  # [N, B, D]
        memory: Tensor,  # [S, B, D]
        position: Tensor,  # [S, B, D]
        mask: Tensor,  # [B, S] bool, True = padding
    ) -> Tensor:  # [N, B, D]
        key = x + query_position
        attended, _ = self.self_attn(key, key, value=x)
        x = self.norm1(x + self.dropout1(attended))
        attended, _ = self.multihead_attn(
            query=x + query_position, key=memory + position, value=memory, key_padding_mask=mask
        )
        x = self.norm2(x + self.dropout2(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm3(x + self.dropout3(hidden))


class PublishedDETR(nn.Module):
    """Image batch and mask to outputs; loads the state dict of ``detr_fast.models`` strictly.

    Args:
        resnet: the torchvision name of the backbone. As published, its stem and first stage are
            frozen.
    """

    def __init__(
        self,
        resnet: str,
        num_classes: int = 91,
        num_queries: int = 100,
        dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = (dim, num_heads, dim_feedforward, dropout)
        self.transformer = nn.Module()
        self.transformer.encoder, self.transformer.decoder = nn.Module(), nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(
            EncoderLayer(*sizes) for _ in range(num_layers)
        )
        self.transformer.decoder.layers = nn.ModuleList(
            DecoderLayer(*sizes) for _ in range(num_layers)
        )
        self.transformer.decoder.norm = nn.LayerNorm(dim)
        body = getattr(torchvision.models, resnet)(norm_layer=FrozenBatchNorm2d)
        channels = body.fc.in_features
        backbone = nn.Module()
        backbone.body = IntermediateLayerGetter(body, {"layer4": "0"})
        for name, parameter in backbone.body.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
        self.backbone = nn.ModuleList([backbone])
        self.input_proj = nn.Conv2d(channels, dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.bbox_embed = nn.Module()
        self.bbox_embed.layers = nn.ModuleList(
            [nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)]
        )

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W]
        mask: Tensor,  # [B, H, W] bool, True = padding
    ) -> dict:
        features = self.backbone[0].body(images)["0"]
        mask = F.interpolate(mask[None].float(), size=features.shape[-2:]).bool()[0]  # [B, h, w]
        position = sine_position(mask, features.new_empty(()).dtype)
        # [B, D, h, w] -> [S, B, D]
        x = self.input_proj(features).flatten(2).permute(2, 0, 1)
        position = position.flatten(2).permute(2, 0, 1)
        mask = mask.flatten(1)
        for layer in self.transformer.encoder.layers:
            x = layer(x, position, mask)
        query_position = self.query_embed.weight.unsqueeze(1).repeat(1, len(images), 1)
        content = torch.zeros_like(query_position)
        hidden = []
        for layer in self.transformer.decoder.layers:
            content = layer(content, query_position, x, position, mask)
            hidden.append(self.transformer.decoder.norm(content))
        hidden = torch.stack(hidden).transpose(1, 2)  # [L, B, N, D]
        logits = self.class_embed(hidden)
        first, second, last = self.bbox_embed.layers
        boxes = last(F.relu(second(F.relu(first(hidden))))).sigmoid()
        layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
        return {**layers[-1], "aux_outputs": layers[:-1]}


def sine_position(
    mask: Tensor,  # [B, h, w] bool, True = padding
    dtype: torch.dtype,
    num_features: int = 128,  # per axis
    temperature: float = 10000.0,
) -> Tensor:  # [B, 2 * num_features, h, w]
    valid = ~mask
    y = valid.cumsum(1, dtype=torch.float32)
    x = valid.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    index = torch.arange(num_features, dtype=torch.float32, device=mask.device)
    divisor = temperature ** (2 * (index // 2) / num_features)
    parts = []
    for axis in (y, x):
        angle = axis[..., None] / divisor
        parts.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), 4).flatten(3))
    return torch.cat(parts, 3).permute(0, 3, 1, 2).to(dtype)
