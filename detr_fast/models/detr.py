"""DETR: backbone, transformer, queries and prediction heads (paper, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.models.padding import pad_images, resize_mask
from detr_fast.models.transformer import Queries, Transformer

POSITION_AT = ("attention", "input")
Outputs = dict[str, Any]  # pred_logits, pred_boxes, aux_outputs: see DETR.forward


class DETR(nn.Module):
    """The detection transformer, assembled from its parts.

    Args:
        backbone: [B, 3, H, W] -> [B, C, h, w], with an attribute ``num_channels`` = C.
        position_encoding: (features, mask) -> [B or 1, D, h, w].
        transformer: encoder and decoder of width D.
        queries: the query source, also an ``nn.Module``; see ``queries.py``.
        class_head: [B, N, D] -> [B, N, K+1]; the last class is "no object".
        box_head: [B, N, D] -> [B, N, 4].
        dim: D.
        aux_loss: also return the predictions of every decoder layer but the last.
        position_at: where the position encoding is added: to queries and keys of every
            ``"attention"`` (the paper), or once to the encoder's ``"input"`` (paper, table 3).

    The names of the parts are those of published checkpoints.
    """

    def __init__(
        self,
        backbone: nn.Module,
        position_encoding: nn.Module,
        transformer: Transformer,
        queries: Queries,
        class_head: nn.Module,
        box_head: nn.Module,
        dim: int,
        aux_loss: bool = True,
        position_at: str = "attention",
    ) -> None:
        super().__init__()
        if position_at not in POSITION_AT:
            expected = ", ".join(POSITION_AT)
            raise ValueError(f"position_at is {position_at!r}, expected one of {expected}")
        self.transformer = transformer
        self.class_embed = class_head
        self.bbox_embed = box_head
        self.query_embed = queries
        self.input_proj = nn.Conv2d(backbone.num_channels, dim, kernel_size=1)
        self.backbone = nn.Sequential(backbone, position_encoding)
        self.aux_loss = aux_loss
        self.position_at = position_at

    def set_checkpointing(self, on: bool) -> None:
        """Gradient checkpointing: less memory for more time, and the same gradients.

        Training then keeps only the inputs of the transformer's layers, and of the blocks of a
        ResNet with frozen batch norm, and recomputes the rest in the backward pass.
        """
        for part in (self.backbone[0], self.transformer.encoder, self.transformer.decoder):
            part.checkpointing = on

    def forward(
        self,
        images: Tensor | Sequence[Tensor],  # [B, 3, H, W], or B images [3, H_b, W_b]
        mask: Tensor | None = None,  # [B, H, W] bool, True = padding; None = no padding
    ) -> Outputs:
        """Detect objects.

        Args:
            images: a batch, normalised as the weights expect, or a list of images, which is then
                padded at the bottom and right.
            mask: which pixels of the batch are padding; not allowed for a list.

        Returns:
            ``pred_logits`` [B, N, K+1], ``pred_boxes`` [B, N, 4] cxcywh in 0..1 of each image
            without its padding, and with ``aux_loss`` also ``aux_outputs``: a list with the same
            two entries for each earlier decoder layer, first to last.

        Raises:
            ValueError: shapes that do not fit, images of integers, or a mask given with a list of
                images.
        """
        images, mask = _as_batch(images, mask)
        backbone, position_encoding = self.backbone
        features = backbone(images)  # [B, C, h, w]
        if mask is not None:
            mask = resize_mask(mask, features.shape[-2:])
        position = position_encoding(features, mask).to(features.dtype)
        features = self.input_proj(features)
        # From maps [B, D, h, w] to sequences [B, S, D].
        sequence, position = (x.flatten(2).transpose(1, 2) for x in (features, position))
        if self.position_at == "input":
            sequence, position = sequence + position, torch.zeros_like(position)
        if mask is not None:
            mask = mask.flatten(1)
            mask = mask & ~mask.all(1, keepdim=True)  # attention over nothing would be NaN
        memory = self.transformer.encoder(sequence, position, mask)
        hidden, boxes = self.transformer.decoder(
            memory, position, mask, self.query_embed, self.bbox_embed
        )
        if not self.aux_loss:
            hidden, boxes = hidden[-1:], boxes[-1:]
        layers = [
            {"pred_logits": self.class_embed(h), "pred_boxes": b}
            for h, b in zip(hidden, boxes, strict=True)
        ]
        outputs: Outputs = dict(layers[-1])
        if self.aux_loss:
            outputs["aux_outputs"] = layers[:-1]
        return outputs


def _as_batch(
    images: Tensor | Sequence[Tensor], mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return images [B, 3, H, W] and their mask [B, H, W], or None if nothing is padded."""
    if not isinstance(images, Tensor):
        if mask is not None:
            raise ValueError("a mask belongs to a batch of images; a list of images needs none")
        images = list(images)
        for b, image in enumerate(images):  # each: padding would take the first one's type for all
            _check_floating(image, f"images[{b}]")
        return pad_images(images)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images has shape {list(images.shape)}, expected [B, 3, H, W]")
    _check_floating(images, "images")
    expected = (images.shape[0], *images.shape[2:])
    if mask is not None and (mask.shape != expected or mask.dtype != torch.bool):
        raise ValueError(
            f"mask is {mask.dtype} {list(mask.shape)}, expected torch.bool {list(expected)}"
        )
    return images, mask


def _check_floating(images: Tensor, name: str) -> None:
    if not images.is_floating_point():
        raise ValueError(f"{name} is {images.dtype}, expected normalised floating point numbers")
