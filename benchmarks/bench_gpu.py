"""Matching, assignment and box losses on a GPU, against everything else that could be used there.

python -m benchmarks.bench_gpu --out benchmarks/results/gpu.csv
"""

import argparse
import importlib.metadata
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.baselines.blockwise_matcher import BlockwiseMatcher
from benchmarks.baselines.published_matcher import PublishedMatcher
from benchmarks.cases import FAMILIES, Case, costs_of, make
from benchmarks.chain import longest_chain
from benchmarks.gpu_losses import SIZES as LOSSES
from benchmarks.gpu_losses import run_losses
from benchmarks.gpu_timing import bandwidth, rows_of
from benchmarks.harness import surroundings, write_csv
from detr_fast import FastMatcher, PackedTargets, linear_sum_assignment
from detr_fast.reference import matching_cost

MATCHING = ((2, 100, 91, 20), (16, 100, 91, 20), (16, 300, 91, 100), (16, 900, 91, 100))
ASSIGNMENT = ((96, 100, 20), (208, 300, 100), (208, 300, 300), (4096, 300, 20))  # P, N, M
BATCHES = 8  # different ones, in turn
COUNTED = 64  # problems of which the chain of steps is counted, on the host

Rows = list[dict]


def _check_totals(
    name: str, layers: list[dict], targets: list[dict], matches: Mapping[str, list]
) -> None:
    """All variants' totals alike: their costs are rounded differently, near-ties may differ."""
    totals = {}
    for variant, found in matches.items():
        total = 0.0
        for layer, images in zip(layers, found, strict=True):
            for b, (i, j) in enumerate(images):
                cost = matching_cost(
                    layer["pred_logits"][b].double().cpu(),
                    layer["pred_boxes"][b].double().cpu(),
                    targets[b]["labels"].cpu(),
                    targets[b]["boxes"].double().cpu(),
                )
                total += cost[i.cpu(), j.cpu()].sum().item()
        totals[variant] = total
    expected = totals[min(totals, key=totals.__getitem__)]
    for variant, total in totals.items():
        if abs(total - expected) > 1e-3 * len(layers) * len(targets):
            raise AssertionError(f"{name}: {variant} is off the optimum by {total - expected}")


def run_matching(case: Case, seed: int, rounds: int) -> Rows:
    batches = [make(case, seed + k, "cuda") for k in range(BATCHES)]
    packed = [PackedTargets.pack(targets) for _, targets in batches]
    fast = FastMatcher()
    published, blockwise = PublishedMatcher(), BlockwiseMatcher()
    variants: dict[str, Callable[[int], object]] = {
        "FastMatcher, packed": lambda k: fast.match_packed(
            batches[k % BATCHES][0], packed[k % BATCHES]
        ),
        "FastMatcher, lists": lambda k: fast.match_layers(*batches[k % BATCHES]),
        "published matcher": lambda k: published.match_layers(*batches[k % BATCHES]),
        "block-wise, one transfer": lambda k: blockwise.match_layers(*batches[k % BATCHES]),
    }
    layers, targets = batches[0]
    lists = {name: call(0) for name, call in variants.items() if "packed" not in name}
    _check_totals(case.name, layers, targets, lists)
    # What the kernels must move at least: predictions once, each cost written once and read once.
    logits = case.layers * case.images * case.queries * (case.classes + 1 + 4) * 4
    costs = sum(len(t["labels"]) for t in targets) * case.layers * case.queries * 4
    counted = itertools.islice(costs_of(layers, targets), COUNTED)
    return rows_of(
        variants,
        rounds,
        what="matching",
        family=case.family,
        problems=case.layers * case.images,
        queries=case.queries,
        targets=case.targets,
        bytes=logits + 2 * costs,
        steps=longest_chain(cost.cpu().numpy() for cost in counted),
    )


def _costs(family: str, problems: int, queries: int, targets: int, seed: int) -> torch.Tensor:
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
    return torch.stack(list(itertools.islice(costs_of(layers, full), problems)))


def run_assignment(
    family: str, problems: int, queries: int, targets: int, seed: int, rounds: int
) -> Rows:
    costs = [_costs(family, problems, queries, targets, seed + k).cuda() for k in range(2)]
    tall = [cost.transpose(1, 2).contiguous() for cost in costs]
    variants: dict[str, Callable[[int], object]] = {
        "linear_sum_assignment": lambda k: linear_sum_assignment(costs[k % 2], validate=False),
        "linear_sum_assignment, checked": lambda k: linear_sum_assignment(costs[k % 2]),
        "linear_sum_assignment, rows are queries": lambda k: linear_sum_assignment(
            tall[k % 2], validate=False
        ),
    }
    _, cols_of = variants["linear_sum_assignment"](0)
    expected = costs[0].double().gather(2, cols_of[..., None])[..., 0].sum(1)
    try:
        from torch_linear_assignment import batch_linear_assignment

        found = batch_linear_assignment(costs[0])
        total = costs[0].double().gather(2, found[..., None])[..., 0].sum(1)
        worst = (total - expected).abs().max().item()
        if worst > 1e-3:
            raise AssertionError(f"torch-linear-assignment and detr_fast differ by {worst}")
        variants["torch-linear-assignment"] = lambda k: batch_linear_assignment(costs[k % 2])
        if targets < queries:
            variants["torch-linear-assignment, rows are queries"] = lambda k: (
                batch_linear_assignment(tall[k % 2])
            )
    except ImportError as error:
        print(f"torch-linear-assignment is left out: {error}")
    return rows_of(
        variants,
        rounds,
        what="assignment",
        family=family,
        problems=problems,
        queries=queries,
        targets=targets,
        bytes=costs[0].numel() * 4,
        steps=longest_chain(costs[0][:COUNTED].cpu().numpy()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--quick", action="store_true", help="one small case of each kind")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each variant")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_gpu needs a GPU")
    rounds = 3 if args.quick else args.rounds
    try:
        rival = importlib.metadata.version("torch-linear-assignment")
    except importlib.metadata.PackageNotFoundError:
        rival = ""
    about = {
        **surroundings(args.seed),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "torch_linear_assignment": rival,
        "copy_gb_per_s": round(bandwidth() / 1e9),
    }
    rows: Rows = []
    for size in MATCHING[:1] if args.quick else MATCHING:
        for family in FAMILIES:
            rows += run_matching(Case(family, *size), args.seed, rounds)
            _print(rows[-4:])
    for problems, queries, targets in ASSIGNMENT[:1] if args.quick else ASSIGNMENT:
        for family in FAMILIES:
            before = len(rows)
            rows += run_assignment(family, problems, queries, targets, args.seed, rounds)
            _print(rows[before:])
    for size in LOSSES[:1] if args.quick else LOSSES:
        before = len(rows)
        rows += run_losses(Case("trained", *size), args.seed, rounds)
        _print(rows[before:])
    write_csv(args.out, [{**row, **about} for row in rows])


def _print(rows: Rows) -> None:
    first = rows[0]
    print(
        f"{first['what']} {first['family']} P{first['problems']} N{first['queries']} "
        f"M{first['targets']}"
    )
    for row in rows:
        print(
            f"  {row['variant']:42} gpu {row['gpu_us']:10.1f} us  host {row['host_us']:10.1f} us  "
            f"waits {row['waits']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
