"""detr_fast.linear_sum_assignment against SciPy: same indices, or same totals where costs tie."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment as scipy_solve

from detr_fast import linear_sum_assignment as solve
from detr_fast import reference

# Queries x targets, as in DETR (the last has more targets than queries).
SIZES = [(20, 5), (100, 7), (100, 30), (300, 20), (300, 60), (20, 33)]


def detr_costs(family: str, n: int, m: int, rng: np.random.Generator) -> np.ndarray:  # [N, M]
    if family == "random":
        return rng.standard_normal((n, m))
    if family == "initial":  # all queries nearly alike: targets compete for the same few
        return rng.random((n, 1)) + rng.random((1, m)) + 1e-3 * rng.standard_normal((n, m))
    cost = 3 + rng.random((n, m))  # trained: most targets have a query of their own
    query = rng.permutation(max(n, m))[:m] % n
    cost[query, np.arange(m)] = rng.random(m)
    return cost


def test_called_as_scipys_is():
    cost = np.random.default_rng(1).standard_normal((4, 6))
    options = {"cost_matrix": cost, "maximize": True}
    assert_same(solve(**options), scipy_solve(**options))


def assert_same(ours, scipys) -> None:
    for mine, theirs in zip(ours, scipys, strict=True):
        assert isinstance(mine, np.ndarray) and mine.dtype == np.int64
        np.testing.assert_array_equal(mine, theirs)


def assert_same_total(cost, ours, scipys) -> None:
    cost = np.asarray(cost)
    rows, cols = ours
    assert len(rows) == len(cols) == min(cost.shape)
    assert (np.diff(rows) > 0).all()
    assert len(set(cols.tolist())) == len(cols)
    assert cost[ours].sum() == cost[scipys].sum()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("family", ["random", "initial", "trained"])
def test_indices_equal_scipys_on_thousands_of_problems(family, dtype):
    rng = np.random.default_rng(0)
    solved = 0
    for n, m in SIZES:
        for _ in range(60):
            cost = detr_costs(family, n, m, rng).astype(dtype)
            assert_same(solve(cost), scipy_solve(cost))
            assert_same(solve(cost.T), scipy_solve(cost.T))
            assert_same(solve(cost, maximize=True), scipy_solve(cost, maximize=True))
            solved += 3
    assert solved >= 1000  # six parametrisations: thousands in all


def test_small_shapes_of_every_kind():
    rng = np.random.default_rng(1)
    for rows in range(9):
        for cols in range(9):
            for _ in range(5):
                cost = rng.standard_normal((rows, cols))
                assert_same(solve(cost), scipy_solve(cost))


@pytest.mark.parametrize("highest", [1, 2, 5, 100])
@pytest.mark.parametrize("shape", [(30, 30), (8, 90), (90, 8), (40, 120)])
def test_integer_costs_with_ties(shape, highest):
    rng = np.random.default_rng(2)
    for _ in range(25):
        cost = rng.integers(0, highest, shape)
        assert_same_total(cost, solve(cost), scipy_solve(cost))
        maximal = scipy_solve(cost, maximize=True)
        assert_same_total(cost, solve(cost, maximize=True), maximal)


def test_ties_among_the_few_columns_that_matter():
    """All rows want the same few of many columns, and ties make it ambiguous which those are."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        rows = rng.integers(0, 9, (30, 1))
        columns = rng.integers(0, 40, (1, 200)) // 2
        cost = rows + columns + rng.integers(0, 2, (30, 200))
        assert_same_total(cost, solve(cost), scipy_solve(cost))


@pytest.mark.parametrize("shape", [(5, 5), (4, 50), (50, 4), (60, 200)])
def test_constant_cost(shape):
    cost = np.full(shape, 3.5)
    assert_same_total(cost, solve(cost), scipy_solve(cost))


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_empty(shape):
    assert_same(solve(np.empty(shape)), scipy_solve(np.empty(shape)))


def test_forbidden_pairs_feasible_and_infeasible_as_in_scipy():
    rng = np.random.default_rng(4)
    feasible = infeasible = 0
    for _ in range(600):
        shape = tuple(rng.integers(1, 9, 2))
        cost = rng.standard_normal(shape)
        cost[rng.random(shape) < 0.65] = np.inf
        try:
            expected = scipy_solve(cost)
        except ValueError:
            infeasible += 1
            with pytest.raises(ValueError, match=r"^cost matrix is infeasible$"):
                solve(cost)
            with pytest.raises(ValueError, match=r"^cost matrix is infeasible$"):
                solve(-cost, maximize=True)
        else:
            feasible += 1
            assert_same(solve(cost), expected)
            assert_same(solve(-cost, maximize=True), expected)
    assert min(feasible, infeasible) > 100


@pytest.mark.parametrize("shape", [(6, 6), (5, 40), (40, 5)])
def test_forbidden_pairs_among_tiny_costs(shape):
    random = np.random.default_rng(0)
    for _ in range(50):
        cost = random.random(shape) * 1e-304
        forbidden = random.random(shape) < 0.15
        np.fill_diagonal(forbidden, False)
        cost[forbidden] = np.inf
        assert_same(solve(cost), scipy_solve(cost))


def test_infeasible_although_each_row_has_a_choice_among_many_columns():
    rng = np.random.default_rng(5)
    cost = rng.random((40, 200))
    cost[:, 39:] = np.inf  # 39 columns for 40 rows
    with pytest.raises(ValueError, match="infeasible"):
        solve(cost)
    cost[7, 150] = 9.0
    assert_same(solve(cost), scipy_solve(cost))


@pytest.mark.parametrize("value", [np.finfo(np.float64).max, 1e301])
def test_costs_near_the_end_of_float64(value):
    for signs in ([[1, 1], [0, 1]], [[1, -1], [-1, 1]], [[-1, 1], [-1, 1]], [[-1, -1, 1]] * 2):
        cost = np.array(signs) * value
        ours, expected = solve(cost), scipy_solve(cost)
        np.testing.assert_array_equal(np.sort(cost[ours]), np.sort(cost[expected]))


@pytest.mark.parametrize("as_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_invalid_entries(value, maximize, as_dtype):
    invalid = np.isnan(value) or (value > 0) == maximize
    for position in range(35):
        cost = np.arange(35, dtype=as_dtype).reshape(5, 7)
        cost.flat[position] = value
        for matrix in (cost, cost.T):
            if invalid:
                with pytest.raises(ValueError, match=r"^matrix contains invalid numeric entries$"):
                    solve(matrix, maximize)
                with pytest.raises(ValueError, match=r"^matrix contains invalid numeric entries$"):
                    scipy_solve(matrix, maximize)
            else:
                assert_same_total(matrix, solve(matrix, maximize), scipy_solve(matrix, maximize))


@pytest.mark.parametrize(
    "cost",
    [
        3.0,
        None,
        [],
        [1, 2, 3],
        np.zeros((1, 2, 3, 4)),
        [[1, 2], [3]],
        [["a", "b"]],
        [[1j, 2]],
        np.zeros((2, 2), dtype=complex),
        np.array([[1, 2], [3, 4]], dtype=object),
        np.zeros((2, 2), dtype="M8[s]"),
    ],
    ids=repr,
)
def test_refuses_what_scipy_refuses_with_the_same_exception(cost):
    with pytest.raises((ValueError, TypeError)) as expected:
        scipy_solve(cost)
    with pytest.raises(expected.type) as raised:
        solve(cost)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", ">f4", ">f8", "<f8"],
)
def test_dtypes(dtype):
    cost = (
        np.random.default_rng(6).integers(0, 2 if dtype == "bool" else 120, (9, 14)).astype(dtype)
    )
    assert_same_total(cost.astype(int), solve(cost), scipy_solve(cost))


@pytest.mark.parametrize("sign", [1, -1])
def test_float32_costs_are_compared_in_float64(sign):
    """The two totals differ by 2**-30, which a float32 next to 1 cannot show."""
    cost = np.array([[1, 1], [0, sign * 2.0**-30]], dtype=np.float32)
    assert cost[0, 0] + cost[1, 1] == cost[0, 1] + cost[1, 0]
    assert_same(solve(cost), scipy_solve(cost))


def test_lists_and_strings_of_numbers():
    for cost in (
        [[4, 1, 3], [2, 0, 5], [3, 2, 2]],
        [["4", "1"], ["2", "0"]],
        [np.arange(3), np.array([0, 5, 9])],
    ):
        assert_same(solve(cost), scipy_solve(cost))


def test_non_contiguous_and_misaligned_input():
    rng = np.random.default_rng(7)
    big = rng.standard_normal((40, 60))
    views = [big[::2, ::3], big[::-1, ::-1], big.T, np.asfortranarray(big), big[:, 5:9]]
    misaligned = np.frombuffer(b"x" + big.tobytes(), dtype=np.uint8)[1:].view(np.float64)
    views.append(misaligned.reshape(big.shape))
    assert not views[-1].flags.aligned
    for cost in views:
        assert_same(solve(cost), scipy_solve(cost))


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 5, 9), (3, 9, 5)])
def test_input_is_never_written(shape, maximize):
    cost = np.random.default_rng(8).standard_normal(shape)
    before = cost.copy()
    cost.setflags(write=False)
    solve(cost, maximize)
    np.testing.assert_array_equal(cost, before)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "shape", [(7, 5, 9), (7, 9, 5), (1, 4, 4), (0, 3, 4), (3, 0, 4), (3, 4, 0)]
)
def test_batch_equals_its_problems_one_by_one(shape, maximize):
    cost = np.random.default_rng(9).standard_normal(shape)
    rows, cols = solve(cost, maximize)
    assert rows.shape == cols.shape == (shape[0], min(shape[1:]))
    for p, matrix in enumerate(cost):
        assert_same((rows[p], cols[p]), scipy_solve(matrix, maximize))
    assert_same((rows, cols), reference.linear_sum_assignment(cost, maximize))


@pytest.mark.parametrize("container", [list, tuple])
def test_ragged_list_gives_one_pair_per_problem(container):
    rng = np.random.default_rng(10)
    shapes = [(5, 9), (9, 5), (0, 3), (4, 4), (100, 7), (3, 0)]
    costs = container(rng.standard_normal(shape) for shape in shapes)
    solved = solve(costs)
    assert isinstance(solved, list)
    for ours, expected in zip(solved, reference.linear_sum_assignment(costs), strict=True):
        assert_same(ours, expected)


def test_ragged_list_of_mixed_dtypes():
    rng = np.random.default_rng(11)
    costs = [rng.random((3, 4)), rng.integers(0, 99, (5, 5)), rng.random((4, 3)).astype(np.float32)]
    for cost, ours in zip(costs, solve(costs), strict=True):
        assert_same_total(cost, ours, scipy_solve(cost))


def test_list_of_equal_shapes_is_still_a_list_of_problems():
    costs = list(np.random.default_rng(12).random((3, 4, 5)))
    solved = solve(costs)
    assert isinstance(solved, list) and len(solved) == 3
    nested = np.array(costs).tolist()  # numbers only: NumPy makes it an array, here a batch
    rows, _ = solve(nested)
    assert rows.shape == (3, 4)


def test_errors_of_batches_and_lists_name_the_problem():
    cost = np.zeros((4, 2, 3))
    cost[2, 0, 1] = np.nan
    with pytest.raises(ValueError, match=r"^cost\[2\]: matrix contains invalid numeric entries$"):
        solve(cost)
    with pytest.raises(ValueError, match=r"^cost\[2\]: matrix contains invalid numeric entries$"):
        solve(list(cost))
    with pytest.raises(ValueError, match=r"^cost\[1\]: cost matrix is infeasible$"):
        solve([np.zeros((2, 2)), np.full((2, 2), np.inf)])
    with pytest.raises(ValueError, match=r"^cost\[1\]: expected a matrix \(2-D array\), got a 1"):
        solve([np.zeros((2, 2)), np.zeros(2)])


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.bool]
)
def test_torch_in_torch_out(dtype):
    torch.manual_seed(0)
    cost = (torch.rand(2, 6, 8) * 50).to(dtype)
    for given_, plain in ((cost[0], cost[0].double().numpy()), (cost, cost.double().numpy())):
        ours = solve(given_)
        assert all(isinstance(index, torch.Tensor) and index.dtype == torch.int64 for index in ours)
        if plain.ndim == 2:
            assert_same_total(plain, tuple(i.numpy() for i in ours), scipy_solve(plain))
    rows, cols = solve(list(cost))[1]
    assert isinstance(rows, torch.Tensor) and rows.shape == cols.shape == (6,)


def test_torch_tensor_with_gradient_and_odd_strides():
    cost = torch.randn(9, 7, requires_grad=True)
    rows, cols = solve(cost.t()[::2])
    expected = scipy_solve(cost.detach().t()[::2].numpy())
    assert_same((rows.numpy(), cols.numpy()), expected)
    assert not rows.requires_grad


class _Array:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


def test_objects_that_numpy_converts():
    cost = np.random.default_rng(13).random((4, 6)).astype(np.float32)
    assert_same(solve(_Array(cost)), scipy_solve(cost))


costs_with_ties_and_gaps = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7),
    elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, np.inf]),
)


@settings(max_examples=300, deadline=None)
@given(costs_with_ties_and_gaps, st.booleans())
def test_property_small_integers_and_forbidden_pairs(cost, maximize):
    cost = -cost if maximize else cost
    try:
        expected = scipy_solve(cost, maximize)
    except ValueError as error:
        with pytest.raises(ValueError) as raised:
            solve(cost, maximize)
        assert str(raised.value) == str(error)
    else:
        assert_same_total(cost, solve(cost, maximize), expected)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float64, np.float32]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
def test_property_any_floats(cost):
    ours, expected = solve(cost), scipy_solve(cost)
    cost = cost.astype(np.float64)
    assert abs(cost[ours].sum() - cost[expected].sum()) <= 1e-12 * np.abs(cost).sum()
    assert len(set(ours[1].tolist())) == min(cost.shape)


def test_gil_is_released_while_solving():
    rng = np.random.default_rng(14)
    cost = rng.random((1100, 1)) + rng.random((1, 1100)) + 1e-3 * rng.random((1100, 1100))
    span = []

    def work():
        span.append(time.perf_counter())
        solve(cost)
        span.append(time.perf_counter())

    ticks = [time.perf_counter()]
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    thread.join()
    ticks.append(time.perf_counter())
    took = span[1] - span[0]
    assert took > 0.05, "too quick to tell: enlarge the problem"
    longest_stall = max(np.diff(ticks))
    assert longest_stall < took / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lists_of_non_contiguous_and_misaligned_arrays(dtype):
    """Those are copied; only arrays that are neither are read where they are."""
    big = np.random.default_rng(7).standard_normal((40, 60)).astype(dtype)
    views = [big[::2, ::3], big[::-1, ::-1], big.T, np.asfortranarray(big), big[:, 5:9]]
    misaligned = np.frombuffer(b"x" + big.tobytes(), dtype=np.uint8)[1:].view(dtype)
    views.append(misaligned.reshape(big.shape))
    for cost in views:
        for costs in ([cost], [big, cost], [cost, big]):
            for ours, matrix in zip(solve(costs), costs, strict=True):
                assert_same(ours, scipy_solve(matrix))


@pytest.mark.parametrize("value", [np.finfo(np.float64).max, 1e308])
def test_only_negative_costs_near_the_end_of_float64(value):
    """The one way there is leads over two differences whose sum would overflow."""
    far = np.inf
    cost = np.array([[-value, 0, far], [far, -value, 0], [-value, far, far]])
    for matrix, cols in ((cost, [1, 2, 0]), (cost.T, [2, 0, 1])):
        assert solve(matrix)[1].tolist() == cols
        assert solve(-matrix, maximize=True)[1].tolist() == cols
