"""A whole training step of DETR beside the published formula's and transformers'.

python -m benchmarks.bench_train_step --threads 2 --out benchmarks/results/train_step_cpu.csv
"""

import argparse
import math
import multiprocessing
import statistics
from pathlib import Path

import torch

from benchmarks.gpu_timing import waits
from benchmarks.harness import measure, surroundings, write_csv
from benchmarks.step_contenders import (
    CONTENDERS,
    IMPOSSIBLE,
    PUBLISHED,
    TRANSFORMERS,
    Case,
    Contender,
)
from detr_fast.training.clock import PHASES


def check(contenders: dict[str, Contender]) -> None:
    """Raise AssertionError where a contender's loss is another than the published formula's."""
    losses = {name: contender.total() for name, contender in contenders.items()}
    for name, loss in losses.items():
        half = contenders[name].amp is not None
        if not math.isclose(loss, losses[PUBLISHED], rel_tol=0.02 if half else 1e-4):
            raise AssertionError(f"{name} has loss {loss}, {PUBLISHED} {losses[PUBLISHED]}")


def host_waits(contender: Contender) -> int | str:
    """How often the host waits for the GPU in a step: runtime calls that block, as profiled."""
    return waits(contender.step) if contender.case.device.type == "cuda" else ""


def peak_memory(case: Case, name: str) -> float:
    """Most memory of two training steps in MiB: weights, gradients, optimizer and activations.

    On a GPU what torch had allocated, elsewhere the growth of the process, which should be new.
    """
    if case.device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender = CONTENDERS[name](case)
        for _ in range(2):
            contender.step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (case, name, torch.get_num_threads()))


def _growth(case: Case, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    if name == TRANSFORMERS:
        import transformers.models.detr.modeling_detr  # noqa: F401
    before = _resident("VmRSS")
    contender = CONTENDERS[name](case)
    for _ in range(2):
        contender.step()
    return _resident("VmHWM") - before


def _resident(entry: str) -> float:
    """Of this process, in MiB: now (VmRSS) or at most (VmHWM); 0 where Linux does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    (line,) = [line for line in lines if line.startswith(entry)]
    return int(line.split()[1]) / 1024


def run_case(case: Case, names: list[str], seconds: float) -> list[dict]:
    contenders = {name: CONTENDERS[name](case) for name in names}
    check(contenders)
    steps = 1 if case.device.type == "cpu" else 5  # the host may run ahead of a GPU
    for contender in contenders.values():  # warm up, compile, capture
        contender.timed(5 if case.device.type == "cuda" else 2)
        contender.phases.clear()
    calls = {name: lambda c=c: c.timed(steps) for name, c in contenders.items()}
    figures = measure(
        calls, lambda results: None, seconds=seconds, warm_up=0, slow=math.inf, too_slow=math.inf
    )
    rows = []
    for name, contender in contenders.items():
        ms = {phase: statistics.median(t) * 1e3 for phase, t in contender.phases.items()}
        step = figures[name]["p50_us"] / steps / 1e3
        rows.append(
            {
                "model": case.model,
                "height": case.size[0],
                "width": case.size[1],
                "batch": case.batch,
                "padded": case.padded,
                "precision": "bf16 autocast" if contender.amp else "float32",
                "variant": name,
                "images_per_second": round(case.batch / step * 1e3, 2),
                "speedup_to_published": round(
                    figures[PUBLISHED]["p50_us"] / figures[name]["p50_us"], 2
                ),
                "step_ms": round(step, 2),
                "step_ms_p20": round(figures[name]["p20_us"] / steps / 1e3, 2),
                "step_ms_p80": round(figures[name]["p80_us"] / steps / 1e3, 2),
                **{
                    f"{phase}_ms": round(ms[phase], 2) if phase in ms else ""
                    for phase in PHASES
                    if phase != "data"
                },
                "host_waits": host_waits(contender),
                "calls": figures[name]["calls"],
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    first = rows[0]
    print(
        f"{first['model']}, {first['batch']} images of {first['height']} x {first['width']}"
        f"{' with padding' if first['padded'] else ''}, {first['precision']}"
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
            + f"  {row.get('peak_mb', 0):.0f} MiB"
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
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
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
            found = run_case(case, names, args.seconds)
            for row in found:
                if not args.no_memory:
                    row["peak_mb"] = round(peak_memory(case, row["variant"]), 1)
                    row["peak_mb_per_image"] = round(row["peak_mb"] / case.batch, 1)
            show(found)
            rows += [{**row, **about} for row in found]
    if args.out:
        write_csv(args.out, rows)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
