"""The rivals of the training step's benchmark compute what detr_fast computes."""

import pytest
import torch

from benchmarks.baselines.published_criterion import PublishedCriterion, log, scaled
from benchmarks.baselines.published_detr import PublishedDETR
from detr_fast.losses import SetCriterion
from detr_fast.models import detr_resnet18
from detr_fast.models.padding import pad_images


def frozen_statistics(model: torch.nn.Module) -> None:
    """Statistics that are not the identity."""
    with torch.no_grad():
        for name, buffer in model.backbone.named_buffers():
            if name.endswith(("running_var", "weight")):
                buffer.uniform_(0.5, 1.5)
            else:
                buffer.uniform_(-0.2, 0.2)


@pytest.mark.parametrize("padded", [False, True])
def test_published_losses_and_gradients(padded):
    torch.manual_seed(0)
    ours = detr_resnet18(num_classes=7, num_queries=12, trainable_layers=3, dropout=0.0)
    frozen_statistics(ours)
    theirs = PublishedDETR("resnet18", num_classes=7, num_queries=12, dropout=0.0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    sizes = [(96, 128), (80, 64) if padded else (96, 128)]
    images, padding = pad_images([torch.randn(3, *size) for size in sizes])
    assert (padding is not None) == padded
    mask = padding if padded else torch.zeros(2, 96, 128, dtype=torch.bool)  # theirs needs one
    targets = [
        {"labels": torch.tensor([1, 6, 0]), "boxes": 0.2 + 0.3 * torch.rand(3, 4)},
        {"labels": torch.tensor([3]), "boxes": 0.2 + 0.3 * torch.rand(1, 4)},
    ]

    expected = PublishedCriterion(7)(theirs(images, mask), targets)
    sum(scaled(expected).values()).backward()
    found = SetCriterion(7)(ours(images, padding), targets)
    found["loss"].backward()

    logged = log(expected)
    assert len(logged) == 18 + 25 + 2  # scaled, unscaled, class_error and the sum
    assert found["loss"].item() == pytest.approx(logged["loss"], rel=1e-5)
    own = {
        "loss",
        "no_object_matched",
        "no_object_unmatched",
        *(f"rematched_{i}" for i in range(5)),
    }
    assert own < found.keys()
    for name in found.keys() - own:
        assert found[name].item() == pytest.approx(logged[f"{name}_unscaled"], rel=1e-4), name
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == set(gradients)
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            wanted = gradients[name]
            scale = max(wanted.abs().max().item(), 1e-3)
            torch.testing.assert_close(parameter.grad, wanted, atol=1e-4 * scale, rtol=1e-3)
