"""Pairwise IoU and generalised IoU against torchvision and the twins, values and gradients."""

import os
import subprocess
import sys

import pytest
import torch
import torchvision
from devices import DEVICES, NoWait, needs_cuda, needs_two_gpus
from torch import Tensor
from torchvision.ops import box_convert

from detr_fast import ops, reference

OPS = ["box_iou", "generalized_box_iou"]
SIZES = [(0, 3), (3, 0), (1, 1), (7, 5), (100, 17), (65, 300)]


def some_boxes(*shape: int, dtype=torch.float32, seed: int = 0, format: str = "xyxy") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    sizes = 0.05 + 0.5 * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat((centres, sizes), -1)
    return box_convert(boxes, "cxcywh", format).to(dtype)


# Every way that two boxes can lie on a coarse grid: apart, touching, inside, coincident, flat,
# points.
def grid_boxes(dtype: torch.dtype) -> Tensor:
    spans = [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 4), (3, 4)]
    return torch.tensor([(x0, y0, x1, y1) for x0, x1 in spans for y0, y1 in spans], dtype=dtype) / 4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(op, sizes, dtype, device):
    a, b = (some_boxes(n, dtype=dtype, seed=k) for k, n in enumerate(sizes))
    expected = getattr(torchvision.ops, op)(a, b)
    found = getattr(ops, op)(a.to(device), b.to(device)).cpu()
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(getattr(reference, op)(a, b), expected)
    centred = [box_convert(x, "xyxy", "cxcywh").to(device) for x in (a, b)]
    torch.testing.assert_close(getattr(ops, op)(*centred, format="cxcywh").cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_batches_are_their_images(op, device):
    a, b = some_boxes(3, 70, seed=1).to(device), some_boxes(3, 9, seed=2).to(device)
    found = getattr(ops, op)(a, b)
    assert found.shape == (3, 70, 9)
    for k in range(3):
        torch.testing.assert_close(found[k], getattr(ops, op)(a[k], b[k]), rtol=0, atol=0)
    assert getattr(ops, op)(a[:0], b[:0]).shape == (0, 70, 9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(op, dtype, device):
    a, b = (some_boxes(20, dtype=dtype, seed=k).to(device).requires_grad_() for k in (1, 2))
    found = getattr(ops, op)(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, getattr(reference, op)(a.float(), b.float()))
    for gradient in torch.autograd.grad(found.sum(), (a, b)):
        assert gradient.dtype == dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("format", ["xyxy", "cxcywh"])
def test_every_constellation(op, format, device):
    """Where edges coincide or areas vanish: values and gradients of the formula in torch."""
    boxes = box_convert(grid_boxes(torch.float64), "xyxy", format)
    results = []
    for module, where in ((ops, device), (reference, "cpu")):
        a, b = (boxes.to(where, copy=True).requires_grad_() for _ in range(2))
        values = getattr(module, op)(a, b, format)
        weights = torch.rand(values.shape, dtype=torch.float64, generator=torch.Generator())
        one_each = torch.autograd.grad((values * weights.to(where)).sum(), (a, b))
        results.append([x.detach().cpu() for x in (values, *one_each)])
    torch.testing.assert_close(*results)
    assert results[0][0].isfinite().all()
    # Pair by pair, so that nothing cancels.
    for i in range(0, len(boxes), 5):
        pairs = []
        for module, where in ((ops, device), (reference, "cpu")):
            a = boxes[i : i + 1].to(where, copy=True).requires_grad_()
            b = boxes.to(where, copy=True).requires_grad_()
            pairs.append(
                [
                    g.cpu()
                    for g in torch.autograd.grad(getattr(module, op)(a, b, format).sum(), (a, b))
                ]
            )
        torch.testing.assert_close(*pairs)


def test_empty_boxes_have_values():
    point, apart = torch.full((1, 4), 0.5), torch.full((1, 4), 0.1)
    assert torchvision.ops.box_iou(point, point).isnan()
    assert ops.box_iou(point, point) == 0
    assert ops.generalized_box_iou(point, point) == 0
    assert ops.generalized_box_iou(point, apart) == -1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_boxes_give_nan(op, bad, device):
    boxes = some_boxes(20).to(device)
    for coordinate in range(4):
        wrong = boxes.clone()
        wrong[7, coordinate] = bad
        for found in (getattr(ops, op)(wrong, boxes), getattr(ops, op)(boxes, wrong).T):
            assert found[7].isnan().all()
            assert found[:7].isfinite().all() and found[8:].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("format", ["xyxy", "cxcywh"])
def test_gradcheck(op, format, device):
    a, b = (
        some_boxes(2, n, dtype=torch.float64, seed=n, format=format).to(device).requires_grad_()
        for n in (6, 4)
    )
    assert torch.autograd.gradcheck(lambda a, b: getattr(ops, op)(a, b, format), (a, b))
    with pytest.raises(NotImplementedError, match="pairwise_iou_backward has no derivative"):
        gradient, _ = torch.autograd.grad(
            getattr(ops, op)(a, b, format).sum(), (a, b), create_graph=True
        )
        gradient.sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_gradient_over_many_rows_and_threads(op):
    """More rows than a thread takes at once: the same bits on one thread and on two."""
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            a, b = (some_boxes(n, seed=n).requires_grad_() for n in (700, 600))
            gradients = torch.autograd.grad(getattr(ops, op)(a, b).square().sum(), (a, b))
            results.append(gradients)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.equal(mine, theirs)
    expected = torch.autograd.grad(getattr(reference, op)(a, b).square().sum(), (a, b))
    torch.testing.assert_close(results[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_not_contiguous(device):
    a, b = some_boxes(8, 3, seed=1).to(device), some_boxes(20, seed=2).to(device)
    strided = a.mT.contiguous().mT
    assert not strided.is_contiguous()
    expected = ops.box_iou(a, b.expand(8, 20, 4))
    torch.testing.assert_close(ops.box_iou(strided, b.expand(8, 20, 4)), expected)
    # Contiguous, but not aligned to a whole box.
    shifted = torch.cat((b.new_zeros(1), b.flatten()))[1:].view(20, 4)
    torch.testing.assert_close(ops.box_iou(shifted, b), ops.box_iou(b, b))


@pytest.mark.parametrize(
    ("boxes1", "boxes2", "options", "message"),
    [
        ((3, 4), (2, 5), {}, r"boxes2 has shape \[2, 5\]"),
        ((4,), (2, 4), {}, r"boxes1 has shape \[4\]"),
        ((2, 3, 4), (3, 3, 4), {}, "not the same batch"),
        ((3, 4), (1, 3, 4), {}, "not the same batch"),
        ((3, 4), (3, 4), {"format": "xywh"}, "format is 'xywh', but must be one of xyxy, cxcywh"),
    ],
)
def test_wrong_input_is_named(boxes1, boxes2, options, message):
    with pytest.raises(ValueError, match=message):
        ops.box_iou(torch.zeros(boxes1), torch.zeros(boxes2), **options)


def test_wrong_dtypes_are_named():
    boxes = some_boxes(2)
    with pytest.raises(ValueError, match=r"boxes1 is torch\.float32 on cpu, but boxes2"):
        ops.box_iou(boxes, boxes.double())
    with pytest.raises(ValueError, match=r"boxes1 is torch\.int64"):
        ops.box_iou(boxes.long(), boxes.long())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("generalized", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(generalized, dtype, device):
    a, b = (some_boxes(2, n, dtype=dtype, seed=n).to(device).requires_grad_() for n in (5, 3))
    op = torch.ops.detr_fast.pairwise_iou.default
    torch.library.opcheck(op, (a, b, "cxcywh", generalized))
    torch.library.opcheck(
        torch.ops.detr_fast.pairwise_iou_backward.default,
        (op(a, b, "xyxy", generalized).detach(), a.detach(), b.detach(), "xyxy", generalized),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_compiles_into_one_graph(op, device):
    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (getattr(ops, op)(a * 1.5, b) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    a, b = (some_boxes(n, seed=n).to(device).requires_grad_() for n in (8, 6))
    found = torch.autograd.grad(compiled(a, b), (a, b))
    torch.testing.assert_close(found, torch.autograd.grad(loss(a, b), (a, b)))


@pytest.mark.parametrize("simd", ["plain", "avx2", "avx512"])
def test_every_instruction_set(simd, tmp_path):
    """In a process of its own, since the choice is made once."""
    code = """
import torch
from detr_fast import _C, ops, reference

torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    a, b = (torch.rand(n, 4, dtype=dtype).requires_grad_() for n in (37, 53))
    for op in ("box_iou", "generalized_box_iou"):
        values = [getattr(module, op)(a, b, "cxcywh") for module in (ops, reference)]
        torch.testing.assert_close(*values)
        gradients = [torch.autograd.grad((x * x).sum(), (a, b)) for x in values]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
print(_C.simd())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "DETR_FAST_SIMD": simd},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() != simd:
        pytest.skip(f"this CPU has no {simd}")


@needs_cuda
@pytest.mark.parametrize("op", OPS)
def test_side_stream_without_a_wait(op):
    a, b = (some_boxes(4, n, seed=n) for n in (300, 90))
    expected = getattr(ops, op)(a, b)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_gpu = [x.cuda().requires_grad_() for x in (a, b)]
        with NoWait():
            torch.cuda._sleep(10_000_000)  # what comes next must be queued behind it
            doubled = [x * 2 for x in on_gpu]
            found = getattr(ops, op)(*doubled)
            found.sum().backward()
    stream.synchronize()
    torch.testing.assert_close(found.cpu(), expected)


@needs_cuda
def test_graph_capture():
    a, b = some_boxes(50, seed=1).cuda(), some_boxes(40, seed=2).cuda()
    ops.generalized_box_iou(a, b)  # the kernel is loaded before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.generalized_box_iou(a, b)
    a.copy_(some_boxes(50, seed=3))
    graph.replay()
    torch.testing.assert_close(found, reference.generalized_box_iou(a, b))


@needs_two_gpus
def test_other_device_than_the_current_one():
    a, b = some_boxes(50, seed=1), some_boxes(40, seed=2)
    torch.cuda.set_device(0)
    found = ops.box_iou(a.to("cuda:1"), b.to("cuda:1"))
    assert found.device.index == 1 and torch.cuda.current_device() == 0
    torch.testing.assert_close(found.cpu(), ops.box_iou(a, b))


@pytest.mark.parametrize("op", [ops.box_iou, ops.generalized_box_iou])
def test_forward_mode_is_an_error(op):
    """Not a derivative of 0, which torch would give."""
    boxes = some_boxes(3), some_boxes(2, seed=1)
    with pytest.raises(NotImplementedError, match=f"{op.__name__} has no derivative in forward"):
        torch.func.jvp(op, boxes, tuple(map(torch.ones_like, boxes)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(boxes[1], torch.ones(2, 4))
        with pytest.raises(NotImplementedError, match="forward mode"):
            op(boxes[0], dual)
        assert torch.equal(op(*boxes), op(boxes[0], boxes[1].clone()))


def test_other_devices_go_through_the_cpu():
    from detr_fast.ops import pairwise
    from detr_fast.ops.library import cpu_fallback

    a, b = some_boxes(3), some_boxes(2)
    found = cpu_fallback(pairwise._forward)(a, b, "xyxy", False)
    assert torch.equal(found, ops.box_iou(a, b))
    assert len(cpu_fallback(pairwise._gradients)(found, a, b, "xyxy", False)) == 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_gradients_of_batches_are_those_of_their_images(op, device):
    """With more rows than a thread takes at once."""
    a, b = (some_boxes(3, n, seed=n).to(device).requires_grad_() for n in (150, 9))
    found = torch.autograd.grad(getattr(ops, op)(a, b).square().sum(), (a, b))
    for k in range(3):
        x, y = (boxes[k].detach().requires_grad_() for boxes in (a, b))
        expected = torch.autograd.grad(getattr(ops, op)(x, y).square().sum(), (x, y))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[k], theirs, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_boxes_have_no_gradient(op, bad, device):
    """Not one of 0, with which training would go on."""
    boxes = some_boxes(20).to(device)
    for coordinate in range(4):
        wrong = boxes.clone()
        wrong[7, coordinate] = bad
        for given in ((wrong, boxes), (boxes, wrong)):
            a, b = (x.clone().requires_grad_() for x in given)
            gradients = torch.autograd.grad(getattr(ops, op)(a, b).sum(), (a, b))
            of_wrong, others = gradients if given[0] is wrong else gradients[::-1]
            assert of_wrong[7].isnan().all() and others.isnan().all()
            of_wrong[7] = 0
            assert of_wrong.isfinite().all()


@pytest.mark.parametrize("op", OPS)
def test_gradients_of_many_boxes_are_summed_in_float64(op):
    """A running sum of equal numbers in float32 would always be rounded to the same side."""
    one = torch.tensor([[0.1, 0.1, 0.9, 0.9]])
    many = torch.tensor([[0.21, 0.23, 0.47, 0.61]]).repeat(300_000, 1)
    for of_one, pair in enumerate(((one, many), (many, one))):
        a, b = (x.clone().requires_grad_() for x in pair)
        found = torch.autograd.grad(getattr(ops, op)(a, b).sum(), (a, b))[of_one]
        a, b = (x[:1].double().requires_grad_() for x in pair)
        each = torch.autograd.grad(getattr(reference, op)(a, b).sum(), (a, b))[of_one]
        torch.testing.assert_close(found.double(), each * len(many), rtol=2e-6, atol=0)
