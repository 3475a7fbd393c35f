"""The training step: every way of making it fast gives the plain step's losses and gradients."""

import collections
import copy
import functools

import pytest
import torch
from test_train_step_baselines import frozen_statistics
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.baselines.published_criterion import PublishedCriterion, published_step
from benchmarks.baselines.published_detr import PublishedDETR
from detr_fast.losses import SetCriterion
from detr_fast.matching import PackedTargets
from detr_fast.models import detr_resnet18, detr_tiny
from detr_fast.models.resnet import block_forward, conv_norm
from detr_fast.training.graph import GraphedStep
from detr_fast.training.optimizer import gradient_norm, make_optimizer
from detr_fast.training.step import TrainStep, pack_to_capacity, pad_to_bucket

CPU = torch.device("cpu")
TARGETS = [
    {"labels": torch.tensor([1, 6, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]] * 3)},
    {"labels": torch.tensor([3]), "boxes": torch.tensor([[0.3, 0.4, 0.1, 0.6]])},
]


def resnet(**options) -> nn.Module:
    torch.manual_seed(0)
    small = {"num_encoder_layers": 1, "num_decoder_layers": 2, "dim": 32, "dim_feedforward": 64}
    model = detr_resnet18(7, 12, trainable_layers=3, **(small | {"dropout": 0.0} | options))
    frozen_statistics(model)
    return model


def step_of(model: nn.Module, **options) -> TrainStep:
    return TrainStep(
        model, SetCriterion(7), make_optimizer(model, 1e-4, 1e-5, 1e-4), CPU, **options
    )


def gradients(model: nn.Module, *batch) -> dict[str, torch.Tensor]:
    step = step_of(model)
    loss = step.gradients(batch)["loss"]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss}


def assert_same(found: dict, expected: dict, share: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        scale = max(expected[name].abs().max().item(), 1e-3)
        torch.testing.assert_close(value, expected[name], atol=share * scale, rtol=1e-3, msg=name)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))


def norm_with_statistics(channels: int) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(channels)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 1.5)
    return norm


# A batch with fewer pixels than channels, with fewer than a weight has entries per channel, more.
@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folded_norm(size, layout):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(40, 24, 3, padding=1, bias=False), norm_with_statistics(24)
    values, weights = [], []
    for run in (lambda x: conv_norm(x, conv, norm), lambda x: norm(conv(x))):
        x = torch.randn(2, 40, size, size, generator=torch.Generator().manual_seed(2))
        x = x.to(memory_format=layout).requires_grad_()
        conv.weight.grad = None
        out = run(x)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        values.append((out, x.grad))
        weights.append(conv.weight.grad)
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(*weights, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_folded_norm_in_bfloat16(size):
    """Rounds no more than convolution and norm one after the other, up to chance."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(40, 24, 3, padding=1, bias=False), norm_with_statistics(24)
    x = torch.randn(2, 40, size, size)
    exact = norm(conv(x))
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = conv_norm(x, conv, norm), norm(conv(x))
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).square().mean() < 1.5 * (plain.bfloat16() - exact).square().mean()


def test_trained_norm_is_left_alone():
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(conv_norm(x, conv, copy.deepcopy(norm)), norm(conv(x)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_blocks_are_torchvisions(name):
    import torchvision

    torch.manual_seed(0)
    body = getattr(torchvision.models, name)(norm_layer=FrozenBatchNorm2d)
    for block in body.layer2:
        x = torch.randn(1, block.conv1.in_channels, 8, 8)
        torch.testing.assert_close(block_forward(block, x), block(x.clone()), atol=1e-4, rtol=1e-4)


def test_channels_last(images):
    model = resnet()
    expected = gradients(copy.deepcopy(model), images, None, TARGETS)
    found = gradients(model.to(memory_format=torch.channels_last), images, None, TARGETS)
    assert_same(found, expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing(images, dropout):
    """Also with dropout, whose random numbers are drawn again."""
    model = resnet(dropout=dropout)
    other = copy.deepcopy(model)
    other.set_checkpointing(True)
    torch.manual_seed(3)
    expected = gradients(model, images, None, TARGETS)
    torch.manual_seed(3)
    assert_same(gradients(other, images, None, TARGETS), expected)


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_checkpointing_counts_a_batch_once(images, backbone):
    """Statistics of trained batch norm."""
    model = detr_tiny(7, 12)
    if backbone == "resnet18":
        sizes = {"dim": 32, "dim_feedforward": 64, "num_encoder_layers": 1}
        model = detr_resnet18(7, 12, norm="batch", **sizes)
    model.set_checkpointing(True)
    gradients(model, images, None, TARGETS)
    counts = [b.item() for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
    assert counts and set(counts) == {1}


def test_what_checkpointing_recomputes(images, monkeypatch):
    calls = collections.Counter()

    def counted_block(block, x):
        calls["block"] += 1
        return block_forward(block, x)

    monkeypatch.setattr("detr_fast.models.resnet.block_forward", counted_block)
    model = resnet()
    for name in ("encoder", "decoder"):
        layer = getattr(model.transformer, name).layers[0]
        layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    for on, blocks in ((False, 8), (True, 8 + 6)):  # the first stage is not trained
        model.set_checkpointing(on)
        gradients(model, images, None, TARGETS)
        assert calls == {"encoder": 1 + on, "decoder": 1 + on, "block": blocks}
        calls.clear()


def test_a_step_leaves_no_gradient(images):
    model = resnet()
    step_of(model)([(images, None, TARGETS)])
    assert all(p.grad is None for p in model.parameters())


def test_ten_steps_of_the_published_loop(images):
    ours = resnet(num_encoder_layers=6, num_decoder_layers=6, dim=256, dim_feedforward=256)
    theirs = PublishedDETR("resnet18", 7, 12, dim_feedforward=256, dropout=0.0)
    theirs.load_state_dict(ours.state_dict())
    step = step_of(ours, clip=0.1)
    names = dict(theirs.named_parameters())
    groups = [
        {"params": [p for n, p in names.items() if p.requires_grad and "backbone" not in n]},
        {"params": [p for n, p in names.items() if p.requires_grad and "backbone" in n]},
    ]
    groups[1]["lr"] = 1e-5
    optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4)
    criterion = PublishedCriterion(7)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    for _ in range(10):
        found = step([(images, mask, TARGETS)])["loss"].item()
        expected = published_step(
            theirs, criterion, optimizer, lambda: theirs(images, mask), TARGETS, lambda phase: None
        )
        assert found == pytest.approx(expected, rel=2e-3)


def test_accumulation_is_the_mean(images):
    model = resnet()
    twice, once = step_of(copy.deepcopy(model)), step_of(model)
    batch = (images, None, TARGETS)
    norms = [
        step(batches)["grad_norm"] for step, batches in ((once, [batch]), (twice, [batch] * 2))
    ]
    torch.testing.assert_close(*norms)


class TestCompiled:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        """What compiling traces and differentiates, without minutes of code generation."""
        torch._dynamo.reset()
        compiled = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", compiled)
        yield
        torch._dynamo.reset()

    def test_one_size_is_computed_as_eager(self):
        """Padding would change the statistics of trained batch norm, and so all that follows."""
        torch.manual_seed(0)
        model = detr_tiny(7, 12, num_encoder_layers=1, num_decoder_layers=2, dropout=0.0)
        eager, compiled = step_of(copy.deepcopy(model)), step_of(model, compile=True)
        images = torch.randn(2, 3, 96, 72)
        mask = torch.zeros(2, 96, 72, dtype=torch.bool)
        mask[1, :, -20:] = True
        for mask_or_none in (None, mask):
            batch = (images, mask_or_none, TARGETS)
            assert_same(compiled([batch]), eager([batch]))
        statistics = {name for name, _ in model.named_buffers() if name.endswith("running_var")}
        assert statistics
        found, expected = compiled.parallel.state_dict(), eager.parallel.state_dict()
        for name in statistics:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)

    def test_other_sizes_are_computed_as_eager_on_the_padded_batch(self, images):
        model = resnet()
        eager, compiled = step_of(copy.deepcopy(model)), step_of(model, compile=True)
        for height, width in ((96, 128), (70, 128), (96, 96), (96, 128)):
            part = images[..., :height, :width].contiguous()
            batch = (part, None)
            if (height, width) != (96, 128):
                batch = pad_to_bucket(part, None)
                assert batch[0].shape == (2, 3, 128, 128) and batch[1].any()
            expected, found = eager([(*batch, TARGETS)]), compiled([(part, None, TARGETS)])
            assert_same(found, expected)

    @pytest.mark.parametrize("make", [resnet, lambda: detr_tiny(7, 12)], ids=["frozen", "trained"])
    def test_sizes_do_not_compile_for_ever(self, monkeypatch, make):
        compiles = []

        def backend(graph, inputs):
            compiles.append(graph)
            return graph.forward

        monkeypatch.setattr(
            torch, "compile", functools.partial(torch.compile.func, backend=backend)
        )
        step = step_of(make(), compile=True)
        g = torch.Generator().manual_seed(0)
        sizes = [(96, 96), (128, 128), (64, 192), (64, 64), (96, 96)]
        sizes += torch.randint(33, 300, (12, 2), generator=g).tolist()
        after = []
        for number, (h, w) in enumerate(sizes):
            mask = torch.zeros(2, h, w, dtype=torch.bool)
            mask[1, :, -8:] = number % 3 == 0  # images of a batch that differ in size
            step.gradients((torch.randn(2, 3, h, w), mask, TARGETS))
            after.append(len(compiles))
        assert after[0] == 2  # model and criterion
        # The model's first size without a mask, too, and all other sizes, squares maybe apart.
        assert after[4] == after[-1] <= 5


def test_bucket():
    images, mask = pad_to_bucket(torch.ones(2, 3, 65, 64), None)
    assert images.shape == (2, 3, 128, 64) and images.sum() == 2 * 3 * 65 * 64
    assert mask.shape == (2, 128, 64) and (~mask).sum() == 2 * 65 * 64
    same, mask = pad_to_bucket(torch.ones(2, 3, 64, 128), None)
    assert torch.equal(same, torch.ones(2, 3, 64, 128))
    assert mask.shape == (2, 64, 128) and not mask.any()


def test_capacity_is_a_power_of_two():
    assert len(pack_to_capacity(TARGETS).labels) == 64
    many = [{"labels": torch.zeros(65, dtype=torch.int64), "boxes": torch.full((65, 4), 0.5)}]
    assert len(pack_to_capacity(many).labels) == 128
    none = [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}]
    assert len(pack_to_capacity(none).labels) == 64
    packed = PackedTargets.pack(TARGETS)
    assert len(pack_to_capacity(packed).labels) == 64
    roomy = PackedTargets.pack(TARGETS, capacity=7)
    assert pack_to_capacity(roomy) is roomy


def test_no_cuda_graph_on_a_cpu():
    with pytest.raises(ValueError, match="needs a GPU, and this is cpu"):
        GraphedStep(step_of(resnet()), 10)


class ReadsOfTheHost(TorchDispatchMode):
    """Within it, an operation that would make the host wait for a GPU is an error.

    By what ATen is asked for, in the backward pass too: values of tensors, and results whose shape
    depends on values. On a CPU ``cpu``, ``numpy`` and ``tolist`` ask for no operation: a mode of
    Python's calls sees those. What compiled code reads through ``data_ptr`` shows on a GPU alone.
    """

    OPERATIONS = frozenset(
        ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")
    )
    CALLS = frozenset(("cpu", "numpy", "tolist", "item", "__array__"))

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self._calls = _Calls()

    def __enter__(self) -> "ReadsOfTheHost":
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.seen.add(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"the host reads: {name} with a mask"
        assert name not in self.OPERATIONS, f"the host reads: {name}"
        device = (kwargs or {}).get("device")
        assert name != "_to_copy" or device is None, f"the host reads: a copy to {device}"
        return function(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        to_cpu = name == "to" and "cpu" in (*args[1:], *(kwargs or {}).values())
        assert name not in ReadsOfTheHost.CALLS and not to_cpu, f"the host reads: {name}"
        return function(*args, **(kwargs or {}))


def step_on_the_device(images: torch.Tensor, masked: bool = True) -> TrainStep:
    """A step for any arguments: its batch is on the device already, and the state is made.

    The targets are packed, as the loader's: of a list on the CPU, the criterion looks at boxes.
    """
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, :, 100:] = masked
    step = step_of(resnet(dropout=0.1), clip=0.1)
    batch = step._ready(images, mask, PackedTargets.pack(TARGETS))
    assert (batch.mask is not None) == masked
    step._ready = lambda *_: batch
    step([batch])
    return step


@pytest.mark.parametrize("masked", [False, True])
def test_host_reads_nothing(images, masked):
    """No value of the step is asked for, from the forward pass to the weights' update."""
    step = step_on_the_device(images, masked)
    before = [p.clone() for p in step.model.parameters() if p.requires_grad]
    with ReadsOfTheHost() as mode:
        losses = step([(None, None, None)])
    assert {"convolution", "convolution_backward", "_fused_adamw_", "dot"} <= mode.seen
    assert losses["grad_norm"] > 0.1  # it was clipped
    after = [p for p in step.model.parameters() if p.requires_grad]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_norm_of_gradients_reads_nothing_in_the_form_of_a_gpu():
    gradients = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    with ReadsOfTheHost() as mode:
        norm = gradient_norm(gradients)
    assert "_foreach_norm" in mode.seen
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in gradients]).norm())


READS = {
    "item": lambda x: x.item(),
    "float": lambda x: float(x.detach()),
    "bool": lambda x: bool(x.max() > 0),
    "index": lambda x: [1, 2][(x.max() > 0).long()],
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.detach().numpy(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "to cpu as another type": lambda x: x.to(torch.device("cpu"), torch.float64),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x.flatten()[(x > 0).flatten()],
    "masked assignment": lambda x: x.clone().view(1).index_put_(((x > 0).view(1),), x.detach()),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
}


@pytest.mark.parametrize("read", READS)
def test_a_read_in_the_criterion_is_caught(images, read):
    step = step_on_the_device(images)
    criterion = step.criterion

    def reading(*args):
        losses = criterion(*args)
        READS[read](losses["loss"])
        return losses

    step.criterion = reading
    with ReadsOfTheHost(), pytest.raises(AssertionError, match="the host reads"):
        step([(None, None, None)])


@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
def test_a_read_anywhere_in_the_step_is_caught(images, where):
    step = step_on_the_device(images)
    if where == "forward":
        step.model.register_forward_hook(lambda *args: float(args[2]["pred_boxes"].detach().max()))
    elif where == "backward":
        step.model.class_embed.weight.register_hook(
            lambda gradient: gradient * gradient.max().item()
        )
    else:
        step.optimizer.register_step_pre_hook(lambda optimizer, *_: float(optimizer.grad_scale))
    with ReadsOfTheHost(), pytest.raises(AssertionError, match="the host reads"):
        step([(None, None, None)])
