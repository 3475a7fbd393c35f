"""Targets in flat tensors, and matches in that form."""

import copy
import io
import pickle

import pytest
import torch
from devices import needs_cuda
from matching_cases import CASES, predictions, targets_of
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from detr_fast import FastMatcher, PackedTargets
from detr_fast.matching.placed import read_targets


def assert_equal(packed, targets) -> None:
    images = packed.unpack()
    assert len(packed) == len(images) == len(targets)
    for image, target in zip(images, targets, strict=True):
        assert torch.equal(image["labels"], target["labels"])
        assert torch.equal(image["boxes"], target["boxes"])


@pytest.mark.parametrize("sizes", [[3, 0, 2], [0, 0], [], [5]])
@pytest.mark.parametrize("spare", [None, 0, 7])
def test_packing_keeps_every_target(sizes, spare) -> None:
    targets = targets_of(sizes)
    capacity = None if spare is None else sum(sizes) + spare
    packed = PackedTargets.pack(targets, capacity)
    assert_equal(packed, targets)
    assert len(packed.labels) == len(packed.boxes) == sum(sizes) + (spare or 0)
    assert packed.counts == (tuple(sizes) if spare is None else None)
    assert_equal(packed.to("cpu"), targets)


def test_a_copy_to_the_cpu_is_complete(monkeypatch) -> None:
    """From a GPU, torch's own copy with ``non_blocking`` may still be under way when it returns."""
    packed = PackedTargets.pack(targets_of([3, 2]))
    asked = []
    monkeypatch.setattr(PackedTargets, "device", torch.device("cuda"))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *_, non_blocking, copy: asked.append(non_blocking) or self
    )
    packed.to("cpu")
    packed.to("cpu", non_blocking=True)
    packed.to("meta")
    assert asked == [False, False, True]


class Crossings(TorchDispatchMode):
    """Within it, the operations that have to do with tensors of two devices, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves((args, kwargs, result))
        if len({leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)}) > 1:
            self.seen.append(function._schema.name)
        return result


@pytest.mark.parametrize("sizes", [[3, 0, 2], [0, 0], [], [5] * 40])
@pytest.mark.parametrize("capacity", [None, 300])
def test_one_copy_takes_all_to_another_device(sizes, capacity) -> None:
    packed = PackedTargets.pack(targets_of(sizes), capacity)
    with Crossings() as crossings:
        moved = packed.to("meta")
        assert moved.to("meta") is moved and packed.to("cpu") is packed
    assert crossings.seen == ["aten::_to_copy"]
    for name in ("labels", "boxes", "offsets"):
        there, here = getattr(moved, name), getattr(packed, name)
        assert there.device.type == "meta"
        assert there.untyped_storage()._cdata == moved.buffer.untyped_storage()._cdata
        assert (there.shape, there.dtype) == (here.shape, here.dtype)
        assert there.storage_offset() == here.storage_offset()
    if capacity is not None:
        with Crossings() as crossings:
            moved.copy_(packed)
        assert crossings.seen == ["aten::copy_"]


@pytest.mark.parametrize("form", ["list", "packed", "capacity"])
def test_one_copy_takes_a_matchers_targets_to_the_predictions(form) -> None:
    given = targets_of([5] * 40)
    if form != "list":
        given = PackedTargets.pack(given, 300 if form == "capacity" else None)
    with Crossings() as crossings:
        found = read_targets(given, 40, torch.device("meta"))
    assert crossings.seen == ["aten::_to_copy"]
    assert {found.labels.device, found.boxes.device, found.offsets.device} == {torch.device("meta")}


def test_a_copy_is_another_buffer() -> None:
    packed = PackedTargets.pack(targets_of([3, 2]), capacity=9)
    copied = packed.to("cpu", copy=True)
    copied.labels.zero_()
    assert packed.to("cpu") is packed and packed.labels.any()
    assert copied.counts is None and len(copied) == 2


def test_nothing_is_copied_to_a_gpu_while_a_graph_is_captured(monkeypatch) -> None:
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    packed = PackedTargets.pack(targets_of([3, 2]), capacity=9)
    with pytest.raises(RuntimeError, match="capacity and move them to the GPU before"):
        packed.to("cuda")


@needs_cuda
def test_there_and_back() -> None:
    targets = targets_of([100] * 1000)
    packed = PackedTargets.pack(targets)
    torch.cuda._sleep(10_000_000)  # so that the copies have not begun when they are asked for
    assert_equal(packed.to("cuda").to("cpu"), targets)


def test_packing_converts() -> None:
    packed = PackedTargets.pack(
        [
            {"labels": torch.tensor([2], dtype=torch.int32), "boxes": torch.ones(1, 4).double()},
            {"labels": torch.tensor([]), "boxes": torch.tensor([])},
        ]
    )
    assert packed.labels.tolist() == [2] and packed.labels.dtype == torch.int64
    assert packed.boxes.dtype == torch.float32 and packed.offsets.tolist() == [0, 1, 1]


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="5 targets in 2 images, but the capacity is 4"):
        PackedTargets.pack(targets_of([3, 2]), capacity=4)
    with pytest.raises(ValueError, match=r"targets\[1\] has no 'boxes'"):
        PackedTargets.pack([*targets_of([2]), {"labels": torch.tensor([1])}])
    with pytest.raises(ValueError, match=r"targets\[0\]\['boxes'\] has shape \[2, 3\]"):
        PackedTargets.pack([{"labels": torch.tensor([1, 2]), "boxes": torch.ones(2, 3)}])


@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_packing_can_be_compiled(images) -> None:
    targets = targets_of([3] * images)
    compiled = torch.compile(PackedTargets.pack, fullgraph=True, backend="aot_eager")
    found, expected = compiled(targets), PackedTargets.pack(targets)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.offsets, expected.offsets)


def test_a_pickled_copy_has_views_of_its_buffer() -> None:
    buffer = io.BytesIO()
    torch.save(PackedTargets.pack(targets_of([3, 1]), capacity=5), buffer)
    buffer.seek(0)
    other = PackedTargets.pack(targets_of([2, 2], seed=1), capacity=5)
    for again in (
        torch.load(buffer, weights_only=False),
        pickle.loads(pickle.dumps(other)),
        copy.deepcopy(other),
    ):
        again.copy_(other)
        for name in ("labels", "boxes", "offsets"):
            assert torch.equal(getattr(again, name), getattr(other, name))
            assert getattr(again, name).untyped_storage().data_ptr() == again.buffer.data_ptr()


def test_default_device_does_not_matter() -> None:
    targets = targets_of([3, 0])
    with torch.device("meta"):
        packed = PackedTargets.pack(targets)
    assert packed.offsets.tolist() == [0, 3, 3]
    assert torch.equal(packed.labels, targets[0]["labels"])


def test_compared_by_identity() -> None:
    """Their tensors have no single truth value."""
    one, other = (PackedTargets.pack(targets_of([3])) for _ in range(2))
    assert one == one and one != other and len({one, other}) == 2


def test_copy_takes_over_another_batch() -> None:
    static = PackedTargets.pack(targets_of([3, 1], seed=1), capacity=10)
    labels = static.labels
    other = targets_of([0, 9], seed=2)
    static.copy_(PackedTargets.pack(other, capacity=10))
    assert static.labels is labels
    assert_equal(static, other)
    for wrong in (
        PackedTargets.pack(other, capacity=11),
        PackedTargets.pack(other[:1], capacity=10),
        PackedTargets.pack(other),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            static.copy_(wrong)


def _pack_all(batch):
    return PackedTargets.pack(batch)


def test_packing_in_a_loader_worker() -> None:
    targets = targets_of([2, 0, 4, 1])
    loader = DataLoader(targets, batch_size=4, collate_fn=_pack_all, num_workers=1)
    (packed,) = list(loader)
    assert_equal(packed, targets)
    assert_equal(copy.deepcopy(packed), targets)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["list", "packed", "capacity"])
def test_packed_matches_are_the_lists(name, form) -> None:
    b, n, sizes = CASES[name]
    layers = [predictions(b, n, seed=seed) for seed in range(3)]
    targets = targets_of(sizes)
    matcher = FastMatcher()
    given = targets
    if form != "list":
        given = PackedTargets.pack(targets, sum(sizes) + 5 if form == "capacity" else None)
    matches = matcher.match_packed(layers, given)
    assert matches.query_index.shape == (3, len(matches.targets.labels))
    expected = torch.full_like(matches.query_index, -1)
    for layer, pairs in enumerate(matcher.match_layers(layers, targets)):
        for b, (i, j) in enumerate(pairs):
            expected[layer, int(matches.targets.offsets[b]) + j] = i
    assert torch.equal(matches.query_index, expected)


def test_lists_from_packed_targets() -> None:
    outputs, targets = predictions(3, 20), targets_of([4, 0, 25])
    packed = FastMatcher()(outputs, PackedTargets.pack(targets))
    for (i, j), (i2, j2) in zip(packed, FastMatcher()(outputs, targets), strict=True):
        assert torch.equal(i, i2) and torch.equal(j, j2)


def test_packs_without_room_are_not_copied_over_each_other():
    """Each has its own counts, which the host knows."""
    with pytest.raises(ValueError, match="do not fit"):
        PackedTargets.pack(targets_of([3, 1])).copy_(PackedTargets.pack(targets_of([1, 3])))


def test_boxes_are_detached():
    targets = targets_of([3, 1])
    targets[0]["boxes"].requires_grad_()
    assert not PackedTargets.pack(targets).boxes.requires_grad
