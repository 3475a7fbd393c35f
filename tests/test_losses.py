"""The criterion against its straightforward twin, values and gradients."""

import pytest
import torch

from detr_fast import FastMatcher, reference
from detr_fast.boxes import paired_giou
from detr_fast.losses import SetCriterion

K = 4  # classes


def predictions(layers: int, batch: int, queries: int, seed: int = 0) -> dict:
    """Outputs of a model with ``layers`` decoder layers, as leaves to differentiate by."""
    generator = torch.Generator().manual_seed(seed)

    def layer():
        logits = torch.randn(batch, queries, K + 1, generator=generator)
        centres = 0.2 + 0.6 * torch.rand(batch, queries, 2, generator=generator)
        sizes = 0.05 + 0.3 * torch.rand(batch, queries, 2, generator=generator)
        return {
            "pred_logits": logits.requires_grad_(),
            "pred_boxes": torch.cat((centres, sizes), -1).requires_grad_(),
        }

    return {**layer(), "aux_outputs": [layer() for _ in range(layers - 1)]}


def some_targets(counts: list[int], seed: int = 1) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(K, (m,), generator=generator),
            "boxes": 0.1 + 0.4 * torch.rand(m, 4, generator=generator),
        }
        for m in counts
    ]


def leaves(outputs: dict) -> list[torch.Tensor]:
    layers = [outputs, *outputs["aux_outputs"]]
    return [layer[name] for layer in layers for name in ("pred_logits", "pred_boxes")]


@pytest.mark.parametrize(
    ("layers", "counts"),
    [(6, [3, 1, 5]), (1, [2, 2]), (3, [0, 4, 0]), (2, [0, 0]), (2, [9, 3])],
    ids=["six layers", "one layer", "images without objects", "no object", "more than queries"],
)
def test_equals_the_twin(layers, counts):
    outputs, targets = predictions(layers, len(counts), queries=7), some_targets(counts)
    losses = SetCriterion(K)(outputs, targets)
    expected = reference.set_criterion(outputs, targets, K)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=lambda m, n=name: f"{n}: {m}")
    assert set(losses) == set(expected) | {"class_error", "cardinality_error"}

    gradients = torch.autograd.grad(losses["loss"], leaves(outputs))
    expected_gradients = torch.autograd.grad(expected["loss"], leaves(outputs))
    torch.testing.assert_close(gradients, expected_gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_names_are_the_published_ones():
    losses = SetCriterion(K)(predictions(6, 1, 5), some_targets([2]))
    names = {
        f"loss_{kind}{layer}"
        for kind in ("ce", "bbox", "giou")
        for layer in ("", "_0", "_1", "_2", "_3", "_4")
    }
    assert set(losses) == names | {"loss", "class_error", "cardinality_error"}


def test_weights_and_eos_coef():
    outputs, targets = predictions(2, 2, 6), some_targets([2, 3])
    matcher = FastMatcher(2, 1, 1)
    criterion = SetCriterion(
        K, matcher, eos_coef=0.4, weight_class=3, weight_bbox=0.5, weight_giou=7
    )
    expected = reference.set_criterion(
        outputs, targets, K, 0.4, (3, 0.5, 7), reference.HungarianMatcher(2, 1, 1)
    )
    torch.testing.assert_close(criterion(outputs, targets)["loss"], expected["loss"])


def test_smooth_l1():
    outputs, targets = predictions(1, 1, 4), some_targets([1])
    ((i, j),) = FastMatcher()(outputs, targets)
    difference = (outputs["pred_boxes"][0, i] - targets[0]["boxes"][j]).abs()
    assert difference.max() < 1  # the quadratic part
    losses = SetCriterion(K, box_loss="smooth_l1")(outputs, targets)
    torch.testing.assert_close(losses["loss_bbox"], (0.5 * difference**2).sum().detach())
    with pytest.raises(ValueError, match="box_loss is 'l2'"):
        SetCriterion(K, box_loss="l2")


def test_perfect_predictions():
    targets = some_targets([3, 2])
    logits = torch.zeros(2, 5, K + 1)
    logits[..., K] = 50.0
    boxes = torch.full((2, 5, 4), 0.5)
    for b, target in enumerate(targets):
        count = len(target["labels"])
        logits[b, :count, K] = 0
        logits[b, torch.arange(count), target["labels"]] = 50.0
        boxes[b, :count] = target["boxes"]
    losses = SetCriterion(K)({"pred_logits": logits, "pred_boxes": boxes}, targets)
    for name, value in losses.items():
        assert value.abs() < 1e-5, name
    logits[0, 0], logits[0, 4] = logits[0, 4].clone(), logits[0, 0].clone()  # one right class lost
    losses = SetCriterion(K)({"pred_logits": logits, "pred_boxes": boxes}, targets)
    assert losses["class_error"] == pytest.approx(100 / 5)
    logits[1] = 0.0
    logits[1, :, 0] = 1.0  # five objects seen where there are two
    losses = SetCriterion(K)({"pred_logits": logits, "pred_boxes": boxes}, targets)
    assert losses["cardinality_error"] == pytest.approx((0 + 3) / 2)


def test_half_precision_outputs_are_compared_in_float32():
    outputs, targets = predictions(2, 2, 6), some_targets([2, 3])
    half = {
        name: value.detach().bfloat16() if name != "aux_outputs" else []
        for name, value in outputs.items()
    }
    full = {name: value.float() for name, value in half.items() if name != "aux_outputs"}
    half_loss, full_loss = SetCriterion(K)(half, targets), SetCriterion(K)(full, targets)
    assert half_loss["loss"].dtype == torch.float32
    torch.testing.assert_close(half_loss["loss"], full_loss["loss"])


def test_an_image_without_objects_may_come_as_an_empty_tensor():
    outputs, targets = predictions(2, 2, 5), some_targets([0, 2])
    expected = SetCriterion(K)(outputs, targets)["loss"]
    targets[0] = {"labels": torch.tensor([]), "boxes": torch.tensor([])}
    assert torch.equal(SetCriterion(K)(outputs, targets)["loss"], expected)


def test_nothing_to_learn_from_is_a_loss_of_zero():
    outputs, targets = predictions(2, 2, 5), some_targets([0, 0])
    assert SetCriterion(K, eos_coef=0)(outputs, targets)["loss"] == 0
    with pytest.raises(ValueError, match="no image"):
        SetCriterion(K)(outputs, [])
    with pytest.raises(ValueError, match=r"eos_coef is -1"):
        SetCriterion(K, eos_coef=-1)


def test_wrong_number_of_classes_is_named():
    with pytest.raises(ValueError, match="pred_logits has 5 classes, expected 7 and one"):
        SetCriterion(7)(predictions(1, 1, 3), some_targets([1]))
    with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\]\[0\] is 9"):
        wrong = [{"labels": torch.tensor([9]), "boxes": torch.full((1, 4), 0.5)}]
        SetCriterion(K)(predictions(1, 1, 3), wrong)


class TestPairedGIoU:
    def test_equals_the_diagonal(self):
        from torchvision.ops import generalized_box_iou

        corners = torch.rand(2, 500, 2, 2).sort(dim=2).values.flatten(2)
        found = paired_giou(*corners)
        torch.testing.assert_close(found, generalized_box_iou(*corners).diagonal())

    def test_gradient(self):
        corners = torch.rand(2, 20, 2, 2, dtype=torch.float64).sort(dim=2).values.flatten(2)
        corners.requires_grad_()
        assert torch.autograd.gradcheck(lambda c: paired_giou(*c), corners)

    def test_empty_boxes_give_finite_values_and_gradients(self):
        point = torch.full((1, 4), 0.5)
        apart = torch.tensor([[0.1, 0.1, 0.1, 0.1]])
        inside = torch.tensor([[0.4, 0.4, 0.6, 0.6]])
        for other, value in ((point, 0.0), (apart, -1.0), (inside, 0.0)):
            box = point.clone().requires_grad_()
            giou = paired_giou(box, other)
            assert giou.item() == pytest.approx(value)
            giou.sum().backward()
            assert box.grad.isfinite().all()
