"""Dropout without a mask: what torch's promises, from other random numbers."""

import pytest
import torch

from detr_fast.ops import dropout as module
from detr_fast.ops.dropout import dropout

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [0, 1, 511, 512, 513, 1024, 1025, 70_000, 1_000_003]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(dtype, relu, size):
    """Each element is 0, or the scaled input, and its gradient 0 or the scale alike."""
    torch.manual_seed(size)
    x = torch.randn(size).to(dtype)
    x[x == 0] = 1  # so that zeros in the result are what was dropped
    x.requires_grad_()
    out = dropout(x, 0.25, training=True, relu=relu)
    gradient = torch.randn(size).to(dtype)
    out.backward(gradient)
    kept = out != 0
    base = x.detach().clamp(min=0) if relu else x.detach()
    scale = 1 / 0.75
    assert out.dtype == dtype
    torch.testing.assert_close(out[kept].float(), (base * scale)[kept].float(), rtol=1e-2, atol=0)
    expected = torch.where(kept, gradient * scale, 0.0)
    torch.testing.assert_close(x.grad.float(), expected.float(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_share_and_expectation(p):
    torch.manual_seed(0)
    n = 4_000_000
    out = dropout(torch.ones(n), p, training=True)
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs((out == 0).double().mean().item() - p) < 5 * deviation + 2**-17
    assert abs(out.double().mean().item() - 1) < 5 * deviation / (1 - p)


def test_independent_of_place_and_call():
    """Neighbours, elements at other distances, and two calls are dropped independently."""
    torch.manual_seed(0)
    n, p = 1_000_000, 0.3
    first, second = (dropout(torch.ones(n), p, training=True) == 0 for _ in range(2))
    limit = 5 * (p * p / n) ** 0.5
    assert abs((first & second).double().mean() - p * p) < limit
    for distance in (1, 2, 16, 256, 512, 1024, 2048):
        both = first[:-distance] & first[distance:]
        assert abs(both.double().mean() - p * p) < limit, distance
        across = first[:-distance] & second[distance:]
        assert abs(across.double().mean() - p * p) < limit, distance


def test_seed_alone_decides():
    x = torch.randn(3, 100_000)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(7)
        results.append(dropout(x, 0.1, training=True))
    torch.set_num_threads(threads)
    assert torch.equal(*results)
    assert not torch.equal(results[0], dropout(x, 0.1, training=True))


def test_not_finite_values_are_seen():
    x = torch.full((1000,), torch.nan)
    assert dropout(x, 0.5, training=True).isnan().all()
    assert dropout(x, 0.5, training=True, relu=True).isnan().all()


def test_nothing_is_dropped_outside_training():
    x = torch.randn(10)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x
    assert torch.equal(dropout(x, 0.5, training=False, relu=True), x.relu())


def test_other_types_take_torchs():
    out = dropout(torch.ones(1000, dtype=torch.float64), 0.5, training=True)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert not dropout(torch.ones(10), 1.0, training=True).any()


def test_gradient_of_not_contiguous_input():
    x = torch.randn(64, 48).T.requires_grad_()
    out = dropout(x, 0.5, training=True)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)


@pytest.mark.parametrize("op", ["_dropout", "_relu_dropout"])
def test_registered_ops(op):
    x = torch.randn(5, 7, requires_grad=True)
    seed = torch.tensor([3])
    torch.library.opcheck(getattr(module, op), (x, seed, 0.25))
    with pytest.raises(ValueError, match=r"seed is 1 of torch\.float32 on cpu"):
        getattr(module, op)(x, torch.ones(1), 0.25)
    with pytest.raises(ValueError, match=r"p is 1\.0"):
        getattr(module, op)(x, seed, 1.0)
    with pytest.raises(ValueError, match=r"x is torch\.float64 on cpu"):
        getattr(module, op)(x.double(), seed, 0.25)


def test_registered_gradient():
    op = module._relu_dropout_backward
    gradient, out = torch.randn(5, 7), torch.rand(5, 7)
    torch.library.opcheck(op, (gradient, out, 0.25))
    with pytest.raises(ValueError, match=r"p is 1\.5"):
        op(gradient, out, 1.5)
    with pytest.raises(ValueError, match=r"out is torch\.float64 on cpu"):
        op(gradient.double(), out.double(), 0.25)
    with pytest.raises(ValueError, match=r"gradient is torch\.bfloat16 \[5, 7\], but out"):
        op(gradient.bfloat16(), out, 0.25)


@pytest.mark.parametrize("bit", [0, 31, 32, 47, 63])
def test_every_bit_of_the_seed_counts(bit):
    seed = 0x1234_5678_9ABC_DEF0
    other = (seed ^ (1 << bit)) - ((1 << 64) if bit == 63 else 0)
    x = torch.ones(100_000)
    masks = [module._dropout(x, torch.tensor([number]), 0.3) == 0 for number in (seed, other)]
    assert (masks[0] != masks[1]).double().mean() > 0.1


@pytest.mark.parametrize("steps", [1, 3])
def test_share_of_the_smallest_probabilities(steps):
    """One step of 2**-16 more would double it."""
    torch.manual_seed(0)
    n = 16_000_000
    dropped = (dropout(torch.ones(n), steps / 65536, training=True) == 0).sum().item()
    expected = n * steps / 65536
    assert abs(dropped - expected) < 5 * expected**0.5
