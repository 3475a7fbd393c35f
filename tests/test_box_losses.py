"""The box losses of matched pairs and the wanted classes against the twins, and gradients."""

import pytest
import torch
from devices import DEVICES, NoWait, needs_cuda, needs_two_gpus
from torch import Tensor

from detr_fast import ops, reference

CASES = {  # layers, queries, targets of each image
    "usual": (6, 20, [3, 7, 0, 5]),
    "one pair": (1, 1, [1]),
    "no target": (2, 5, [0, 0]),
    "more targets than queries": (3, 4, [9, 2]),
    "no image": (2, 5, []),
    "no layer": (0, 5, [2]),
    "no query": (2, 0, [2, 1]),
    "more than a block": (2, 900, [300, 0, 250, 1]),
}
HALVES = [torch.float16, torch.bfloat16]


def some_boxes(*shape: int, generator: torch.Generator) -> Tensor:
    """cxcywh"""
    boxes = torch.rand(*shape, 4, generator=generator, dtype=torch.float64)
    return boxes * torch.tensor([1, 1, 0.5, 0.5]) + torch.tensor([0, 0, 0.02, 0.02])


def matched(name: str, dtype=torch.float32, wide: bool = False) -> dict[str, Tensor]:
    """The tensors of a case: some targets of each layer have no query."""
    layers, queries, counts = CASES[name]
    generator = torch.Generator().manual_seed(0)
    query_index = torch.full((layers, sum(counts)), -1)
    for row in query_index:
        begin = 0
        for count in counts:
            chosen = torch.randperm(queries, generator=generator)[:count]
            places = begin + torch.randperm(count, generator=generator)[: len(chosen)]
            row[places] = chosen
            begin += count
        row[torch.rand(len(row), generator=generator) < 0.1] = -1
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return {
        "boxes": some_boxes(layers, len(counts), queries, generator=generator).to(dtype),
        "target_boxes": some_boxes(sum(counts), generator=generator).to(
            torch.float64 if dtype == torch.float64 else torch.float32
        ),
        "query_index": query_index,
        "image_offsets": offsets if wide else offsets.int(),
    }


def on(device: str, case: dict[str, Tensor]) -> dict[str, Tensor]:
    moved = {name: tensor.detach().to(device, copy=True) for name, tensor in case.items()}
    moved["boxes"].requires_grad_()
    return moved


def losses_and_gradient(module, case: dict[str, Tensor], box_loss: str) -> list[Tensor]:
    coordinates, giou = module.box_losses(**case, box_loss=box_loss)
    weights = torch.linspace(1, 2, len(giou), device=giou.device, dtype=giou.dtype)
    total = (weights * coordinates).sum() + (giou * weights.flip(0)).sum()
    # With nothing matched the twin's graph has no edge to the boxes.
    (gradient,) = (
        torch.autograd.grad(total, case["boxes"], materialize_grads=True)
        if total.requires_grad
        else (torch.zeros_like(case["boxes"]),)
    )
    return [x.detach().cpu() for x in (coordinates, giou, gradient)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("box_loss", ["l1", "smooth_l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_twin(name, dtype, box_loss, device):
    if name == "no layer":
        found = ops.box_losses(**on(device, matched(name, dtype)), box_loss=box_loss)
        assert [x.shape for x in found] == [(0,), (0,)]
        return
    case = matched(name, dtype)
    found = losses_and_gradient(ops, on(device, case), box_loss)
    expected = losses_and_gradient(reference, on("cpu", case), box_loss)
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert found[2].dtype == dtype
    torch.testing.assert_close(found, expected)
    if sum(CASES[name][2]) and CASES[name][1]:
        assert found[2].abs().sum() > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("box_loss", ["l1", "smooth_l1"])
def test_every_constellation(box_loss, device):
    """Zero width, coincident and touching boxes: values and subgradients of the torch formula."""
    spans = [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 4), (3, 4)]
    boxes = (
        torch.tensor(
            [
                ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
                for x0, x1 in spans
                for y0, y1 in spans
            ],
            dtype=torch.float64,
        )
        / 4
    )
    count = len(boxes)
    # One image and one query for each pair of boxes: the gradient of every pair on its own.
    case = {
        "boxes": boxes.repeat_interleave(count, 0).view(1, count**2, 1, 4),
        "target_boxes": boxes.repeat(count, 1),
        "query_index": torch.zeros(1, count**2, dtype=torch.int64),
        "image_offsets": torch.arange(count**2 + 1),
    }
    found = losses_and_gradient(ops, on(device, case), box_loss)
    expected = losses_and_gradient(reference, on("cpu", case), box_loss)
    torch.testing.assert_close(found, expected)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wide", [False, True])
def test_gradcheck(wide, device):
    case = on(device, matched("usual", torch.float64, wide))

    def losses(boxes: Tensor) -> Tensor:
        return torch.stack(ops.box_losses(**{**case, "boxes": boxes}))

    assert torch.autograd.gradcheck(losses, case["boxes"])


@pytest.mark.parametrize("device", DEVICES)
def test_one_of_both_losses_alone(device):
    case = on(device, matched("usual"))
    both = torch.stack(ops.box_losses(**case))
    for k in range(2):
        (alone,) = torch.autograd.grad(both[k].sum(), case["boxes"], retain_graph=True)
        twin = on("cpu", matched("usual"))
        expected = torch.stack(reference.box_losses(**twin))[k].sum()
        torch.testing.assert_close(alone.cpu(), torch.autograd.grad(expected, twin["boxes"])[0])


def test_expanded_gradients_are_read_with_their_stride():
    """The gradient of a sum is one number, expanded."""
    case = on("cpu", matched("usual"))
    layers = len(case["query_index"])
    by = torch.tensor(3.0), torch.tensor(-2.0)
    op = torch.ops.detr_fast.box_losses_backward
    arguments = (*(x.detach() for x in case.values()), "l1")
    expanded = op(by[0].expand(layers), by[1].expand(layers), *arguments)
    assert torch.equal(expanded, op(by[0].repeat(layers), by[1].repeat(layers), *arguments))
    strided = torch.stack([by[0].repeat(layers), by[1].repeat(layers)], dim=1)
    assert torch.equal(expanded, op(strided[:, 0], strided[:, 1], *arguments))


@pytest.mark.parametrize("device", DEVICES)
def test_indices_out_of_range_count_as_unmatched(device):
    case = matched("usual")
    case["query_index"][:, ::3] = torch.tensor([20, -7, 2**40, 21, -(2**62)])
    clean = {
        **case,
        "query_index": case["query_index"].where(
            (case["query_index"] >= 0) & (case["query_index"] < 20), -1
        ),
    }
    found = losses_and_gradient(ops, on(device, case), "l1")
    torch.testing.assert_close(found, losses_and_gradient(reference, on("cpu", clean), "l1"))
    labels = torch.arange(15) % 4
    given = (case["query_index"], labels, case["image_offsets"])
    classes = ops.target_classes(*(x.to(device) for x in given), 20, 4)
    assert torch.equal(classes.cpu(), reference.target_classes(*given, 20, 4))


@pytest.mark.parametrize("device", DEVICES)
def test_padding_behind_the_last_offset_counts_as_unmatched(device):
    case = matched("usual")
    padded = {
        **case,
        "target_boxes": torch.cat((case["target_boxes"], torch.full((4, 4), torch.nan))),
        "query_index": torch.cat((case["query_index"], torch.zeros(6, 4, dtype=torch.int64)), 1),
    }
    torch.testing.assert_close(
        losses_and_gradient(ops, on(device, padded), "l1"),
        losses_and_gradient(ops, on(device, case), "l1"),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_query_of_several_targets_learns_from_all(device):
    case = matched("usual")
    case["query_index"][:, :3] = 5  # all three of the first image
    torch.testing.assert_close(
        losses_and_gradient(ops, on(device, case), "l1"),
        losses_and_gradient(reference, on("cpu", case), "l1"),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_nan_is_not_hidden(dtype, device):
    case = matched("usual", dtype)
    query = int(case["query_index"][2, 0])
    assert query >= 0
    for coordinate in range(4):
        wrong = {**case, "boxes": case["boxes"].clone()}
        wrong["boxes"][2, 0, query, coordinate] = torch.nan
        coordinates, giou, gradient = losses_and_gradient(ops, on(device, wrong), "l1")
        assert (
            coordinates.isnan().tolist()
            == giou.isnan().tolist()
            == [False] * 2 + [True] + ([False] * 3)
        )
        assert gradient[2, 0, query].isnan().all()
        gradient[2, 0, query] = 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_not_contiguous_and_not_aligned(device):
    case = on(device, matched("usual"))
    expected = ops.box_losses(**case)
    boxes = case["boxes"].detach().permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    shifted = torch.cat((boxes.new_zeros(1), boxes.flatten()))[1:].view(boxes.shape)
    for other in (boxes, shifted):
        found = ops.box_losses(**{**case, "boxes": other})
        torch.testing.assert_close(found, tuple(x.detach() for x in expected))
    index = case["query_index"].T.contiguous().T
    torch.testing.assert_close(ops.box_losses(**{**case, "query_index": index}), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time(device):
    case = on(device, matched("more than a block"))
    first = losses_and_gradient(ops, case, "l1")
    for _ in range(5):
        for mine, theirs in zip(losses_and_gradient(ops, case, "l1"), first, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_target_classes(name, wide, device):
    case = matched(name, wide=wide)
    queries = CASES[name][1]
    labels = torch.arange(len(case["target_boxes"])) % 7 - 1  # -1 and 5 are outside 0..4
    given = [case["query_index"], labels, case["image_offsets"]]
    found = ops.target_classes(*(x.to(device) for x in given), queries, 5)
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), reference.target_classes(*given, queries, 5))
    small = ops.target_classes(
        given[0].to(device), labels.to(device, torch.int32), given[2].to(device), queries, 5
    )
    assert torch.equal(small, found)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("box_loss", "l2", "box_loss is 'l2', but must be one of l1, smooth_l1"),
        ("boxes", torch.zeros(6, 3, 20, 4), r"boxes is torch\.float32 \[6, 3, 20, 4\]"),
        ("boxes", torch.zeros(4), r"boxes is torch\.float32 \[4\]"),
        ("boxes", torch.zeros(6, 4, 20, 4, dtype=torch.int64), r"boxes is torch\.int64"),
        ("target_boxes", torch.zeros(14, 4), r"target_boxes is .* need floating point \[15, 4\]"),
        ("query_index", torch.zeros(6, 15), r"query_index is torch\.float32 \[6, 15\]"),
        ("image_offsets", torch.zeros(5), r"image_offsets is torch\.float32 \[5\]"),
        ("image_offsets", torch.zeros(0, dtype=torch.int32), r"image_offsets is .* \[0\]"),
        ("image_offsets", torch.tensor([0, 3, 2, 10, 15]), r"\[0, 3, 2, 10, 15\], but must rise"),
        ("image_offsets", torch.tensor([1, 3, 4, 10, 15]), "must rise from 0 to at most 15"),
        ("image_offsets", torch.tensor([0, 3, 4, 10, 16]), "must rise from 0 to at most 15"),
        ("target_boxes", torch.zeros(15, 4, requires_grad=True), "target_boxes requires a grad"),
    ],
)
def test_wrong_input_is_named(name, value, message):
    case = on("cpu", matched("usual"))
    with pytest.raises(ValueError, match=message):
        ops.box_losses(**{**case, name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(14, dtype=torch.int64)}, r"labels is torch\.int64 \[14\]"),
        ({"labels": torch.zeros(15)}, r"labels is torch\.float32"),
        ({"queries": -1}, "queries is -1"),
        ({"image_offsets": torch.tensor([0, 16])}, "must rise"),
    ],
)
def test_wrong_input_of_target_classes_is_named(change, message):
    case = matched("usual")
    given = {
        "query_index": case["query_index"],
        "labels": torch.zeros(15, dtype=torch.int64),
        "image_offsets": case["image_offsets"],
        "queries": 20,
        "no_object": 4,
    }
    with pytest.raises(ValueError, match=message):
        ops.target_classes(**{**given, **change})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype, device):
    case = on(device, matched("usual", dtype))
    library = torch.ops.detr_fast
    torch.library.opcheck(library.box_losses.default, (*case.values(), "l1"))
    plain = [x.detach() for x in case.values()]
    by = [torch.rand(6, device=device) for _ in range(2)]
    torch.library.opcheck(library.box_losses_backward.default, (*by, *plain, "smooth_l1"))
    labels = torch.arange(15, device=device)
    torch.library.opcheck(library.target_classes.default, (plain[2], labels, plain[3], 20, 91))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_into_one_graph(device):
    def loss(boxes: Tensor, case: dict[str, Tensor]) -> Tensor:
        coordinates, giou = ops.box_losses(boxes.sigmoid(), **case)
        classes = ops.target_classes(case["query_index"], labels, case["image_offsets"], 20, 4)
        return 5 * coordinates.sum() + 2 * giou.sum() + (classes == 4).sum() * boxes.mean()

    case = on(device, matched("usual"))
    labels = torch.arange(15, device=device) % 4
    boxes = case.pop("boxes")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(boxes, case), boxes),
        torch.autograd.grad(loss(boxes, case), boxes),
    )


def test_forward_mode_is_an_error():
    case = matched("usual")
    tangent = torch.ones_like(case["boxes"])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(case["boxes"], tangent)
        with pytest.raises(NotImplementedError, match="box_losses has no derivative in forward"):
            ops.box_losses(**case | {"boxes": dual})


def test_a_second_derivative_is_an_error():
    case = on("cpu", matched("usual"))
    (gradient,) = torch.autograd.grad(
        ops.box_losses(**case)[1].sum(), case["boxes"], create_graph=True
    )
    with pytest.raises(NotImplementedError, match="box_losses_backward has no derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_precision_number_is_read_and_written(dtype):
    """As centres of points: the smooth L1 loss of a distance below 1 has it as its derivative."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite() & (numbers.abs() < 1)]
    boxes = torch.zeros(1, 1, len(numbers), 4, dtype=dtype)
    boxes[0, 0, :, 0] = numbers
    boxes.requires_grad_()
    coordinates, _ = ops.box_losses(
        boxes,
        torch.zeros(len(numbers), 4),
        torch.arange(len(numbers))[None],
        torch.tensor([0, len(numbers)]),
        "smooth_l1",
    )
    (gradient,) = torch.autograd.grad(coordinates.sum(), boxes)
    assert torch.equal(gradient[0, 0, :, 0], numbers)
    assert coordinates.item() == pytest.approx((numbers.double() ** 2 / 2).sum().item())
    # Rounding: factors that leave every last digit to it, up to infinity and down to zero.
    for factor in (0.7, 1 / 3, 1e5, 2e-6):
        (gradient,) = torch.autograd.grad(
            ops.box_losses(
                boxes,
                torch.zeros(len(numbers), 4),
                torch.arange(len(numbers))[None],
                torch.tensor([0, len(numbers)]),
                "smooth_l1",
            )[0].sum()
            * factor,
            boxes,
        )
        expected = (numbers.float() * factor).to(dtype)
        assert torch.equal(gradient[0, 0, :, 0], expected)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_side_stream_without_a_wait(dtype):
    expected = losses_and_gradient(ops, on("cpu", matched("usual", dtype)), "l1")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        case = on("cuda", matched("usual", dtype))
        with NoWait():
            torch.cuda._sleep(10_000_000)  # what comes next must be queued behind it
            boxes = case["boxes"] * 1
            coordinates, giou = ops.box_losses(**{**case, "boxes": boxes})
            weights = torch.linspace(1, 2, 6, device="cuda")
            ((weights * coordinates).sum() + (giou * weights.flip(0)).sum()).backward()
    stream.synchronize()
    found = [x.detach().cpu() for x in (coordinates, giou, case["boxes"].grad)]
    torch.testing.assert_close(found, expected)


@needs_cuda
def test_graph_capture():
    case = on("cuda", matched("usual"))
    labels = torch.arange(15, device="cuda")

    def step():
        sums = torch.stack(ops.box_losses(**case))
        (gradient,) = torch.autograd.grad(sums.sum(), case["boxes"])
        classes = ops.target_classes(case["query_index"], labels, case["image_offsets"], 20, 91)
        return sums, gradient, classes

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        case["query_index"].copy_(case["query_index"].roll(1, 0))
        case["boxes"].mul_(0.9)
    graph.replay()
    torch.testing.assert_close(found, step())


@needs_cuda
def test_one_kernel_each():
    from torch.profiler import ProfilerActivity, profile

    case = on("cuda", matched("usual"))
    by = torch.ones(6, device="cuda")
    ops.box_losses(**case)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(20):  # the profiler may lose the first records
            torch.autograd.grad(ops.box_losses(**case), case["boxes"], (by, by))
        torch.cuda.synchronize()
    kernels = [event.key for event in seen.key_averages() if event.self_device_time_total > 0]
    assert len(kernels) == 2, kernels


@needs_two_gpus
def test_other_device_than_the_current_one():
    torch.cuda.set_device(0)
    found = losses_and_gradient(ops, on("cuda:1", matched("usual")), "l1")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(found, losses_and_gradient(ops, on("cpu", matched("usual")), "l1"))


def test_the_twin_is_torchvisions():
    from torchvision.ops import generalized_box_iou

    corners = torch.rand(2, 500, 2, 2).sort(dim=2).values.flatten(2)
    found = reference.paired_iou(*corners, generalized=True)
    torch.testing.assert_close(found, generalized_box_iou(*corners).diagonal())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("box_loss", ["l1", "smooth_l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_differences_of_one_and_more(dtype, box_loss, device):
    """Boxes in 0..1 do not get to where smooth L1 is linear."""
    case = matched("usual", dtype)
    case = {**case, "boxes": case["boxes"] * 4, "target_boxes": case["target_boxes"] * 4}
    case["boxes"][0, 0, int(case["query_index"][0, 1])] = case["target_boxes"][1].to(dtype) + 1
    found = losses_and_gradient(ops, on(device, case), box_loss)
    torch.testing.assert_close(found, losses_and_gradient(reference, on("cpu", case), box_loss))
    plain = losses_and_gradient(ops, on(device, case), "l1")
    if box_loss == "smooth_l1":  # differences on both sides of 1
        below = (plain[0] - found[0]) / len(case["target_boxes"])
        assert ((below > 0.1) & (below < 1.9)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_each_gradient_is_read_with_its_own_stride(device):
    case = {name: x.detach().to(device) for name, x in matched("usual").items()}
    op = torch.ops.detr_fast.box_losses_backward
    same, each = torch.full((6,), 3.0, device=device), torch.linspace(-2, 3, 6, device=device)
    expanded, strided = same[:1].expand(6), torch.stack([each, same], dim=1)[:, 0]
    assert (expanded.stride(0), strided.stride(0)) == (0, 2)
    for first, second in ((same, each), (each, same)):
        expected = op(first, second, *case.values(), "l1")
        for others in ((expanded, each), (same, strided), (expanded, strided)):
            by = others if first is same else others[::-1]
            assert torch.equal(op(*by, *case.values(), "l1"), expected)
