"""What a run reports: a progress bar, metrics as JSON lines, TensorBoard events."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from detr_fast.evaluation import METRICS
from detr_fast.files import written_whole
from detr_fast.wording import counted

# What a row of each kind has at least.
_NUMBERS = {
    "train": ("epoch", "loss"),
    "val": ("epoch", "seconds", "train_seconds", *METRICS),
}


def read_rows(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON lines, if it exists, without a line cut off by a crash."""
    for line in _lines(path):
        if (row := _parsed(line)) is not None:
            yield row


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file, if it exists.

    Lines that a person has damaged are left out, and a warning says so; a last line that a crash
    has cut off is left out without one.
    """
    lines = _lines(path)
    rows = [_metrics_row(line) for line in lines]
    damaged = [
        number
        for number, (line, row) in enumerate(zip(lines, rows, strict=True), 1)
        if row is None and line.strip()
    ]
    if damaged:
        warnings.warn(
            f"{path}: {counted(len(damaged), 'line is no row', 'lines are no rows')} of metrics "
            f"and left out, the first of them line {damaged[0]}",
            stacklevel=2,
        )
    return [row for row in rows if row is not None]


def _lines(path: Path) -> list[str]:
    """Return a file's lines, without a last one that a crash has cut off."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.splitlines()
    if lines and not text.endswith("\n") and _parsed(lines[-1]) is None:
        lines.pop()
    return lines


def _parsed(line: str) -> Any:
    """Return the value of a line of JSON; None if it is not one."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _metrics_row(line: str) -> dict[str, Any] | None:
    """Return what a line of a metrics file says; None if it is not a row of one."""
    row = _parsed(line)
    is_row = (
        isinstance(row, dict)
        and row.get("kind") in ("train", "val")
        and isinstance(row.get("step"), int)
        and all(isinstance(row.get(name), (int, float)) for name in _NUMBERS[row["kind"]])
        and (row["kind"] == "train" or isinstance(row.get("per_class"), dict))
    )
    return row if is_row else None


class RunLog:
    """The writer of a run's ``metrics.jsonl`` and TensorBoard events.

    Every row has ``step`` (optimizer steps done), ``epoch`` and ``kind``, ``"train"`` or ``"val"``.

    Args:
        run: the run's folder.
        step: steps already done. Rows beyond it, left by a run that was killed after its last
            checkpoint, are removed, since the resumed run writes them again.
        evaluation_due: whether this step's evaluation is still to come; if so, its row is removed.
    """

    def __init__(self, run: Path, step: int = 0, evaluation_due: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.path = run / "metrics.jsonl"
        kept = [
            line
            for line in _lines(self.path)
            if (row := _metrics_row(line)) is None  # somebody else's: not ours to remove
            or row["step"] < step
            or (row["step"] == step and not (evaluation_due and row["kind"] == "val"))
        ]
        with written_whole(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, epoch: float, values: dict[str, Any]) -> None:
        """Add a row; numbers in ``values`` and in its dicts also go to TensorBoard."""
        row = {"kind": kind, "step": step, "epoch": round(epoch, 4), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            for part, number in value.items() if isinstance(value, dict) else (("", value),):
                if isinstance(number, (int, float)):
                    tag = f"{kind}/{name}/{part}" if part else f"{kind}/{name}"
                    self._board.add_scalar(tag, number, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class ProgressBar:
    """One bar for the whole run; if the output is not a terminal, one line per epoch instead.

    A narrow terminal cuts the end off, so what matters most comes first.
    """

    ORDER = ("epoch", "loss", "img/s", "AP", "ce", "l1", "giou")

    def __init__(self, total_steps: int, step: int, quiet: bool) -> None:
        self.quiet = quiet
        self._bar = tqdm(
            total=total_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            disable=True if quiet else None,  # None: disabled where there is no terminal
            bar_format="|{bar:8}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )
        self._shown: dict[str, str] = {}

    def advance(self) -> None:
        self._bar.update()

    def show(self, **values: str) -> None:
        """Set some of the values beside the bar, those of ``ORDER``; the others stay."""
        self._shown |= values
        self._bar.set_postfix_str(
            " ".join(f"{name} {self._shown[name]}" for name in self.ORDER if name in self._shown),
            refresh=False,
        )

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            tqdm.write(line)

    def close(self) -> None:
        self._bar.close()
