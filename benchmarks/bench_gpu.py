"""Matching, assignment, IoU and box losses on a GPU, against what else could be used there.

python -m benchmarks.bench_gpu --out benchmarks/results/gpu.csv

Old rows of a set are deleted before it is timed. The rows are written after each case: first the
times of all, then, since a profiler may stay attached, the waits and kernels of ours and the waits
of the others, then the steps, which the host counts.
"""

import argparse
import importlib.metadata
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.baselines.blockwise_matcher import BlockwiseMatcher
from benchmarks.baselines.published_matcher import PublishedMatcher
from benchmarks.cases import FAMILIES, Case, costs_of, make
from benchmarks.chain import longest_chain
from benchmarks.failures import Failures
from benchmarks.gpu_assignment import ASSIGNMENT_SIZES, assignment, counted, new_sizes, ragged
from benchmarks.gpu_boxes import LOSS_SIZES, box_ious, losses
from benchmarks.gpu_names import (
    ASSIGNMENT,
    IOU,
    LISTS,
    LOSSES,
    MATCHING,
    NEW_SIZES,
    OURS,
    PACKED,
    RAGGED,
)
from benchmarks.gpu_profile import waits, waits_and_kernels
from benchmarks.gpu_timing import Problem, bandwidth, rows_of
from benchmarks.harness import environment_info, read_csv, write_csv
from detr_fast import FastMatcher, PackedTargets
from detr_fast.matching import Matches
from detr_fast.reference import matching_cost

MATCHING_SIZES = ((2, 100, 91, 20), (16, 100, 91, 20), (16, 300, 91, 100), (16, 900, 91, 100))
BATCHES = 8  # different ones, in turn
SETS = {  # as in rows
    "matching": (MATCHING,),
    "assignment": (ASSIGNMENT, RAGGED, NEW_SIZES),
    "box_losses": (LOSSES,),
    "box_iou": (IOU,),
}

Rows = list[dict]


def matching(case: Case, seed: int, device: str = "cuda") -> Problem:
    """Costs and assignment of all decoder layers."""
    batches = [make(case, seed + k, device) for k in range(BATCHES)]
    packed = [PackedTargets.pack(targets) for _, targets in batches]
    # As a step that is compiled or captured takes them.
    spacious = [PackedTargets.pack(targets, case.images * case.targets) for _, targets in batches]
    fast = FastMatcher()
    published, blockwise = PublishedMatcher(), BlockwiseMatcher()
    layers, targets = batches[0]
    # What the kernels must move at least: predictions once, each cost written once and read once.
    logits = case.layers * case.images * case.queries * (case.classes + 1 + 4) * 4
    costs = sum(len(t["labels"]) for t in targets) * case.layers * case.queries * 4
    return Problem(
        f"{MATCHING} {case.name}",
        {
            "what": MATCHING,
            **case.about(),
            "bytes": logits + 2 * costs,
        },
        {
            PACKED: lambda k: fast.match_packed(batches[k % BATCHES][0], packed[k % BATCHES]),
            f"{PACKED} with a capacity": lambda k: fast.match_packed(
                batches[k % BATCHES][0], spacious[k % BATCHES]
            ),
            LISTS: lambda k: fast.match_layers(*batches[k % BATCHES]),
            "published matcher": lambda k: published.match_layers(*batches[k % BATCHES]),
            "block-wise, one transfer": lambda k: blockwise.match_layers(*batches[k % BATCHES]),
        },
        partial(_wrong_matches, layers, targets),
        lambda: longest_chain(
            cost.cpu().numpy()
            for cost in itertools.islice(
                costs_of(layers, targets), counted(case.queries, case.targets)
            )
        ),
    )


def _wrong_matches(
    layers: list[dict], targets: list[dict], results: Mapping[str, object]
) -> dict[str, str]:
    """Whose total is above the least: costs are rounded differently, near-ties may differ."""
    costs = [
        [
            matching_cost(
                layer["pred_logits"][b].double().cpu(),
                layer["pred_boxes"][b].double().cpu(),
                target["labels"].cpu(),
                target["boxes"].double().cpu(),
            )
            for b, target in enumerate(targets)
        ]
        for layer in layers
    ]
    totals, wrong = {}, {}
    for variant, found in results.items():
        pairs = _pairs(found) if isinstance(found, Matches) else found
        totals[variant] = 0.0
        for costs_of_layer, images in zip(costs, pairs, strict=True):
            for cost, (i, j) in zip(costs_of_layer, images, strict=True):
                if len(i) != min(cost.shape) or len(set(i.tolist())) != len(i):
                    wrong[variant] = f"{len(i)} pairs of {list(cost.shape)}, or a query twice"
                    break
                totals[variant] += cost[i.cpu(), j.cpu()].sum().item()
    least = min((total for name, total in totals.items() if name not in wrong), default=0.0)
    for variant, total in totals.items():
        if variant not in wrong and total - least > 1e-3 * len(layers) * len(targets):
            wrong[variant] = f"the total cost is {total - least} above the least"
    return wrong


def _pairs(matches: Matches) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Queries and targets of each image in each layer, as the other matchers give them."""
    starts = matches.targets.offsets.tolist()
    return [
        [
            (image[image >= 0], (image >= 0).nonzero()[:, 0])
            for image in (layer[a:b] for a, b in itertools.pairwise(starts))
        ]
        for layer in matches.query_index.cpu()
    ]


def cases(sets: Sequence[str], seed: int, quick: bool) -> Iterator[tuple[str, Callable]]:
    """What makes each problem, under the name by which a failure to do so is reported."""
    few = slice(1 if quick else None)
    if MATCHING in sets:
        for size, family in itertools.product(MATCHING_SIZES[few], FAMILIES):
            yield f"{MATCHING} {family} {size}", partial(matching, Case(family, *size), seed)
    if ASSIGNMENT in sets:
        for size, family in itertools.product(ASSIGNMENT_SIZES[few], FAMILIES):
            yield f"{ASSIGNMENT} {family} {size}", partial(assignment, family, *size, seed)
        images = 1 if quick else 16
        for family in FAMILIES[few]:
            yield f"{RAGGED} {family}", partial(ragged, family, seed, images=images)
        yield NEW_SIZES, partial(new_sizes, "random", seed, images=images)
    if LOSSES in sets:
        for size in LOSS_SIZES[few]:
            yield f"{LOSSES} {size}", partial(losses, Case("trained", *size), seed)
    if IOU in sets:
        yield IOU, partial(box_ious, seed)


def run(
    problems: Iterator[tuple[str, Callable[[], Problem]]],
    rounds: int,
    failures: Failures,
    write: Callable[[Rows], None],
) -> Rows:
    """All rows; ``write`` is given those that there are after each case."""
    rows: Rows = []
    timed: list[tuple[Problem, Rows]] = []
    for title, prepare in problems:
        try:
            problem = prepare()
            found = rows_of(problem, rounds, failures)
        except Exception as error:
            failures.add(title, error)
            continue
        timed.append((problem, found))
        rows += found
        _print(problem, found)
        write(rows)
    for ours, (problem, found) in itertools.product((True, False), timed):
        for row in found:
            if row["variant"].startswith(OURS) == ours:
                _profile(problem, row, failures)
        write(rows)
    for problem, found in timed:
        try:
            steps = problem.steps()
        except Exception as error:
            failures.add(f"steps of {problem.title}", error)
            continue
        for row in found:
            row["steps"] = steps
        write(rows)
    return rows


def _profile(problem: Problem, row: dict, failures: Failures) -> None:
    """Adds the waits of a variant and, if it is one of ours, the times of its kernels."""
    variant = row["variant"]
    call = partial(problem.variants[variant], 0)
    try:
        if variant.startswith(OURS):
            row["waits"], row["kernels"] = waits_and_kernels(call)
        else:
            row["waits"] = waits(call)
    except Exception as error:
        failures.add(f"waits of {problem.title}, {variant}", error)
    print(f"{problem.title}, {variant}: waits {row['waits']}", flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--quick", action="store_true", help="one small case of each kind")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each variant")
    parser.add_argument(
        "--sets", nargs="+", default=SETS, choices=SETS, help="only these; others' rows are kept"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    args = parser().parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_gpu needs a GPU")
    try:
        rival = importlib.metadata.version("torch-linear-assignment")
    except importlib.metadata.PackageNotFoundError:
        rival = ""
    about = {
        **environment_info(args.seed),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "torch_linear_assignment": rival,
        "copy_gb_per_s": round(bandwidth() / 1e9),
    }
    sets = [what for name in args.sets for what in SETS[name]]
    kept = [row for row in read_csv(args.out) if row["what"] not in sets]
    if kept:
        write_csv(args.out, kept)
    elif args.out:
        args.out.unlink(missing_ok=True)
    failures = Failures()
    rows = run(
        cases(sets, args.seed, args.quick),
        3 if args.quick else args.rounds,
        failures,
        lambda rows: write_csv(args.out, kept + [{**row, **about} for row in rows]),
    )
    print(f"{len(rows)} rows", end=", ")
    failures.stop()


def _print(problem: Problem, rows: Rows) -> None:
    print(problem.title)
    for row in rows:
        print(
            f"  {row['variant']:42} gpu {row['gpu_us']:10.1f} us  host {row['host_us']:10.1f} us  "
            f"queued {row['queued']} of {row['calls']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
