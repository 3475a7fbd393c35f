"""The bare assignment on a GPU beside torch-linear-assignment: batches of one shape, and ragged."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import Case, costs_of, make
from benchmarks.chain import longest_chain
from benchmarks.gpu_names import ASSIGNMENT, NEW_SIZES, RAGGED, SOLVER, TORCH_ASSIGNMENT
from benchmarks.gpu_timing import Call, Problem
from detr_fast import linear_sum_assignment

ASSIGNMENT_SIZES = ((96, 100, 20), (208, 300, 100), (208, 300, 300), (4096, 300, 20))  # P, N, M
COUNTED, COUNTED_COSTS = 64, 2_000_000  # problems, and costs, whose steps the host counts: at most
NEW_BATCHES = 14  # calls before the profiler's
RAGGED_LIMITS = (100, 94, 89, 83, 78, 72, 67, 61)  # targets of an image, at most, by batch


def _rival() -> Callable[[Tensor], Tensor] | None:
    """torch-linear-assignment's function, None where it is not installed, which is printed."""
    try:
        from torch_linear_assignment import batch_linear_assignment
    except ImportError as error:
        print(f"{TORCH_ASSIGNMENT} is left out: {error}")
        return None
    return batch_linear_assignment


def _costs(
    family: str, problems: int, queries: int, targets: int, seed: int, device: str
) -> torch.Tensor:
    """[P, M, N] of exactly that size, from the family's predictions."""
    images = 16
    case = Case(family, images, queries, 91, targets, layers=-(-problems // images))
    layers, drawn = make(case, seed)
    g = torch.Generator().manual_seed(seed)
    full = []
    for target in drawn:  # as many targets in every image
        index = torch.randint(
            len(target["labels"]), (targets - len(target["labels"]),), generator=g
        )
        jitter = 0.05 * torch.randn(len(index), 4, generator=g)
        full.append(
            {
                "labels": torch.cat([target["labels"], target["labels"][index]]),
                "boxes": torch.cat(
                    [target["boxes"], (target["boxes"][index] + jitter).clamp(0.01, 0.99)]
                ),
            }
        )
    layers, full = (
        [{name: value.to(device) for name, value in item.items()} for item in items]
        for items in (layers, full)
    )
    return torch.stack(list(itertools.islice(costs_of(layers, full), problems)))


def counted(queries: int, targets: int) -> int:
    return min(COUNTED, COUNTED_COSTS // (queries * targets))


def assignment(
    family: str, problems: int, queries: int, targets: int, seed: int, device: str = "cuda"
) -> Problem:
    """The bare solver on a batch of costs."""
    costs = [_costs(family, problems, queries, targets, seed + k, device) for k in range(2)]
    tall = [cost.transpose(1, 2).contiguous() for cost in costs]
    variants: dict[str, Call] = {
        SOLVER: lambda k: linear_sum_assignment(costs[k % 2], validate=False),
        f"{SOLVER}, checked": lambda k: linear_sum_assignment(costs[k % 2]),
        f"{SOLVER}, rows are queries": lambda k: linear_sum_assignment(tall[k % 2], validate=False),
    }
    if rival := _rival():
        variants[TORCH_ASSIGNMENT] = lambda k: rival(costs[k % 2])
        if targets < queries:
            variants[f"{TORCH_ASSIGNMENT}, rows are queries"] = lambda k: rival(tall[k % 2])
    return Problem(
        f"{ASSIGNMENT} {family} P{problems} N{queries} M{targets}",
        {
            "what": ASSIGNMENT,
            "family": family,
            "problems": problems,
            "queries": queries,
            "targets": targets,
            "bytes": costs[0].numel() * 4,
        },
        variants,
        partial(_wrong_assignments, costs[0]),
        lambda: longest_chain(costs[0][: counted(queries, targets)].cpu().numpy()),
    )


def _wrong_assignments(cost: torch.Tensor, results: Mapping[str, object]) -> dict[str, str]:
    """Whose totals are not those of the CPU's solver."""
    cost = cost.double().cpu()  # [P, M, N]
    problem = torch.arange(len(cost))[:, None]
    rows, cols = linear_sum_assignment(cost)
    least = cost[problem, rows, cols].sum(1)
    wrong = {}
    for variant, found in results.items():
        if isinstance(found, torch.Tensor):  # columns of all rows, -1 where there is none
            found = torch.arange(found.shape[1]).expand_as(found), found.cpu()
        rows, cols = (index.cpu() for index in found)
        if "rows are queries" in variant:
            rows, cols = cols, rows
        taken = (rows >= 0) & (cols >= 0)
        total = (cost[problem, rows.clamp(0), cols.clamp(0)] * taken).sum(1)
        off = (total - least).abs().max().item()
        if off > 1e-3 or not (taken.sum(1) == min(cost.shape[1:])).all():
            wrong[variant] = f"a total is {off} off the optimum, or pairs are missing"
    return wrong


def ragged(family: str, seed: int, device: str = "cuda", images: int = 16) -> Problem:
    """13 layers' problems of 300 queries and 1 to 100 targets, as images have them.

    The rival is given padded batches, made beforehand, whose rows of zeros leave the optimum of the
    others as it is.
    """
    batches = [
        _matrices(Case(family, images, 300, 91, limit, layers=13), seed + k, device)
        for k, limit in enumerate(RAGGED_LIMITS)
    ]
    variants: dict[str, Call] = {
        SOLVER: lambda k: linear_sum_assignment(batches[k % len(batches)], validate=False)
    }
    if rival := _rival():
        tight = [_padded(batch) for batch in batches]
        wide = [_padded(batch, max(RAGGED_LIMITS)) for batch in batches]
        variants[f"{TORCH_ASSIGNMENT}, padded to the largest M"] = lambda k: rival(
            tight[k % len(tight)]
        )
        variants[f"{TORCH_ASSIGNMENT}, padded to 100"] = lambda k: rival(wide[k % len(wide)])
    return Problem(
        f"{RAGGED} {family}",
        {
            "what": RAGGED,
            "family": family,
            "problems": len(batches[0]),
            "queries": batches[0][0].shape[1],
            "targets": max(RAGGED_LIMITS),
            "bytes": sum(cost.numel() for cost in batches[0]) * 4,
        },
        variants,
        partial(_wrong_ragged, batches[0]),
        lambda: longest_chain(cost.cpu().numpy() for cost in batches[0][:COUNTED]),
    )


def new_sizes(family: str, seed: int, device: str = "cuda", images: int = 16) -> Problem:
    """As :func:`ragged`, each call with a largest M that no call before it had."""
    batches = [
        _matrices(Case(family, images, 300, 91, targets, layers=1, exact=True), seed, device)
        for targets in range(20, 20 + 5 * NEW_BATCHES, 5)
    ]
    first = batches[0]

    def in_turn(solve: Callable[[Tensor | list[Tensor]], object], inputs: list) -> Call:
        to_come = itertools.cycle(inputs)
        return lambda _: solve(next(to_come))

    variants = {SOLVER: in_turn(partial(linear_sum_assignment, validate=False), batches)}
    if rival := _rival():
        padded = [_padded(batch) for batch in batches]
        variants[f"{TORCH_ASSIGNMENT}, padded to the largest M"] = in_turn(rival, padded)
    return Problem(
        NEW_SIZES,
        {
            "what": NEW_SIZES,
            "family": family,
            "problems": len(first),
            "queries": 300,
            "targets": len(batches[-1][0]),
            "bytes": sum(cost.numel() for batch in batches for cost in batch) * 4 // NEW_BATCHES,
        },
        variants,
        partial(_wrong_ragged, first),
        lambda: 0,
        rounds=3,  # the rival compiles in each
    )


def _matrices(case: Case, seed: int, device: str) -> list[Tensor]:  # of [M, N]
    return [cost.contiguous() for cost in costs_of(*make(case, seed, device))]


def _padded(costs: list[Tensor], rows: int = 0) -> Tensor:  # [P, max M or rows, N]
    rows = max(rows, *map(len, costs))
    padded = costs[0].new_zeros(len(costs), rows, costs[0].shape[1])
    for one, cost in zip(padded, costs, strict=True):
        one[: len(cost)] = cost
    return padded


def _wrong_ragged(costs: list[Tensor], results: Mapping[str, object]) -> dict[str, str]:
    """Whose totals are not those of the CPU's solver."""
    costs = [cost.double().cpu() for cost in costs]
    optimal = linear_sum_assignment(costs)
    wrong = {}
    for variant, found in results.items():
        if isinstance(found, Tensor):  # the columns of all rows, of those of padding too
            cols_of = zip(costs, found.cpu(), strict=True)
            found = [(torch.arange(len(cost)), cols[: len(cost)]) for cost, cols in cols_of]
        for cost, best, pairs in zip(costs, optimal, found, strict=True):
            rows, cols = (index.cpu() for index in pairs)
            if len(rows) != len(cost) or len(set(cols.tolist())) != len(cost):
                wrong[variant] = f"{len(rows)} pairs of {list(cost.shape)}, or a column twice"
                break
            off = (cost[rows, cols].sum() - cost[best].sum()).item()
            if abs(off) > 1e-3:
                wrong[variant] = f"a total is {off} off the optimum"
                break
    return wrong
