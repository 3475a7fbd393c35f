"""A whole training step of DETR beside the published formula's and transformers'.

python -m benchmarks.bench_train_step --threads 2 --allocators kept default --seconds 60 \\
    --out benchmarks/results/train_step_cpu.csv

The rows are written after each case; on a GPU the waits come last, since a profiler may stay
attached.
"""

import argparse
import gc
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.failures import Failures
from benchmarks.gpu_names import PUBLISHED, TRANSFORMERS
from benchmarks.gpu_profile import waits
from benchmarks.harness import environment_info, measure, write_csv
from benchmarks.step_contenders import CONTENDERS, IMPOSSIBLE, Case, Contender
from benchmarks.step_processes import DEFAULT, KEPT, ProcessContender
from detr_fast.precision import amp_dtype
from detr_fast.training.clock import STEP_PHASES

Entrant = tuple[str, str]  # a contender's name, and its allocator on a CPU


class ReadyContender:
    """A contender that is ready to be timed: compiled, captured, warmed up.

    On a GPU all are in this process, elsewhere each is in one of its own. ``loss`` is what the
    weights that all begin with give; ``peak_mb`` the most memory so far, in MiB: on a GPU what
    torch allocated for this contender, while the others had what they keep.
    """

    def __init__(self, case: Case, name: str, allocator: str) -> None:
        self.contender: Contender | ProcessContender
        if case.device.type != "cuda":
            self.contender = ProcessContender(case, name, allocator)
            try:
                self._warm_up(2)
            except BaseException:
                self.contender.close()
                raise
            return
        _load_libraries(case)
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.contender = CONTENDERS[name](case)
        self._warm_up(5)  # a CUDA graph is captured in the fourth
        self._peak_mb = (torch.cuda.max_memory_allocated() - before) / 2**20

    def _warm_up(self, steps: int) -> None:
        self.loss = self.contender.total()
        self.contender.timed(steps)

    @property
    def peak_mb(self) -> float:
        if isinstance(self.contender, ProcessContender):
            return self.contender.peak_mb()
        return self._peak_mb

    def close(self) -> None:
        if isinstance(self.contender, ProcessContender):
            self.contender.close()


def _load_libraries(case: Case) -> None:
    """What they keep of a GPU's memory would else count as the first contender's."""
    layer = torch.nn.Linear(16, 16, device=case.device)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            layer(torch.ones(16, 16, device=case.device)).sum().backward()


def wrong_losses(losses: Mapping[Entrant, float], half: bool) -> dict[Entrant, str]:
    """Whose loss is another than the published formula's, or than the first where that failed."""
    if not losses:
        return {}
    reference = next((entrant for entrant in losses if entrant[0] == PUBLISHED), next(iter(losses)))
    return {
        entrant: f"has loss {loss}, {reference[0]} {losses[reference]}"
        for entrant, loss in losses.items()
        if not math.isclose(loss, losses[reference], rel_tol=0.02 if half else 1e-4)
    }


def run_case(
    case: Case,
    names: Sequence[str],
    allocators: Sequence[str],
    seconds: float,
    failures: Failures,
) -> tuple[list[dict], dict[str, Contender]]:
    """Times all contenders in turn.

    Returns:
        A row for each contender and allocator that raised nothing, and on a GPU the contenders by
        name, to count their waits when everything is timed; ``host_waits`` is empty.
    """
    on_gpu = case.device.type == "cuda"
    half = amp_dtype(case.amp, case.device) is not None
    running: dict[Entrant, ReadyContender] = {}
    try:
        for allocator, name in itertools.product([""] if on_gpu else allocators, names):
            try:
                running[name, allocator] = ReadyContender(case, name, allocator)
            except Exception as error:
                failures.add(f"{title(case)}, {name}", error)
        losses = {entrant: starter.loss for entrant, starter in running.items()}
        for entrant, what in wrong_losses(losses, half).items():
            failures.add(f"{title(case)}, {entrant[0]}", AssertionError(what))
            running.pop(entrant).close()
        rows = _timed_rows(case, running, seconds, failures)
    finally:
        for starter in running.values():
            starter.close()
    if not on_gpu:
        return rows, {}
    return rows, {name: starter.contender for (name, _), starter in running.items()}


def _timed_rows(
    case: Case, running: dict[Entrant, ReadyContender], seconds: float, failures: Failures
) -> list[dict]:
    on_gpu = case.device.type == "cuda"
    half = amp_dtype(case.amp, case.device) is not None
    steps = 5 if on_gpu else 1  # the host may run ahead of a GPU
    phases: dict[Entrant, list[dict[str, float]]] = {entrant: [] for entrant in running}
    broken: set[Entrant] = set()

    def call(entrant: Entrant) -> None:
        if entrant not in broken:
            try:
                phases[entrant].append(running[entrant].contender.timed(steps))
            except Exception as error:
                failures.add(f"{title(case)}, {entrant[0]}", error)
                broken.add(entrant)

    figures = measure(
        {entrant: lambda entrant=entrant: call(entrant) for entrant in running},
        lambda results: None,
        seconds=seconds,
        warm_up=0,
        slow=math.inf,
        too_slow=math.inf,
    )
    step_ms = {
        entrant: {q: figure[f"{q}_us"] / steps / 1e3 for q in ("p20", "p50", "p80")}
        for entrant, figure in figures.items()
        if entrant not in broken
    }
    rows = []
    for (name, allocator), ms in step_ms.items():
        taken = phases[name, allocator]
        starter = running[name, allocator]
        published = step_ms.get((PUBLISHED, allocator))
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
                "images_per_second": round(case.batch / ms["p50"] * 1e3, 2),
                "speedup_to_published": round(published["p50"] / ms["p50"], 2) if published else "",
                "step_ms": round(ms["p50"], 2),
                "step_ms_p20": round(ms["p20"], 2),
                "step_ms_p80": round(ms["p80"], 2),
                **{
                    f"{phase}_ms": round(statistics.median(t[phase] for t in taken) * 1e3, 2)
                    if phase in taken[0]
                    else ""
                    for phase in STEP_PHASES
                },
                "host_waits": "",
                "page_faults": "" if on_gpu else round(starter.contender.page_faults()),
                "calls": figures[name, allocator]["calls"],
                "peak_mb": round(starter.peak_mb, 1),
                "peak_mb_per_image": round(starter.peak_mb / case.batch, 1),
            }
        )
    return rows


def title(case: Case) -> str:
    """By which a failure is reported."""
    size = "x".join(map(str, case.size))
    padded = ", padded" if case.padded else ""
    return f"{case.model}, {case.batch} images of {size}{padded}, {case.amp}"


def show(rows: list[dict]) -> None:
    first = rows[0]
    print(
        f"{first['model']}, {first['batch']} images of {first['height']} x {first['width']}"
        f"{' with padding' if first['padded'] else ''}, {first['precision']}"
        + (f", freed memory {first['allocator']}" if first["allocator"] else "")
    )
    names = (*STEP_PHASES, "step")
    print(f"  {'ms per step':22}" + "".join(f"{name:>10}" for name in names) + "   img/s")
    for row in rows:
        times = [row[f"{name}_ms"] for name in names]
        speedup = f"{row['speedup_to_published']:.2f}x" if row["speedup_to_published"] else "-"
        print(
            f"  {row['variant']:22}"
            + "".join(f"{time:10.1f}" if time != "" else f"{'-':>10}" for time in times)
            + f"{row['images_per_second']:8.2f}  {speedup}  {row['peak_mb']:.0f} MiB"
        )


def parser() -> argparse.ArgumentParser:
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
    return parser


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    names = [name for name in CONTENDERS if name not in IMPOSSIBLE[device.type]]
    if args.only is not None:
        names = list(dict.fromkeys([PUBLISHED, *args.only]))

    about = environment_info(args.seed)
    failures = Failures()
    rows: list[dict] = []
    to_profile: list[tuple[dict, Contender]] = []
    for padded, amp in itertools.product((False, True) if args.padded else (False,), args.amp):
        case = Case(args.model, tuple(args.size), args.batch, amp, padded, args.seed, device)
        try:
            found, contenders = run_case(case, names, args.allocators, args.seconds, failures)
        except Exception as error:
            failures.add(title(case), error)
            continue
        for allocator in dict.fromkeys(row["allocator"] for row in found):
            show([row for row in found if row["allocator"] == allocator])
        found = [{**row, **about} for row in found]
        to_profile += [(row, contenders[row["variant"]]) for row in found if contenders]
        rows += found
        write_csv(args.out, rows)
    # Ours first: the time may end.
    to_profile.sort(key=lambda entry: entry[0]["variant"] in (PUBLISHED, TRANSFORMERS))
    for row, contender in to_profile:
        try:
            row["host_waits"] = waits(contender.step)
        except Exception as error:
            failures.add(f"waits of {row['variant']}, {row['precision']}", error)
        print(f"{row['variant']}, {row['precision']}: waits {row['host_waits']}", flush=True)
        write_csv(args.out, rows)
    print(f"{len(rows)} rows", end=", ")
    failures.stop()


if __name__ == "__main__":
    main()
