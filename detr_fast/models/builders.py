"""Builders of whole models, named as torchvision users expect."""

from pathlib import Path
from typing import Any

from torch import nn

from detr_fast.models.backbone import ConvBackbone, ResNetBackbone
from detr_fast.models.detr import DETR
from detr_fast.models.mlp import MLP
from detr_fast.models.position_encoding import (
    LearnedPositionEncoding,
    NoPositionEncoding,
    SinePositionEncoding,
)
from detr_fast.models.queries import QUERY_MODES, AnchorQueries, LearnedQueries, attend_nearby
from detr_fast.models.transformer import Decoder, Encoder, Transformer

POSITION_ENCODINGS = {
    "sine": SinePositionEncoding,
    "learned": LearnedPositionEncoding,
    "none": NoPositionEncoding,
}


def build_detr(
    backbone: nn.Module,
    *,
    num_classes: int,
    num_queries: int,
    query_mode: str = "learned",
    position_encoding: str = "sine",
    dim: int = 256,
    num_heads: int = 8,
    num_encoder_layers: int = 6,
    num_decoder_layers: int = 6,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    aux_loss: bool = True,
    position_at: str = "attention",
    decoder_self_attention: bool = True,
) -> DETR:
    """Build a DETR on any backbone that has ``num_channels``; the defaults are the paper's.

    Args:
        num_classes: K, without "no object". COCO's 80 categories have ids up to 90, hence 91.
        num_queries: N, the largest number of detections in one image.
        query_mode: ``"learned"`` (the paper) or ``"anchor"``; see ``queries.py``.
        position_encoding: ``"sine"``, ``"learned"`` or ``"none"``.
        aux_loss, position_at: see ``DETR``.
        decoder_self_attention: whether queries see each other.

    Raises:
        ValueError: an unknown mode, or sizes that do not fit together.
    """
    if num_classes < 1 or num_queries < 1:
        raise ValueError(
            f"num_classes is {num_classes} and num_queries {num_queries}, both must be positive"
        )
    if num_decoder_layers < 1:
        raise ValueError(f"num_decoder_layers is {num_decoder_layers}, expected at least 1")
    if query_mode not in QUERY_MODES:
        expected = ", ".join(QUERY_MODES)
        raise ValueError(f"query_mode is {query_mode!r}, expected one of {expected}")
    if position_encoding not in POSITION_ENCODINGS:
        expected = ", ".join(POSITION_ENCODINGS)
        raise ValueError(f"position_encoding is {position_encoding!r}, expected one of {expected}")
    # Anchors must tell neighbouring places apart: a lower temperature gives higher frequencies.
    temperature = 20.0 if query_mode == "anchor" else 10000.0
    transformer = Transformer(
        Encoder(dim, num_heads, num_encoder_layers, dim_feedforward, dropout),
        Decoder(
            dim, num_heads, num_decoder_layers, dim_feedforward, dropout, decoder_self_attention
        ),
    )
    box_head = MLP(dim, dim, 4, num_layers=3)
    if query_mode == "learned":
        queries: nn.Module = LearnedQueries(num_queries, dim)
    else:
        queries = AnchorQueries(num_queries, dim, temperature)
        if position_encoding == "sine":  # anchors and features are then encoded alike
            attend_nearby(transformer.decoder)
        # The head predicts an offset: start at the anchor itself.
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
    return DETR(
        backbone=backbone,
        position_encoding=(
            SinePositionEncoding(dim, temperature)
            if position_encoding == "sine"
            else POSITION_ENCODINGS[position_encoding](dim)
        ),
        transformer=transformer,
        queries=queries,
        class_head=nn.Linear(dim, num_classes + 1),
        box_head=box_head,
        dim=dim,
        aux_loss=aux_loss,
        position_at=position_at,
    )


def build_resnet_detr(
    name: str,
    num_classes: int,
    num_queries: int,
    *,
    dilation: bool = False,
    backbone_weights: str | Path | None = None,
    norm: str = "frozen",
    trainable_layers: int | None = None,
    **options: Any,
) -> DETR:
    """Build a DETR on a torchvision ResNet: what the six public builders below share.

    Args:
        backbone_weights: ``None``, ``"imagenet"`` or the path of a torchvision state dict.
        norm: ``"frozen"`` batch norm, as in the paper, or trained ``"batch"`` norm.
        trainable_layers: see ``ResNetBackbone``; 3 with backbone weights, as in the paper,
            all 5 without.
        **options: as for ``build_detr``.
    """
    if trainable_layers is None:
        trainable_layers = 5 if backbone_weights is None else 3
    backbone = ResNetBackbone(name, backbone_weights, norm, dilation, trainable_layers)
    return build_detr(backbone, num_classes=num_classes, num_queries=num_queries, **options)


def detr_resnet18(num_classes: int = 91, num_queries: int = 100, **options: Any) -> DETR:
    """Build DETR on ResNet-18; options as for ``build_resnet_detr`` and ``build_detr``."""
    return build_resnet_detr("resnet18", num_classes, num_queries, **options)


def detr_resnet34(num_classes: int = 91, num_queries: int = 100, **options: Any) -> DETR:
    """Build DETR on ResNet-34; options as for ``build_resnet_detr`` and ``build_detr``."""
    return build_resnet_detr("resnet34", num_classes, num_queries, **options)


def detr_resnet50(num_classes: int = 91, num_queries: int = 100, **options: Any) -> DETR:
    """Build DETR on ResNet-50; options as for ``build_resnet_detr`` and ``build_detr``."""
    return build_resnet_detr("resnet50", num_classes, num_queries, **options)


def detr_resnet101(num_classes: int = 91, num_queries: int = 100, **options: Any) -> DETR:
    """Build DETR on ResNet-101; options as for ``build_resnet_detr`` and ``build_detr``."""
    return build_resnet_detr("resnet101", num_classes, num_queries, **options)


def detr_resnet50_dc5(num_classes: int = 91, num_queries: int = 100, **options: Any) -> DETR:
    """Build DETR on ResNet-50 DC5, a dilated last stage; options as for ``detr_resnet50``."""
    return build_resnet_detr("resnet50", num_classes, num_queries, dilation=True, **options)


def detr_resnet101_dc5(num_classes: int = 91, num_queries: int = 100, **options: Any) -> DETR:
    """Build DETR on ResNet-101 DC5, a dilated last stage; options as for ``detr_resnet50``."""
    return build_resnet_detr("resnet101", num_classes, num_queries, dilation=True, **options)


# Stride of the feature map -> channels and strides of the stages. At stride 16 the first stage
# strides by four: otherwise large images would spend most of their time at half resolution.
TINY_BACKBONES = {
    8: ((32, 64, 128, 128), (2, 2, 2, 1)),
    16: ((64, 128, 192, 256), (4, 2, 2, 1)),
}


def detr_tiny(
    num_classes: int = 3,
    num_queries: int = 20,
    *,
    stride: int = 8,
    query_mode: str = "anchor",
    dim: int = 128,
    num_heads: int = 4,
    num_encoder_layers: int = 2,
    num_decoder_layers: int = 3,
    dim_feedforward: int = 512,
    dropout: float = 0.0,
    **options: Any,
) -> DETR:
    """Build a small DETR with anchor-box queries, which trains from scratch on a CPU in minutes.

    Without dropout by default: on a CPU, dropout of 0.1 makes a step about a tenth longer.

    Args:
        num_classes: K, without "no object".
        num_queries: N.
        stride: of the feature map: 8 for images of about 100 pixels, 16 for a few hundred.
        **options: as for ``build_detr``.
    """
    if stride not in TINY_BACKBONES:
        raise ValueError(
            f"stride is {stride}, expected one of {', '.join(map(str, TINY_BACKBONES))}"
        )
    return build_detr(
        ConvBackbone(*TINY_BACKBONES[stride]),
        num_classes=num_classes,
        num_queries=num_queries,
        query_mode=query_mode,
        dim=dim,
        num_heads=num_heads,
        num_encoder_layers=num_encoder_layers,
        num_decoder_layers=num_decoder_layers,
        dim_feedforward=dim_feedforward,
        dropout=dropout,
        **options,
    )


MODELS = {
    "tiny": detr_tiny,
    "resnet18": detr_resnet18,
    "resnet34": detr_resnet34,
    "resnet50": detr_resnet50,
    "resnet101": detr_resnet101,
    "resnet50_dc5": detr_resnet50_dc5,
    "resnet101_dc5": detr_resnet101_dc5,
}
