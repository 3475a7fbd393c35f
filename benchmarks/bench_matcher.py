"""FastMatcher on the CPU, all decoder layers in one call, against torch + SciPy.

python -m benchmarks.bench_matcher --out benchmarks/results/matcher_cpu.csv

Sets: ``sizes`` of common models, then how the time grows with ``queries``, ``targets`` and decoder
``layers``; ``bfloat16`` logits beside float32; ``fixed``, the cost of a call with next to no work.

The row ``floor`` is the time torch takes for one exp of every logit of all layers, on as many
threads: what reading the input once and taking its softmax costs at least, so the distance a
matcher can still gain. It matches nothing.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.baselines.blockwise_matcher import BlockwiseMatcher
from benchmarks.baselines.published_matcher import PublishedMatcher
from benchmarks.cases import FAMILIES, Case, make
from benchmarks.harness import environment_info, measure, write_csv
from detr_fast import FastMatcher
from detr_fast.reference import HungarianMatcher, matching_cost

FAST, PUBLISHED, BLOCKWISE = "FastMatcher", "published matcher", "block-wise torch + SciPy"
FLOOR = "floor: exp of all logits"
GROWTH_FAMILIES = ("initial", "trained")  # the hardest and the easiest
SIZES = (  # B, N, K, M
    (2, 100, 91, 20),  # COCO, one GPU's batch of the published recipe
    (8, 100, 91, 20),
    (16, 300, 91, 50),  # the queries of DINO and RT-DETR
    (16, 900, 91, 100),
)


@dataclass(frozen=True)
class Row:
    """What one measurement is of."""

    set: str
    case: Case
    dtype: str = "float32"  # of the logits; boxes are float32
    threads: int = 1

    @property
    def name(self) -> str:
        return f"{self.set}: {self.case.name}, {self.dtype}, threads: {self.threads}"


def all_rows() -> Iterator[Row]:
    for threads in (1, 2):
        yield Row("fixed", Case("trained", 1, 1, 91, 1, layers=1), threads=threads)
    for size in SIZES:
        for family in FAMILIES:
            yield Row("sizes", Case(family, *size), threads=2)
    for family in GROWTH_FAMILIES:
        for size in SIZES[:3]:
            yield Row("sizes", Case(family, *size))
        for queries in (100, 300, 900, 1800, 3900):  # 3900: 13 groups of 300
            yield Row("queries", Case(family, 4, queries, 91, 50))
        for targets in (1, 5, 10, 20, 50, 100, 200, 300):
            yield Row("targets", Case(family, 4, 300, 91, targets, exact=True))
        for layers in range(1, 9):
            yield Row("layers", Case(family, 4, 300, 91, 50, layers))
        for dtype in ("float32", "bfloat16"):
            yield Row("bfloat16", Case(family, 16, 300, 91, 50), dtype)


def quick_rows() -> Iterator[Row]:
    """One small case of each kind."""
    yield Row("fixed", Case("trained", 1, 1, 91, 1, layers=1))
    for family in FAMILIES:
        yield Row("sizes", Case(family, 2, 30, 5, 4, layers=2), threads=2)
    for family in GROWTH_FAMILIES:
        for size in (10, 20):
            yield Row("queries", Case(family, 2, size, 5, 4, 2))
            yield Row("targets", Case(family, 2, 15, 5, size, 2, exact=True))
            yield Row("layers", Case(family, 2, 15, 5, 4, size // 10))
    yield Row("bfloat16", Case("trained", 2, 30, 5, 4, layers=2), "bfloat16")


def totals(layers: list[dict], targets: list[dict], matches: list) -> torch.Tensor:  # [L, B]
    """The total cost of each image's match, in float64."""
    return torch.stack(
        [
            torch.stack(
                [
                    matching_cost(
                        layer["pred_logits"][b].double(),
                        layer["pred_boxes"][b].double(),
                        target["labels"],
                        target["boxes"].double(),
                    )[i, j].sum()
                    for b, (target, (i, j)) in enumerate(zip(targets, matched, strict=True))
                ]
            )
            for layer, matched in zip(layers, matches, strict=True)
        ]
    )


def run(row: Row, seed: int, seconds: float, too_slow: float) -> dict[str, dict[str, object]]:
    """The figures of every variant, by name."""
    layers, targets = make(row.case, seed)
    for layer in layers:
        layer["pred_logits"] = layer["pred_logits"].to(getattr(torch, row.dtype))
    exact = [{key: value.double() for key, value in layer.items()} for layer in layers]
    wide = [{**target, "boxes": target["boxes"].double()} for target in targets]
    optimum = totals(exact, wide, [HungarianMatcher()(layer, wide) for layer in exact])
    excess = {}

    def check(results: Mapping[str, object]) -> None:
        for name, matches in results.items():
            if name == FLOOR:
                continue
            above = totals(layers, targets, matches) - optimum
            excess[name] = above.max().item()
            # Costs are float32 and rounded differently in each variant: near-ties may fall either
            # way. From bfloat16 logits the other variants also take the softmax in bfloat16; their
            # row tells how far they end up above the optimum.
            rounding = 1e-4 if row.dtype == "float32" or name == FAST else float("inf")
            if above.min() < -1e-9 or excess[name] > rounding:
                raise AssertionError(f"{row.name}: {name} is off the optimum by {excess[name]}")

    matchers = {FAST: FastMatcher(), PUBLISHED: PublishedMatcher(), BLOCKWISE: BlockwiseMatcher()}
    calls = {
        name: lambda matcher=matcher: matcher.match_layers(layers, targets)
        for name, matcher in matchers.items()
    }
    logits = [layer["pred_logits"] for layer in layers]
    outputs = [torch.empty_like(logit) for logit in logits]
    calls[FLOOR] = lambda: [torch.exp(x, out=y) for x, y in zip(logits, outputs, strict=True)]
    result = measure(calls, check, seconds, warm_up=0.05, too_slow=too_slow)
    floor, published = result[FLOOR]["p50_us"], result[PUBLISHED]["p50_us"]
    for name, figures in result.items():
        time = figures["p50_us"]
        figures["excess"] = f"{max(0, excess[name]):.1e}" if name in excess else ""
        known = bool(time and published) and name != FLOOR
        figures["speedup_to_published"] = round(published / time, 2) if known else ""
        figures["times_floor"] = round(time / floor, 2) if time else ""
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that all runs")
    parser.add_argument("--seconds", type=float, default=0.5, help="per case (default: 0.5)")
    parser.add_argument(
        "--too-slow",
        type=float,
        default=10.0,
        help="leave out a matcher whose call takes more seconds (default: 10)",
    )
    parser.add_argument("--sets", nargs="+", help="of fixed, sizes, queries, targets, layers, ...")
    parser.add_argument("--threads", type=int, help="run only the cases with so many threads")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rows = []
    for row in quick_rows() if args.quick else all_rows():
        if args.threads not in (None, row.threads) or (args.sets and row.set not in args.sets):
            continue
        torch.set_num_threads(row.threads)
        seconds = min(args.seconds, 0.05) if args.quick else args.seconds
        start = time.perf_counter()
        result = run(row, args.seed, seconds, args.too_slow)
        about = environment_info(args.seed)
        print(f"{row.name} ({time.perf_counter() - start:.1f} s)", flush=True)
        for name, figures in result.items():
            print(
                f"  {name:26} {figures['p50_us'] or '-':>10} us "
                f"{figures['speedup_to_published']:>7}x published "
                f"{figures['times_floor']:>7}x floor  {figures['note']}"
            )
            rows.append(
                {
                    "set": row.set,
                    **vars(row.case),
                    "dtype": row.dtype,
                    "threads": row.threads,
                    "variant": name,
                    **figures,
                    **about,
                }
            )
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
