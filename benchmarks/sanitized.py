"""What compute-sanitizer watches on a GPU: each kernel, on few small problems, as it is slow.

compute-sanitizer --kernel-name kns=detr_fast python -m benchmarks.sanitized
"""

from typing import Any

import torch

from benchmarks.cases import FAMILIES, Case, make
from detr_fast import FastMatcher, PackedTargets, check_faults, linear_sum_assignment, ops
from detr_fast.matching import Matches

SIZES = ((2, 40, 5, 9), (2, 330, 5, 20), (1, 6, 5, 15))  # B, N, K, M
LARGE = (1, 1400, 5, 60)  # whose costs are too many for a block's shared memory
WIDE = 12000  # queries or columns: the solver's own memory is too large for it
MANY = (1100, 3, 4)  # problems: blocks of few warps, on a GPU of up to 137 multiprocessors
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float64)


def run() -> None:
    """Runs them all; what is wrong with a result is for the tests to find."""
    for family in FAMILIES:
        for size in SIZES:
            match_and_lose(*on_gpu(make(Case(family, *size, layers=2), 1)))
        large = make(Case(family, *LARGE, layers=1, exact=True), 1)
        FastMatcher().match_layers(*on_gpu(large))
    FastMatcher().match_layers(*on_gpu(make(Case("initial", 1, WIDE, 2, 2, layers=1), 1)))
    linear_sum_assignment(torch.randint(9, MANY).float().cuda())
    for dtype in FLOATS:
        for shape in ((3, 5, 9), (2, 30, 20), (1, 20, 400), (2, 2, WIDE)):
            linear_sum_assignment(torch.rand(shape, dtype=dtype).cuda())
            linear_sum_assignment(torch.randint(4, shape).to(dtype).cuda())
        shapes = ((5, 9), (30, 20), (1, 1), (60, 1400))
        linear_sum_assignment([torch.rand(2, WIDE, dtype=dtype).cuda()])
        linear_sum_assignment([torch.rand(s, dtype=dtype).cuda() for s in shapes])
        for iou in (ops.box_iou, ops.generalized_box_iou):
            a, b = (torch.rand(3, n, 4, dtype=dtype).cuda().requires_grad_() for n in (7, 50))
            iou(a, b, format="cxcywh").sum().backward()
    check_faults()


def on_gpu(given: Any) -> Any:
    """Returns nested tensors with each copied to the GPU."""
    if isinstance(given, dict):
        return {name: on_gpu(value) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return [on_gpu(value) for value in given]
    return given.cuda()


def match_and_lose(layers: list[dict], targets: list[dict]) -> None:
    """Matches in every dtype of logits, and the losses in every dtype of boxes, with gradients."""
    FastMatcher().match_layers(layers, targets)
    spoilt = layers[0]["pred_boxes"].clone()
    spoilt[0, 1] = torch.nan
    FastMatcher(nonfinite="last").match_layers(
        [{**layers[0], "pred_boxes": spoilt}, *layers[1:]], targets
    )
    for dtype in HALVES:
        halves = [{**x, "pred_logits": x["pred_logits"].to(dtype)} for x in layers]
        FastMatcher(class_cost="focal").match_layers(halves, targets)
    matches: Matches = FastMatcher().match_packed(layers, PackedTargets.pack(targets, capacity=64))
    packed = matches.targets
    boxes = torch.stack([layer["pred_boxes"] for layer in layers])
    for dtype in (*HALVES, *FLOATS):
        given = boxes.to(dtype).requires_grad_()
        sums = ops.box_losses(given, packed.boxes, matches.query_index, packed.offsets)
        torch.stack(sums).sum().backward()
    ops.target_classes(matches.query_index, packed.labels, packed.offsets, boxes.shape[2], 5)


if __name__ == "__main__":
    run()
    print("all cases ran")
