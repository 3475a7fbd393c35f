"""The model against transformers' DETR, with the same weights copied over."""

import re

import pytest
import torch
from torch import Tensor

from detr_fast.models import detr_resnet18, detr_resnet50

transformers = pytest.importorskip("transformers")


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


@pytest.mark.parametrize(
    ("builder", "resnet"),
    [
        (detr_resnet50, {}),
        (
            detr_resnet18,
            {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
        ),
    ],
    ids=["resnet50", "resnet18"],
)
def test_same_outputs_on_a_padded_batch(builder, resnet):
    torch.manual_seed(0)
    ours = builder(num_classes=91, num_queries=100).eval()
    with torch.no_grad():  # frozen statistics that are not the identity
        for name, buffer in ours.backbone.named_buffers():
            if name.endswith(("running_var", "weight")):
                buffer.uniform_(0.5, 1.5)
            else:
                buffer.uniform_(-0.2, 0.2)
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(out_features=["stage4"], **resnet),
        num_labels=91,
        auxiliary_loss=False,
    )
    theirs = transformers.DetrForObjectDetection(config).eval()
    missing, unexpected = theirs.load_state_dict(
        published_to_transformers(ours.state_dict()), strict=False
    )
    assert not unexpected
    assert not [name for name in missing if "num_batches_tracked" not in name]

    images = torch.randn(2, 3, 192, 256)
    mask = torch.zeros(2, 192, 256, dtype=torch.bool)
    mask[1, 140:], mask[1, :, 200:] = True, True
    images[1, :, mask[1]] = 0
    with torch.no_grad():
        expected = theirs(pixel_values=images, pixel_mask=(~mask).long())
        found = ours(images, mask)
    assert found["pred_logits"].std() > 0.05  # not a comparison of constants
    torch.testing.assert_close(found["pred_logits"], expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes, atol=1e-5, rtol=1e-5)
