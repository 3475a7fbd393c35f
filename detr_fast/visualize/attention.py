"""Where a model looks: its attention weights, computed only on request.

Training and prediction use ``scaled_dot_product_attention``, which returns no weights. Here hooks
keep the inputs of the attention modules during one forward pass, and the weights are
recomputed from those: ``softmax(q k^T / sqrt(d))`` (Vaswani et al. 2017, section 3.2.1).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detr_fast.models.transformer import Attention


@torch.no_grad()
def attention_weights(
    attention: Attention,
    query: Tensor,  # [B, Q, D], as passed to the module
    key: Tensor,  # [B, S, D]
    key_mask: Tensor | None = None,  # [B, S] bool, True = may not be attended to
) -> Tensor:  # [B, heads, Q, S]; each row sums to 1
    """Return the weights that an attention module gives to the keys, in float32 at least."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q, k = (
            F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
            .unflatten(-1, (attention.num_heads, -1))
            .transpose(1, 2)
            for x, weight, bias in zip(
                (query, key),
                attention.in_proj_weight.chunk(3)[:2],
                attention.in_proj_bias.chunk(3)[:2],
                strict=True,
            )
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if key_mask is not None:
            scores = scores.masked_fill(key_mask[:, None, None, :], -math.inf)
        return scores.softmax(-1)


class AttentionRecord:
    """The inputs of the attention modules in one forward pass; see ``record_attention``.

    Attributes:
        image_size: (height, width) of the padded batch.
        feature_size: (h, w) of the feature map; h * w = S.
        encoder_layers, decoder_layers: those of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.encoder_layers = list(model.transformer.encoder.layers)
        self.decoder_layers = list(model.transformer.decoder.layers)
        self._inputs: dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]] = {}
        self.image_size = self.feature_size = (0, 0)

    def decoder_attention(self, layer: int = -1) -> Tensor:
        """Return the cross-attention of every query over the feature map: [B, heads, N, h, w].

        Raises:
            ValueError: no such decoder layer, or no forward pass was recorded.
        """
        module = _layer(self.decoder_layers, layer, "decoder").multihead_attn
        query, key, mask = self._of(module)
        return attention_weights(module, query, key, mask).unflatten(-1, self.feature_size)

    def encoder_attention(
        self,
        cells: Tensor,  # [P, 2] (row, column) in the feature map
        layer: int = -1,
    ) -> Tensor:
        """Return the self-attention of chosen cells over the feature map: [B, heads, P, h, w].

        Only these rows are computed: all of them would be S * S weights.

        Raises:
            ValueError: no such encoder layer, a cell outside the feature map, or no recorded pass.
        """
        module = _layer(self.encoder_layers, layer, "encoder").self_attn
        query, key, mask = self._of(module)
        rows, columns = cells.to(query.device).unbind(-1)
        h, w = self.feature_size
        for place, (row, column) in enumerate(cells.tolist()):
            if not (0 <= row < h and 0 <= column < w):
                raise ValueError(f"cells[{place}] is ({row}, {column}), the map is {h} x {w}")
        chosen = query[:, rows * w + columns]
        return attention_weights(module, chosen, key, mask).unflatten(-1, self.feature_size)

    def _of(self, module: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        if module not in self._inputs:
            raise ValueError("no forward pass was recorded: call the model inside the with block")
        return self._inputs[module]


def _layer(layers: list[nn.Module], index: int, kind: str) -> nn.Module:
    if not -len(layers) <= index < len(layers):
        raise ValueError(f"no {kind} layer {index}: there are {len(layers)}, counted from 0")
    return layers[index]


@contextlib.contextmanager
def record_attention(model: nn.Module) -> Iterator[AttentionRecord]:
    """Record the inputs of a DETR's attention modules in the forward passes of this block.

    Nothing is computed until weights are requested, and after the block the model is unchanged::

        with record_attention(model) as record:
            outputs = model(images)
        heat = record.decoder_attention(layer=-1)  # [B, heads, N, h, w]

    Of several forward passes the last one is kept. Weights are computed in float32 from the
    recorded inputs, and from the parameters as they are when the weights are requested.
    """
    record = AttentionRecord(model)

    def keep(module: nn.Module, args: tuple) -> None:
        query, key, _, *mask = args
        record._inputs[module] = (query.detach(), key.detach(), mask[0] if mask else None)

    def see_features(module: nn.Module, args: tuple, features: Tensor) -> None:
        record.image_size = tuple(args[0].shape[-2:])
        record.feature_size = tuple(features.shape[-2:])

    hooks = [model.backbone[0].register_forward_hook(see_features)]
    modules = [layer.self_attn for layer in record.encoder_layers]
    modules += [layer.multihead_attn for layer in record.decoder_layers]
    hooks += [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
