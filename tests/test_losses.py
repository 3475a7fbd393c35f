"""The criterion against its straightforward twin, values and gradients."""

import pytest
import torch
from devices import NoWait, needs_cuda

from detr_fast import FastMatcher, PackedTargets, reference
from detr_fast.interop.matchers import deformable_detr, rtdetr
from detr_fast.losses import SetCriterion

K = 4  # classes
WEIGHTS = {"cost_class": 1, "cost_bbox": 5, "cost_giou": 2}  # as rtdetr takes them


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


DIAGNOSTICS = {"class_error", "cardinality_error", "no_object_matched", "no_object_unmatched"}


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
    assert set(losses) == set(expected) | DIAGNOSTICS | {
        f"rematched_{i}" for i in range(layers - 1)
    }

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
    more = {f"rematched_{layer}" for layer in range(5)}
    assert set(losses) == names | {"loss"} | DIAGNOSTICS | more


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
    assert losses.pop("no_object_unmatched") == 1
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_criterion_that_was_cast_computes_in_float32(dtype):
    """Together with the module that holds it."""
    outputs, targets = predictions(2, 2, queries=7), some_targets([3, 1])
    losses = SetCriterion(K, eos_coef=0.5).to(dtype)(outputs, targets)
    expected = SetCriterion(K, eos_coef=0.5)(outputs, targets)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(losses[name], value), name


def test_an_image_without_objects_may_come_as_an_empty_tensor():
    outputs, targets = predictions(2, 2, 5), some_targets([0, 2])
    expected = SetCriterion(K)(outputs, targets)["loss"]
    targets[0] = {"labels": torch.tensor([]), "boxes": torch.tensor([])}
    assert torch.equal(SetCriterion(K)(outputs, targets)["loss"], expected)


def test_nothing_to_learn_from_is_a_loss_of_zero():
    outputs, targets = predictions(2, 2, 5), some_targets([0, 0])
    assert SetCriterion(K, eos_coef=0)(outputs, targets)["loss"] == 0
    with pytest.raises(ValueError, match="targets is empty, expected at least one image"):
        SetCriterion(K)(outputs, [])


def test_wrong_number_of_classes_is_named():
    with pytest.raises(ValueError, match="pred_logits has 5 classes, expected 7 and one"):
        SetCriterion(7)(predictions(1, 1, 3), some_targets([1]))
    with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\]\[0\] is 9"):
        wrong = [{"labels": torch.tensor([9]), "boxes": torch.full((1, 4), 0.5)}]
        SetCriterion(K)(predictions(1, 1, 3), wrong)


@pytest.mark.parametrize("matcher", [FastMatcher, reference.HungarianMatcher])
def test_boxes_in_pixels_are_named(matcher):
    """Training on them would go on for ever, at an AP of 0."""
    outputs, targets = predictions(2, 3, 7), some_targets([2, 0, 3])
    targets[2]["boxes"][1] = torch.tensor([320.0, 240.5, 64.0, 48.0])
    message = (
        r"targets\[2\]\['boxes'\]\[1\] is \[320.0, 240.5, 64.0, 48.0\], but boxes must be cxcywh "
        r"in 0\.\.1 of the image: divide them by its width and height"
    )
    with pytest.raises(ValueError, match=message):
        SetCriterion(K, matcher())(outputs, targets)
    # Of an object that reaches far out of its part of the image.
    targets[2]["boxes"][1] = torch.tensor([-1.5, 2.5, 4.0, 6.0])
    assert SetCriterion(K, matcher())(outputs, targets)["loss"].isfinite()


@pytest.mark.skipif(
    torch.__version__ < torch.torch_version.TorchVersion("2.5"),
    reason="this torch does not compile the criterion as one graph",
)
@pytest.mark.parametrize("pack", [list, PackedTargets.pack])
def test_boxes_of_compiled_code_are_not_read(pack):
    outputs, targets = predictions(1, 1, 5), some_targets([2])
    targets[0]["boxes"] *= 640
    compiled = torch.compile(SetCriterion(K), fullgraph=True, backend="eager")
    assert compiled(outputs, pack(targets))["loss"].isfinite()


class Lists(torch.nn.Module):
    """A matcher of another code base: the published interface and no more."""

    def __init__(self, change=lambda matches: matches) -> None:
        super().__init__()
        self.change = change

    def forward(self, outputs, targets):
        return self.change(reference.HungarianMatcher()(outputs, targets))


@pytest.mark.parametrize("counts", [[3, 1, 5], [0, 4, 0], [0, 0], [9, 3]], ids=str)
def test_matchers_that_return_lists(counts):
    outputs, targets = predictions(3, len(counts), queries=7), some_targets(counts)
    expected = SetCriterion(K)(outputs, targets)
    for matcher in (Lists(), reference.HungarianMatcher()):
        found = SetCriterion(K, matcher)(outputs, targets)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            SetCriterion(K, matcher)(outputs, PackedTargets.pack(targets)), expected
        )
    small = Lists(lambda matches: [(i.int(), j.int()) for i, j in matches])
    torch.testing.assert_close(SetCriterion(K, small)(outputs, targets), expected)


def test_matches_that_are_none_are_named():
    outputs, targets = predictions(2, 2, 7), some_targets([1, 3])

    def several(matches):
        return [matches[0], (torch.arange(2), torch.tensor([1, 1]))]

    message = r"layer 0, image 1: .* assigned several queries to target 1$"
    with pytest.raises(ValueError, match=message):
        SetCriterion(K, Lists(several))(outputs, targets)
    for query, target in ((0, 3), (0, -1), (7, 2), (-1, 2)):
        pair = torch.tensor([query]), torch.tensor([target])
        place = f"layer 0, image 1: the matcher assigned query {query} to target {target}"
        with pytest.raises(ValueError, match=f"{place}, but there are 7 queries and 3 targets"):
            SetCriterion(K, Lists(lambda m, pair=pair: [m[0], pair]))(outputs, targets)
    twice = torch.tensor([6, 2, 2]), torch.tensor([0, 1, 2])
    message = r"layer 0, image 1: .* assigned query 2 to several targets"
    with pytest.raises(ValueError, match=message):
        SetCriterion(K, Lists(lambda m: [m[0], twice]))(outputs, targets)
    uneven = [torch.arange(1), torch.arange(1)], [torch.arange(3), torch.arange(2)]
    message = r"layer 0, image 1: the matcher returned 3 queries, but 2 targets$"
    with pytest.raises(ValueError, match=message):
        SetCriterion(K, Lists(lambda m: uneven))(outputs, targets)
    message = r"layer 0: the matcher returned matches for 3 images, .* 2$"
    with pytest.raises(ValueError, match=message):
        SetCriterion(K, Lists(lambda m: [*m, m[0]]))(outputs, targets)


def test_place_of_a_match_in_a_later_layer():
    """The first layer's matches are right; queries of images and layers do not meet."""
    outputs, targets = predictions(2, 3, 7), some_targets([2, 0, 2])
    right = torch.tensor([5, 6]), torch.tensor([0, 1])
    none = torch.tensor([]), torch.tensor([])
    calls = []

    def change(matches):
        calls.append(matches)
        return [right, none, right if len(calls) == 1 else (right[0] + 1, right[1])]

    message = "layer 1, image 2: the matcher assigned query 7 to target 1"
    with pytest.raises(ValueError, match=message):
        SetCriterion(K, Lists(change))(outputs, targets)


@pytest.mark.parametrize("name", ["eos_coef", "weight_class", "weight_bbox", "weight_giou"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected a finite weight"):
        SetCriterion(K, **{name: value})


@pytest.mark.parametrize(
    "matcher",
    [
        FastMatcher(class_cost="focal"),
        deformable_detr.HungarianMatcher(),
        rtdetr.HungarianMatcher(WEIGHTS, use_focal_loss=True),
    ],
    ids=["fast", "deformable", "rtdetr"],
)
def test_focal_cost_beside_cross_entropy_is_refused(matcher):
    with pytest.raises(ValueError, match="has the focal class cost"):
        SetCriterion(K, matcher)


def test_a_cost_changed_later_is_refused_too():
    criterion = SetCriterion(K)
    criterion.matcher.class_cost = "focal"
    with pytest.raises(ValueError, match="has the focal class cost"):
        criterion(predictions(2, 1, 7), some_targets([2]))


def test_a_subclass_has_the_last_word():
    class First(FastMatcher):
        def forward(self, outputs, targets):
            return [(i[:1], j[:1]) for i, j in super().forward(outputs, targets)]

    outputs, targets = predictions(2, 2, 7), some_targets([3, 0])
    found = SetCriterion(K, First())(outputs, targets)
    twin = reference.set_criterion(outputs, targets, K, matcher=First())
    torch.testing.assert_close(found["loss"], twin["loss"])
    assert found["loss"] != SetCriterion(K)(outputs, targets)["loss"]


def test_a_matcher_whose_class_cost_is_a_weight():  # as transformers calls it
    matcher = Lists()
    matcher.class_cost = 2.0
    outputs, targets = predictions(2, 1, 7), some_targets([2])
    expected = SetCriterion(K)(outputs, targets)
    torch.testing.assert_close(SetCriterion(K, matcher)(outputs, targets), expected)


def test_a_matcher_that_returns_something_else_is_named():
    criterion = SetCriterion(K, rtdetr.HungarianMatcher(WEIGHTS))  # its result is a dict
    message = "layer 0: the matcher returned a dict, expected a list"
    with pytest.raises(ValueError, match=message):
        criterion(predictions(2, 1, 7), some_targets([2]))


@pytest.mark.parametrize("capacity", [None, 9, 20])
def test_packed_targets(capacity):
    outputs, targets = predictions(3, 3, 7), some_targets([3, 0, 6])
    expected = SetCriterion(K)(outputs, targets)
    found = SetCriterion(K)(outputs, PackedTargets.pack(targets, capacity))
    torch.testing.assert_close(found, expected)


def on(device, nested):
    if isinstance(nested, dict):
        return {key: on(device, value) for key, value in nested.items()}
    if isinstance(nested, list):
        return [on(device, value) for value in nested]
    return nested.detach().to(device).requires_grad_(nested.requires_grad)


@needs_cuda
@pytest.mark.parametrize("box_loss", ["l1", "smooth_l1"])
@pytest.mark.parametrize("counts", [[3, 1, 5], [0, 4, 0], [0, 0], [9, 3]], ids=str)
def test_on_a_gpu_without_a_wait(counts, box_loss):
    outputs, targets = predictions(6, len(counts), queries=7), some_targets(counts)
    criterion = SetCriterion(K, box_loss=box_loss)
    expected = criterion(outputs, targets)
    expected_gradients = torch.autograd.grad(expected["loss"], leaves(outputs))
    criterion = criterion.cuda()
    on_gpu = on("cuda", outputs)
    criterion(on_gpu, on("cuda", targets))  # kernels are loaded, memory is reserved
    for given in (on("cuda", targets), targets, PackedTargets.pack(targets)):
        with NoWait():
            found = criterion(on_gpu, given)
            gradients = torch.autograd.grad(found["loss"], leaves(on_gpu))
        torch.testing.assert_close(on("cpu", found), on("cpu", expected))
        torch.testing.assert_close([g.cpu() for g in gradients], list(expected_gradients))


@needs_cuda
def test_graph_of_criterion_and_backward():
    """One capture serves batches of other sizes, packed with the same capacity."""
    criterion = SetCriterion(K).cuda()
    outputs = on("cuda", predictions(3, 2, 7))
    targets = PackedTargets.pack(some_targets([3, 2]), capacity=12).to("cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(criterion(outputs, targets)["loss"], leaves(outputs))
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = criterion(outputs, targets)
        gradients = torch.autograd.grad(losses["loss"], leaves(outputs))
    for seed, counts in enumerate(([3, 2], [0, 7], [0, 0], [6, 6])):
        batch, values = some_targets(counts, seed=seed), predictions(3, 2, 7, seed=seed)
        targets.copy_(PackedTargets.pack(batch, capacity=12))
        with torch.no_grad():
            for mine, other in zip(leaves(outputs), leaves(values), strict=True):
                mine.copy_(other)
        graph.replay()
        expected = SetCriterion(K)(values, batch)
        torch.testing.assert_close(on("cpu", losses), on("cpu", expected))
        torch.testing.assert_close(
            [g.cpu() for g in gradients],
            list(torch.autograd.grad(expected["loss"], leaves(values))),
        )


def test_the_parts_are_for_logs():
    outputs, targets = predictions(2, 2, 5), some_targets([3, 1])
    wide = {n: v.detach().double() for n, v in outputs.items() if n != "aux_outputs"}
    for given in (outputs, wide):
        losses = SetCriterion(K)(given, targets)
        assert not any(value.requires_grad for name, value in losses.items() if name != "loss")
        assert {value.dtype for value in losses.values()} == {torch.float32}


def test_several_batches_need_their_counts():
    with pytest.raises(ValueError, match="batches is 2, which needs step_counts"):
        SetCriterion(K)(predictions(1, 1, 4), some_targets([1]), batches=2)


def test_figures_of_the_classes_are_the_last_layers():
    outputs, targets = predictions(3, 2, 6), some_targets([3, 1])
    losses = SetCriterion(K)(outputs, targets)
    alone = SetCriterion(K)({**outputs, "aux_outputs": []}, targets)
    for name in ("loss_ce", "class_error", "cardinality_error", "no_object_matched"):
        assert losses[name] == alone[name], name


def test_cardinality_error():
    targets = some_targets([3, 2])
    logits = torch.zeros(2, 5, K + 1)
    logits[0, :, K] = 1.0  # none of three seen
    logits[1, :, 0] = 1.0  # five seen where there are two
    losses = SetCriterion(K)(
        {"pred_logits": logits, "pred_boxes": torch.full((2, 5, 4), 0.5)}, targets
    )
    assert losses["cardinality_error"] == pytest.approx((3 + 3) / 2)
