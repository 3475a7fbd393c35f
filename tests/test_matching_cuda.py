"""The CUDA path of FastMatcher on a machine without a GPU: what the launcher is handed, and what
becomes of its results. A stand-in for the kernels reads the same addresses, on the CPU, and solves
by the reference; the kernels' own code is run by tests/cpp, and on a GPU by test_cuda.py."""

import ctypes

import pytest
import torch
from matching_cases import CASES, assert_same, predictions, targets_of

from detr_fast import _C, FastMatcher, PackedTargets, faults, reference
from detr_fast.matching import cuda
from detr_fast.ops.library import current_stream

MATCHER = "detr_fast.matching.matcher"  # the module
pytestmark = pytest.mark.skipif(_C.cuda_version is None, reason="built without CUDA kernels")


def tensor_at(address, dtype, *shape):
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    size = count * dtype.itemsize
    memory = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Kernels:
    """What _C.cuda.match promises, in Python."""

    def __init__(self, fault=None) -> None:
        self.fault = fault  # (problem, code) to report
        self.calls = 0

    def match(self, **given):
        self.calls += 1
        assert given["device"] == 0 and given["stream"] == 0
        b, n, c = given["shape"]
        total = given["targets"]
        dtypes = [(torch.float32, torch.float16, torch.bfloat16)[k] for k in given["dtypes"]]
        logits = [tensor_at(a, dtypes[0], b, n, c) for a in given["logits"]]
        boxes = [tensor_at(a, dtypes[1], b, n, 4) for a in given["boxes"]]
        labels = tensor_at(given["labels"], torch.int64, total)
        target_boxes = tensor_at(given["target_boxes"], torch.float32, total, 4)
        counts = given["counts"]
        if given["device_offsets"]:
            assert not given["pairs"] and not counts
            counts = tensor_at(given["device_offsets"], torch.int32, b + 1).diff().tolist()
        assert max(counts) <= given["most_targets"] and len(counts) == b
        scratch = tensor_at(given["scratch"], torch.float32, len(logits) * total * n)
        scratch.fill_(torch.nan)  # it is ours to write
        query_index = tensor_at(given["query_index"], torch.int64, len(logits), total)
        query_index.fill_(-1)
        weights, focal, (alpha, gamma, eps), (added, lowest) = given["cost"]
        guard = "eps" if added else "clamp" if lowest else "none"
        twin = reference.HungarianMatcher(
            *weights,
            nonfinite="last" if given["nonfinite_last"] else "raise",
            class_cost="focal" if focal else "softmax",
            focal_alpha=alpha,
            focal_gamma=gamma,
            focal_eps=eps,
            giou_guard=guard,
            giou_eps=added or lowest or 1e-6,
        )
        size = 2 * sum(min(n, m) for m in counts)
        pairs = (
            tensor_at(given["pairs"], torch.int64, len(logits), size) if given["pairs"] else None
        )
        for layer, (x, y) in enumerate(zip(logits, boxes, strict=True)):
            targets, begin = [], 0
            for m in counts:
                part = slice(begin, begin + m)
                targets.append({"labels": labels[part], "boxes": target_boxes[part]})
                begin += m
            outputs = {"pred_logits": x.float(), "pred_boxes": y.float()}
            at = begin = 0
            for m, (i, j) in zip(counts, twin(outputs, targets), strict=True):
                query_index[layer, begin + j] = i
                if pairs is not None:
                    pairs[layer, at : at + len(i)] = i
                    pairs[layer, at + len(i) : at + 2 * len(i)] = j
                begin, at = begin + m, at + 2 * len(i)
        if self.fault:
            slots = tensor_at(given["faults"], torch.int64, len(logits) * b)
            slots[self.fault[0]] = self.fault[1]


@pytest.fixture
def kernels(monkeypatch):
    stand_in = Kernels()
    monkeypatch.setattr(_C.cuda, "match", stand_in.match)
    monkeypatch.setattr(_C.cuda, "assignment_workspace", lambda device, rows, cols: 64)
    cuda._workspace.cache_clear()
    monkeypatch.setattr(f"{MATCHER}._reads_whole_tensors", lambda layers: True)
    yield stand_in
    cuda._workspace.cache_clear()
    faults._slots.clear()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["list", "packed", "capacity"])
def test_same_as_the_reference(name, form, kernels) -> None:
    b, n, sizes = CASES[name]
    layers, targets = [predictions(b, n, seed=seed) for seed in range(2)], targets_of(sizes)
    matcher, twin = FastMatcher(), reference.HungarianMatcher()
    expected = [twin(layer, targets) for layer in layers]
    given = targets
    if form != "list":
        given = PackedTargets.pack(targets, sum(sizes) + 3 if form == "capacity" else None)
    if form == "capacity":
        with pytest.raises(ValueError, match="use match_packed"):
            matcher.match_layers(layers, given)
    else:
        for ours, theirs in zip(matcher.match_layers(layers, given), expected, strict=True):
            assert_same(ours, theirs)
    matches = matcher.match_packed(layers, given)
    for layer, images in enumerate(expected):
        query = torch.full((len(matches.targets.labels),), -1)
        for image, (i, j) in enumerate(images):
            query[int(matches.targets.offsets[image]) + j] = i
        assert torch.equal(matches.query_index[layer][: sum(sizes)], query[: sum(sizes)])
    assert kernels.calls or not sum(sizes) or not b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_layouts(dtype, kernels) -> None:
    outputs, targets = predictions(3, 30, dtype=dtype), targets_of([4, 0, 6])
    expected = FastMatcher()(outputs, targets)
    strided = {key: torch.stack([x, x], -1)[..., 0] for key, x in outputs.items()}
    assert_same(FastMatcher()(strided, targets), expected)
    mixed = {"pred_logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"].float()}
    assert_same(FastMatcher()(mixed, targets), expected)
    small = [{"labels": t["labels"].int(), "boxes": t["boxes"].double()} for t in targets]
    assert_same(FastMatcher()(outputs, small), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"class_cost": "focal", "focal_alpha": 0.3, "focal_gamma": 1.5},
        {"giou_guard": "eps", "giou_eps": 1e-3},
        {"giou_guard": "clamp", "giou_eps": 1e-2},
        {"nonfinite": "last"},
    ],
)
def test_options_arrive(options, kernels) -> None:
    outputs, targets = predictions(2, 30), targets_of([4, 6])
    if "nonfinite" in options:
        outputs["pred_logits"][1, 3] = torch.nan
    assert_same(
        FastMatcher(**options)(outputs, targets),
        reference.HungarianMatcher(1, 5, 2, **options)(outputs, targets),
    )


def code(status, query, target) -> int:
    return int(status) << 56 | (query + 1) << 28 | (target + 1)


@pytest.mark.parametrize(
    ("problem", "fault", "message"),
    [
        (4, (_C.Status.invalid_logits, 7, 0), r"layers\[1\]\['pred_logits'\]\[1, 7\] has no class"),
        (2, (_C.Status.invalid_box, 3, 0), r"layers\[0\]\['pred_boxes'\]\[2, 3\] must be finite"),
        (5, (_C.Status.invalid_label, 0, 2), r"targets\[2\]\['labels'\]\[2\] is not one of"),
        (0, (_C.Status.invalid_target_box, 0, 1), r"targets\[0\]\['boxes'\]\[1\] must be finite"),
        (3, (_C.Status.invalid_pair_cost, 9, 1), r"\[0, 9\] to targets\[0\]\['boxes'\]\[1\] over"),
    ],
)
def test_faults_are_raised_by_the_next_call(problem, fault, message, kernels) -> None:
    layers, targets = [predictions(3, 30, seed=s) for s in range(2)], targets_of([4, 0, 6])
    matcher = FastMatcher()
    kernels.fault = (problem, code(*fault))
    matcher.match_layers(layers, targets)
    kernels.fault = None
    with pytest.raises(ValueError, match=message) as caught:
        matcher.match_packed(layers[:1], targets)
    assert "earlier call" in str(caught.value)
    matcher.match_layers(layers, targets)  # once is enough


def test_faults_of_the_last_call_are_printed_in_the_end(kernels, capsys) -> None:
    kernels.fault = (1, code(_C.Status.invalid_box, 3, 0))
    FastMatcher()(predictions(2, 30), targets_of([4, 6]))
    for _ in range(2):  # once is enough
        faults._print_pending()
    place = "outputs['pred_boxes'][1, 3] must be finite"
    assert capsys.readouterr().err.count(place) == 1


def test_faults_are_raised_where_the_call_waits(kernels) -> None:
    kernels.fault = (1, code(_C.Status.invalid_box, 3, 0))
    with pytest.raises(ValueError, match=r"outputs\['pred_boxes'\]\[1, 3\].*by the GPU\)$"):
        FastMatcher(index_device="cpu")(predictions(2, 30), targets_of([4, 6]))


def test_kernels_run_on_the_current_stream(monkeypatch) -> None:
    class Stream:
        cuda_stream = 7

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    assert current_stream(torch.device("cuda", 0)) == 7


def test_wrong_shapes_are_named_at_once(kernels) -> None:
    outputs, targets = predictions(2, 30), targets_of([4, 6])
    with pytest.raises(ValueError, match="predictions for 2 images, but 1 targets"):
        FastMatcher()(outputs, targets[:1])
    with pytest.raises(ValueError, match="predictions for 2 images, but 1 targets"):
        FastMatcher()(outputs, PackedTargets.pack(targets[:1]))
    with pytest.raises(ValueError, match=r"outputs\['pred_boxes'\] has shape \[2, 30, 3\]"):
        FastMatcher()({**outputs, "pred_boxes": outputs["pred_boxes"][..., :3]}, targets)
    with pytest.raises(ValueError, match=r"targets\[1\] has no 'boxes'"):
        FastMatcher()(outputs, [targets[0], {"labels": targets[1]["labels"]}])
