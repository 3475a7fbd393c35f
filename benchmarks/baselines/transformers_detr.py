"""transformers' DetrForObjectDetection without any download, and a state dict for it."""

import re

import transformers
from torch import Tensor, nn

RESNETS = {
    "resnet18": {
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
    },
    "resnet50": {},
}


def build(
    resnet: str, state: dict[str, Tensor], num_classes: int = 91, num_queries: int = 100
) -> nn.Module:
    """The model on a ResNet with the weights of a published state dict.

    As in the paper all but the stem and the first stage are trained. (Of a backbone that is not
    timm's the library itself freezes everything: its own names miss the stages of its own ResNet.)
    Auxiliary losses are off, as is the library's default: set ``config.auxiliary_loss``.
    """
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(out_features=["stage4"], **RESNETS[resnet]),
        num_labels=num_classes,
        num_queries=num_queries,
        auxiliary_loss=False,
    )
    model = transformers.DetrForObjectDetection(config)
    missing, unexpected = model.load_state_dict(published_to_transformers(state), strict=False)
    missing = [name for name in missing if "num_batches_tracked" not in name]
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    for name, parameter in model.model.backbone.model.named_parameters():
        parameter.requires_grad_(bool(re.search(r"stages\.[123]", name)))
    return model


def published_to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> those of transformers 5: packed projections split, layers renamed."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("backbone.0.body."):
            renamed[_resnet_name(name.removeprefix("backbone.0.body."))] = value
            continue
        for pattern, replacement in (
            (r"^transformer\.decoder\.norm", "model.decoder.layernorm"),
            (r"^transformer\.", "model."),
            (r"^input_proj", "model.input_projection"),
            (r"^query_embed", "model.query_position_embeddings"),
            (r"^class_embed", "class_labels_classifier"),
            (r"^bbox_embed", "bbox_predictor"),
            (r"multihead_attn", "encoder_attn"),
            (r"out_proj", "o_proj"),
            (r"\.linear(\d)", r".mlp.fc\1"),
            (r"\.norm1", ".self_attn_layer_norm"),
            (r"(decoder.*)\.norm2", r"\1.encoder_attn_layer_norm"),
            (r"\.norm[23]", ".final_layer_norm"),
        ):
            name = re.sub(pattern, replacement, name)
        if ".in_proj_" in name:
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace(".in_proj_", f".{part}_proj.")] = tensor
        else:
            renamed[name] = value
    return renamed


def _resnet_name(name: str) -> str:
    prefix = "model.backbone.model."
    name = re.sub(r"^(conv1|bn1)\.", r"embedder.embedder.\1.", name)
    name = re.sub(
        r"^layer(\d)\.(\d+)\.downsample\.",
        lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut.",
        name,
    )
    name = re.sub(r"shortcut\.0", "shortcut.convolution", name)
    name = re.sub(r"shortcut\.1", "shortcut.normalization", name)
    name = re.sub(
        r"^layer(\d)\.(\d+)\.(conv|bn)(\d)",
        lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}.{m[3]}",
        name,
    )
    name = re.sub(r"\.conv1?\.", ".convolution.", name)
    return prefix + re.sub(r"\.bn1?\.", ".normalization.", name)
