"""FastMatcher on the CPU, all decoder layers in one call, against torch + SciPy.

python -m benchmarks.bench_matcher --out benchmarks/results/matcher_cpu.csv
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.baselines.blockwise_matcher import BlockwiseMatcher
from benchmarks.baselines.published_matcher import PublishedMatcher
from benchmarks.cases import CASES, QUICK, Case, make
from benchmarks.harness import measure, surroundings, write_csv
from detr_fast import FastMatcher
from detr_fast.reference import matching_cost

FAST, PUBLISHED, BLOCKWISE = "FastMatcher", "published matcher", "block-wise torch + SciPy"


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


def run_case(case: Case, seed: int, seconds: float) -> dict[str, dict[str, float]]:
    layers, targets = make(case, seed)
    variants = {
        FAST: FastMatcher(),
        PUBLISHED: PublishedMatcher(),
        BLOCKWISE: BlockwiseMatcher(),
    }

    def check(results: Mapping[str, object]) -> None:
        # Costs are float32 in all variants and rounded differently: near-ties may fall either way.
        expected = totals(layers, targets, results[PUBLISHED])
        for name, matches in results.items():
            difference = (totals(layers, targets, matches) - expected).abs().max().item()
            if difference > 1e-4:
                raise AssertionError(f"{case.name}: {name} is off the optimum by {difference}")

    calls = {
        name: lambda matcher=matcher: matcher.match_layers(layers, targets)
        for name, matcher in variants.items()
    }
    return measure(calls, check, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that all runs")
    parser.add_argument("--seconds", type=float, default=3.0, help="per case (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = []
    about = surroundings(args.seed)
    for case in QUICK if args.quick else CASES:
        result = run_case(case, args.seed, min(args.seconds, 0.3) if args.quick else args.seconds)
        print(case.name)
        for name, figures in result.items():
            times_faster = result[PUBLISHED]["p50_us"] / figures["p50_us"]
            print(f"  {name:26} {figures['p50_us']:10.1f} us  {times_faster:6.1f}x")
            rows.append(
                {
                    "family": case.family,
                    "layers": case.layers,
                    "images": case.images,
                    "queries": case.queries,
                    "classes": case.classes,
                    "targets": case.targets,
                    "variant": name,
                    **figures,
                    "speedup_to_published": round(times_faster, 2),
                    **about,
                }
            )
    if args.out:
        write_csv(args.out, rows)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
