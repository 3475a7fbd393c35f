"""The model against transformers' DETR, with the same weights copied over."""

import pytest
import torch

from detr_fast.models import MODELS

pytest.importorskip("transformers")


@pytest.mark.parametrize("resnet", ["resnet50", "resnet18"])
def test_same_outputs_on_a_padded_batch(resnet):
    from benchmarks.baselines.transformers_detr import build

    torch.manual_seed(0)
    ours = MODELS[resnet](num_classes=91, num_queries=100).eval()
    with torch.no_grad():  # frozen statistics that are not the identity
        for name, buffer in ours.backbone.named_buffers():
            if name.endswith(("running_var", "weight")):
                buffer.uniform_(0.5, 1.5)
            else:
                buffer.uniform_(-0.2, 0.2)
    theirs = build(resnet, ours.state_dict()).eval()

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
