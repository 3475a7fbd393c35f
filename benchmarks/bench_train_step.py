"""A whole training step of DETR beside the published formula's and transformers'.

python -m benchmarks.bench_train_step --threads 2 --allocators kept default --seconds 60 \\
    --out benchmarks/results/train_step_cpu.csv
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu_timing import waits
from benchmarks.harness import measure, surroundings, write_csv
from benchmarks.step_contenders import CONTENDERS, IMPOSSIBLE, PUBLISHED, Case, Contender
from benchmarks.step_processes import DEFAULT, KEPT, Apart
from detr_fast.precision import amp_dtype
from detr_fast.training.clock import PHASES

Entrant = tuple[str, str]  # a contender's name, and its allocator on a CPU


def entrants(
    case: Case, names: Sequence[str], allocators: Sequence[str]
) -> dict[Entrant, Contender | Apart]:
    """Whom to time: on a GPU all in this process, elsewhere each in one of its own."""
    if case.device.type == "cuda":
        return {(name, ""): CONTENDERS[name](case) for name in names}
    return {
        (name, allocator): Apart(case, name, allocator)
        for allocator in allocators
        for name in names
    }


def check(running: dict[Entrant, Contender | Apart], half: bool) -> None:
    """Raise AssertionError where a contender's loss is another than the published formula's."""
    losses = {entrant: contender.total() for entrant, contender in running.items()}
    expected = next(loss for (name, _), loss in losses.items() if name == PUBLISHED)
    for entrant, loss in losses.items():
        if not math.isclose(loss, expected, rel_tol=0.02 if half else 1e-4):
            raise AssertionError(f"{entrant} has loss {loss}, {PUBLISHED} {expected}")


def gpu_peak_mb(case: Case, name: str) -> float:
    """Most memory of two training steps, in MiB, as torch allocates it on a GPU."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender = CONTENDERS[name](case)
    for _ in range(2):
        contender.step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def run_case(
    case: Case, names: Sequence[str], allocators: Sequence[str], seconds: float
) -> list[dict]:
    """A row for each contender and allocator, timed in turn."""
    running = entrants(case, names, allocators)
    try:
        rows = _timed_rows(case, running, seconds)
    finally:
        for contender in running.values():
            if isinstance(contender, Apart):
                contender.close()
    del contender, running  # on a GPU all of them were in memory
    for row in rows:
        if case.device.type == "cuda":
            row["peak_mb"] = round(gpu_peak_mb(case, row["variant"]), 1)
        row["peak_mb_per_image"] = round(row["peak_mb"] / case.batch, 1)
    return rows


def _timed_rows(
    case: Case, running: dict[Entrant, Contender | Apart], seconds: float
) -> list[dict]:
    on_gpu = case.device.type == "cuda"
    half = amp_dtype(case.amp, case.device) is not None
    check(running, half)
    steps = 5 if on_gpu else 1  # the host may run ahead of a GPU
    for contender in running.values():  # warm up, compile, capture
        contender.timed(5 if on_gpu else 2)
    phases: dict[Entrant, list[dict[str, float]]] = {entrant: [] for entrant in running}
    calls = {
        entrant: lambda c=contender, all_=phases[entrant]: all_.append(c.timed(steps))
        for entrant, contender in running.items()
    }
    figures = measure(
        calls, lambda results: None, seconds=seconds, warm_up=0, slow=math.inf, too_slow=math.inf
    )
    rows = []
    for (name, allocator), contender in running.items():
        taken, figure = phases[name, allocator], figures[name, allocator]
        step = figure["p50_us"] / steps / 1e3
        published = figures[PUBLISHED, allocator]["p50_us"] / steps / 1e3
        rows.append(
            {
                "model": case.model,
                "height": case.size[0],
                "width": case.size[1],
                "batch": case.batch,
                "padded": case.padded,
                "precision": "bf16 autocast" if half else "float32",
                "allocator": allocator,
                "variant": name,
                "images_per_second": round(case.batch / step * 1e3, 2),
                "speedup_to_published": round(published / step, 2),
                "step_ms": round(step, 2),
                "step_ms_p20": round(figure["p20_us"] / steps / 1e3, 2),
                "step_ms_p80": round(figure["p80_us"] / steps / 1e3, 2),
                **{
                    f"{phase}_ms": round(statistics.median(t[phase] for t in taken) * 1e3, 2)
                    if phase in taken[0]
                    else ""
                    for phase in PHASES
                    if phase != "data"
                },
                "host_waits": waits(contender.step) if on_gpu else "",
                "page_faults": "" if on_gpu else round(contender.page_faults()),
                "calls": figure["calls"],
                "peak_mb": "" if on_gpu else round(contender.peak_mb(), 1),
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    first = rows[0]
    print(
        f"{first['model']}, {first['batch']} images of {first['height']} x {first['width']}"
        f"{' with padding' if first['padded'] else ''}, {first['precision']}"
        + (f", freed memory {first['allocator']}" if first["allocator"] else "")
    )
    names = [phase for phase in PHASES if phase != "data"]
    print(
        f"  {'ms per step':22}" + "".join(f"{name:>10}" for name in (*names, "step")) + "   img/s"
    )
    for row in rows:
        times = [row[f"{name}_ms"] for name in (*names, "step")]
        print(
            f"  {row['variant']:22}"
            + "".join(f"{time:10.1f}" if time != "" else f"{'-':>10}" for time in times)
            + f"{row['images_per_second']:8.2f}  {row['speedup_to_published']:.2f}x"
            + f"  {row['peak_mb']:.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--model", default="resnet18", choices=("resnet18", "resnet50"))
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--amp", nargs="+", default=["none", "bf16"], choices=("none", "bf16"))
    parser.add_argument("--padded", action="store_true", help="with padding as well as without")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="beside the published")
    parser.add_argument(
        "--allocators",
        nargs="+",
        default=[KEPT],
        choices=(KEPT, DEFAULT),
        help="on a CPU: freed memory is kept, as detr-fast does, or left to the C library",
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="per case (default: 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    names = [name for name in CONTENDERS if name not in IMPOSSIBLE[device.type]]
    if args.only is not None:
        names = list(dict.fromkeys([PUBLISHED, *args.only]))

    rows = []
    about = surroundings(args.seed)
    for padded in (False, True) if args.padded else (False,):
        for amp in args.amp:
            case = Case(args.model, tuple(args.size), args.batch, amp, padded, args.seed, device)
            found = run_case(case, names, args.allocators, args.seconds)
            for allocator in dict.fromkeys(row["allocator"] for row in found):
                show([row for row in found if row["allocator"] == allocator])
            rows += [{**row, **about} for row in found]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
