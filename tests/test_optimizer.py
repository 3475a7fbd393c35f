"""The optimizer does what torch's AdamW and gradient clipping do."""

import math

import pytest
import torch
from torch import nn

from detr_fast.training.optimizer import FusedAdamW, gradient_norm


def trained(optimizer: type[torch.optim.Optimizer], **options) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 1), nn.Flatten(), nn.Linear(64, 3))
    model.to(memory_format=torch.channels_last)
    built = optimizer(model.parameters(), lr=1e-2, weight_decay=0.1, **options)
    for _ in range(5):
        built.zero_grad()
        x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
        model(x).square().sum().backward()
        built.step()
    state = built.state_dict()["state"].values()
    return [*model.parameters(), *(one[name] for one in state for name in sorted(one))]


def test_equals_torchs():
    ours, theirs = trained(FusedAdamW), trained(torch.optim.AdamW, foreach=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [one.stride() for one in ours] == [one.stride() for one in theirs]


def test_layouts_that_differ():
    """Gradients and averages of another layout: the fused kernel alone would mix entries up."""
    results = []
    for optimizer, options in ((FusedAdamW, {}), (torch.optim.AdamW, {"foreach": False})):
        weight = nn.Parameter(torch.linspace(-1, 1, 480).view(8, 5, 4, 3))
        built = optimizer([weight], lr=1e-2, weight_decay=0.1, **options)
        for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
            weight.data = weight.data.contiguous(memory_format=layout)
            for other in (torch.channels_last, torch.contiguous_format):
                gradient = torch.cos(torch.arange(480.0)).view(8, 5, 4, 3)
                weight.grad = gradient.contiguous(memory_format=other)
                built.step()
        results.append(weight.detach().contiguous())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def copies() -> bool:
    with torch.profiler.profile() as profiler:
        trained(FusedAdamW)
    steps = [event for event in profiler.events() if event.name == "aten::_fused_adamw_"]
    assert len(steps) == 5
    return "aten::contiguous" in [child.name for event in steps for child in event.cpu_children]


def test_copies_no_gradient():
    assert not copies()


def test_lists_in_another_order(monkeypatch):
    """Both what torch calls, and what is called of torch, as if its arguments were others."""
    expected = trained(FusedAdamW)
    ours, theirs = FusedAdamW._init_group, torch.optim.AdamW._init_group

    def called(self, group, params, grads, *lists):
        return ours(self, group, *reversed(lists), params=params, grads=grads)

    def calls(self, group, *lists, params, grads):
        return theirs(self, group, params, grads, *reversed(lists))

    monkeypatch.setattr(FusedAdamW, "_init_group", called)
    monkeypatch.setattr(torch.optim.AdamW, "_init_group", calls, raising=False)
    torch.testing.assert_close(trained(FusedAdamW), expected, rtol=0, atol=0)
    assert not copies()


def test_lists_that_are_not_known(monkeypatch):
    """They stay as they are, which is slower, and is said once."""
    theirs = torch.optim.AdamW._init_group
    expected = trained(torch.optim.AdamW, foreach=False)

    def changed(self, group, params, grads, *lists):
        result = theirs(self, group, params, grads, *lists)
        grads[:] = [gradient.clone() for gradient in grads]
        return result

    monkeypatch.setattr(torch.optim.AdamW, "_init_group", changed, raising=False)
    with pytest.warns(UserWarning, match="lists its tensors in a way") as warned:
        found = trained(FusedAdamW)
    assert len(warned) == 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.warns(UserWarning, match="lists its tensors in a way"):
        assert copies()


@pytest.mark.parametrize("clip", [0.0, 0.1, 1e6], ids=["none", "clips", "too large"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_clipped_step(clip, layout, dtype):
    results = []
    for optimizer, options in ((FusedAdamW, {}), (torch.optim.AdamW, {"foreach": False})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 1), nn.Flatten())
        model.to(dtype=dtype, memory_format=layout)
        model[1].bias.requires_grad_(False)  # has no gradient
        built = optimizer(model.parameters(), lr=1e-2, weight_decay=0.1, **options)
        norms = []
        for _ in range(3):
            built.zero_grad()
            model(torch.randn(2, 8, 6, 6, dtype=dtype)).square().sum().backward()
            if optimizer is FusedAdamW:
                norms.append(built.clipped_step(clip))
            else:
                norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf))
                built.step()
        results.append([*model.parameters(), *norms])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_later_plain_steps_are_not_scaled():
    weights = []
    for clip in (1e-3, 0.0):
        weight = nn.Parameter(torch.ones(4))
        built = FusedAdamW([weight], lr=0.1, weight_decay=0.0)
        weight.grad = torch.ones(4)
        built.clipped_step(clip)
        built.state.clear()
        weight.grad = torch.full((4,), 1e-8)  # as small as eps, so that a scale would show
        with torch.no_grad():
            weight.fill_(1)
        built.step()
        weights.append(weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_norm_that_is_not_finite_reaches_the_caller():
    weight = nn.Parameter(torch.ones(4))
    built = FusedAdamW([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.tensor([1.0, math.nan, 1.0, 1.0])
    assert built.clipped_step(0.1).isnan()


def test_gradient_norm():
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 3, 3), (7,), (), (0,), (5, 2)]
    gradients = [torch.randn(shape, generator=g) for shape in shapes]
    gradients.append(torch.randn(4, 6, generator=g)[:, ::2])  # with gaps between
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for layout in (torch.contiguous_format, torch.channels_last):
        gradients[0] = gradients[0].contiguous(memory_format=layout)
        torch.testing.assert_close(gradient_norm(gradients), expected)
    torch.testing.assert_close(
        gradient_norm([gradient.double() for gradient in gradients]), expected.double()
    )
    assert gradient_norm([]) == 0


def test_the_gradients_norm_does_not_depend_on_their_place_in_memory():
    """A resumed run would differ: the gradients of several processes are views into buffers."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        value = torch.randn(4096, generator=generator)
        places = [torch.empty(4096 + 16)[offset:][:4096].copy_(value) for offset in range(16)]
        assert len({gradient_norm([place]).item() for place in places}) == 1
