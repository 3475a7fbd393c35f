"""``detr-fast train``: train a model, by default on generated shapes."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detr_fast import processes
from detr_fast.cli.arguments import add_device, flag
from detr_fast.cli.checkpoints import data_of_run, with_data_of_run
from detr_fast.cli.config_options import add_config_options, given_options
from detr_fast.cli.folders import new_folder
from detr_fast.cli.pictures import prediction_grid, save_picture
from detr_fast.data import DetectionDataset
from detr_fast.evaluation import format_metrics, import_cocoeval
from detr_fast.training import TrainConfig, Trainer, distributed, load_checkpoint
from detr_fast.training.datasets import open_data
from detr_fast.training.engine import SAVE_MINUTES, Interrupted
from detr_fast.training.lock import FolderLock
from detr_fast.training.logs import read_metrics
from detr_fast.visualize import plot_training
from detr_fast.wording import counted

_OF_MACHINE = ("workers", "cache_gb")  # options that may differ where a run is resumed
_DATA = ("data", "val_data")  # may be somewhere else when a run is resumed
_PATIENCE = 120.0  # seconds that --continue waits for the end of the process that it replaces

DESCRIPTION = """\
Train a model. Without options, `detr-fast train` trains the tiny model on generated shapes, on a
GPU if there is one. Options that are not given take the defaults of the model: those of the paper
for the ResNets, those of training from scratch for tiny.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "train",
        help="train a model",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that only what was given is passed on
    )
    add_config_options(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--name", default=None, help="of the run's folder; default: data and model")
    run.add_argument("--runs", type=Path, default=None, help="its parent folder; default: runs")
    run.add_argument(
        "--resume",
        type=Path,
        default=None,
        metavar="RUN",
        help="a run's folder: resume exactly where it stopped, with its options; "
        "with --epochs N, up to N epochs in total; --workers, --cache-gb and the paths in --data "
        "and --val-data may differ",
    )
    run.add_argument(
        "--continue",
        dest="continue_run",
        action="store_true",
        default=False,
        help="resume the run of that --name if it exists: for restarts by torchrun or Slurm",
    )
    run.add_argument(
        "--save-minutes",
        type=float,
        default=SAVE_MINUTES,
        metavar="MINUTES",
        help="minutes between checkpoints within an epoch; 0: only at its end; default: 30",
    )
    add_device(run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, then print the results."""
    options = given_options(args)
    device = distributed.start(args.device)
    import_cocoeval()  # if missing, fail now and not after the first epoch
    if args.continue_run:
        args.resume = _run_to_continue(args)
    if args.resume is None:
        config = TrainConfig.create(**options)
        data = open_data(config, None)
        folder = processes.broadcast(_new_run(args.runs or Path("runs"), args.name, config))
        try:
            with _locked(folder):
                _check_new(folder)
                return _train(args, config, data, folder, device, None)
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty, nothing was started: leave nothing behind
    if args.continue_run:
        with _locked(args.resume, patience=_PATIENCE):
            checkpoint = load_checkpoint(args.resume)
            config = _same_config(args.resume, checkpoint, options)
            data = open_data(config, checkpoint["class_names"])
            return _train(args, config, data, args.resume, device, checkpoint)
    _check_resume(args, options)
    with _locked(args.resume):
        checkpoint, config = _resume(args.resume, options)
        with with_data_of_run(data_of_run(config, options)):
            data = open_data(config, checkpoint["class_names"])
        return _train(args, config, data, args.resume, device, checkpoint)


@contextlib.contextmanager
def _locked(folder: Path, patience: float = 0) -> Iterator[None]:
    """Hold the lock of a run's folder; if another process does, every process raises ValueError."""
    refused = None
    with contextlib.ExitStack() as stack:
        if processes.rank() == 0:
            try:
                stack.enter_context(FolderLock(folder, patience))
            except (ValueError, OSError) as error:
                refused = str(error)
        refused = processes.broadcast(refused)
        if refused is not None:
            raise ValueError(refused)
        yield


def _train(
    args: argparse.Namespace,
    config: TrainConfig,
    data: tuple[DetectionDataset, DetectionDataset],
    folder: Path,
    device: torch.device,
    checkpoint: dict[str, Any] | None,
) -> int:
    """Train in a folder that this process may write; return the exit status."""
    train_set, val_set = data
    main = processes.rank() == 0
    if not train_set.objects_per_image.any():
        raise ValueError(f"{config.data}: the training data has no objects")
    trainer = Trainer(
        config, train_set, val_set, folder, device, checkpoint, save_minutes=args.save_minutes
    )
    if main:
        print(_summary(trainer, train_set, val_set))
    try:
        row = trainer.run()
        if main:
            _finish(trainer, val_set, row)
    except distributed.LostProcess as lost:
        raise distributed.LostProcess(f"{lost}; {_resume_hint(folder)}") from lost
    except (Interrupted, KeyboardInterrupt) as stopped:
        if main:
            how = str(stopped) if isinstance(stopped, Interrupted) else "interrupted"
            print(f"detr-fast: {how}; {_resume_hint(folder)}", file=sys.stderr)
        return 130
    return 0


def _resume_hint(folder: Path) -> str:
    """Return how to resume a run that ended early."""
    if (folder / "last.pt").exists():
        return f"resume with: detr-fast train --resume {folder}"
    return "nothing was saved yet"


def _check_resume(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Check what was given with --resume, and make it the run's folder."""
    others = [name for name in options if name not in (*_OF_MACHINE, *_DATA, "epochs")]
    others += [name for name in ("name", "runs") if getattr(args, name) is not None]
    if others:
        flags = ", ".join(map(flag, others))
        raise ValueError(f"--resume continues with the options of its run: leave out {flags}")
    if args.resume.name == "last.pt":
        args.resume = args.resume.parent
    if args.resume.is_file():
        raise ValueError(f"{args.resume} is not a run's last.pt: --resume the run's folder")
    if not (args.resume / "last.pt").exists():
        load_checkpoint(args.resume)  # says what is missing


def _resume(folder: Path, options: dict[str, Any]) -> tuple[dict[str, Any], TrainConfig]:
    """Return a run's checkpoint and configuration; ``options`` are those that may differ."""
    checkpoint = load_checkpoint(folder)
    then = TrainConfig.from_dict(checkpoint["config"])
    config = replace(then, **options)
    if "cache_gb" in options and not then.cache:
        raise ValueError(f"{folder} was started without --cache: leave out --cache-gb")
    if "epochs" in options:
        done = checkpoint["step"] / checkpoint["steps_per_epoch"]
        # Not an error: what has been trained is still to be evaluated, or is the whole run.
        ends_here = config.epochs == done and checkpoint["evaluation_due"]
        if config.epochs <= done and not ends_here and config.epochs != then.epochs:
            raise ValueError(
                f"--epochs is {config.epochs}, but {folder} has done {done:.4g}: give the "
                "total number of epochs"
            )
        if processes.rank() == 0 and config.epochs != then.epochs:
            print(
                f"note   {counted(config.epochs, 'epoch')} in all instead of {then.epochs}: "
                f"the learning rate follows the {config.schedule} schedule of {config.epochs}"
            )
    return checkpoint, config


def _run_to_continue(args: argparse.Namespace) -> Path | None:
    """Return the folder of the run that --continue resumes; None if there is none yet."""
    if args.resume is not None or args.name is None:
        raise ValueError("--continue needs --name, and excludes --resume")
    folder = _named(args.runs or Path("runs"), args.name)
    # Rank 0 looks for all processes: it is the one that writes there.
    exists = processes.broadcast((folder / "last.pt").exists())
    return folder if exists else None


def _same_config(folder: Path, checkpoint: dict[str, Any], options: dict[str, Any]) -> TrainConfig:
    """Return the run's configuration if it has the options given; workers and memory may differ.

    Options that were not given are the run's: their defaults may have changed since.
    """
    now = TrainConfig.create(**options)
    then = TrainConfig.from_dict(checkpoint["config"])
    then = replace(then, **{name: getattr(now, name) for name in _OF_MACHINE})
    asked = {*options, *(["cache"] if now.cache else [])}  # which --cache-gb turns on
    other = [
        f"{name} {getattr(then, name)}, not {getattr(now, name)}"
        for name in TrainConfig.__dataclass_fields__
        if name in asked and getattr(then, name) != getattr(now, name)
    ]
    if other:
        raise ValueError(f"{folder} was started with other options: {', '.join(other)}")
    return then


def _new_run(runs: Path, name: str | None, config: TrainConfig) -> Path:
    """Make the run's folder: ``name``, or data and model, numbered if that exists."""
    if processes.rank() != 0:
        return runs
    if name is not None:
        folder = _named(runs, name)
        _check_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    kind, _, paths = config.data.partition(":")
    source = Path(paths.rpartition(":")[2]).stem or kind
    return new_folder(runs / f"{source}-{config.model}")


def _named(runs: Path, name: str) -> Path:
    """Return the folder of that name, which must be in ``runs``."""
    folder = runs / name
    # By their names alone: a run may be a link to another disk.
    if Path(os.path.abspath(runs)) not in Path(os.path.abspath(folder)).parents:
        raise ValueError(f"--name is {name!r}, expected the name of a folder in {runs}")
    return folder


def _check_new(folder: Path) -> None:
    if (folder / "last.pt").exists():
        raise ValueError(f"{folder} exists: choose another --name, --resume it, or add --continue")
    if (folder / "best.pt").exists():
        raise ValueError(
            f"{folder} has a best.pt but no last.pt to resume from: choose another --name, and "
            f"--init-from {folder} to start from its weights"
        )


def _summary(trainer: Trainer, train_set: DetectionDataset, val_set: DetectionDataset) -> str:
    config = trainer.config
    parameters = sum(p.numel() for p in trainer.model.parameters())
    number = "bfloat16 autocast" if trainer.amp else "float32"
    started = f", resumed at step {trainer.step}" if trainer.step else ""
    together = config.accumulate * processes.world_size()
    images = min(config.batch_size * together, len(train_set))
    caches = {
        name: data.cache.describe()
        for name, data in (("train", train_set), ("val", val_set))
        if data.cache is not None and len(data.cache)
    }
    return "\n".join(
        [
            f"model  {config.model}, {parameters / 1e6:.1f} M parameters, {config.num_queries} "
            f"queries, on {trainer.device} in {number}",
            f"train  {train_set.describe()}",
            f"val    {val_set.describe()}",
            f"run    {trainer.run_dir}, {counted(config.epochs, 'epoch')} of "
            f"{counted(trainer.steps_per_epoch, 'step')} of {counted(images, 'image')}{started}",
            *(f"cache  {name}: {line}" for name, line in caches.items()),
            *(f"note   {note}" for note in _notes(trainer, train_set, val_set)),
        ]
    )


def _notes(trainer: Trainer, train_set: DetectionDataset, val_set: DetectionDataset) -> list[str]:
    """Return what of data and options may not be what was meant."""
    config, notes = trainer.config, []
    counts = train_set.objects_per_image
    crowded = int((counts > config.num_queries).sum())
    if crowded:
        notes.append(
            f"{counted(crowded, 'training image')} with more objects (up to {counts.max()}) than "
            f"there are queries ({config.num_queries}); the surplus cannot be learned: raise "
            "--num-queries"
        )
    if not val_set.objects_per_image.any():
        notes.append("the validation data has no objects: there is no AP to choose best.pt by")
    return notes


def _finish(trainer: Trainer, val_set: DetectionDataset, row: dict[str, Any]) -> None:
    folder = trainer.run_dir
    print("\n" + format_metrics(row, row["per_class"], val_set.boxes_per_class()) + "\n")
    rows = read_metrics(folder / "metrics.jsonl")
    save_picture(plot_training(rows, folder.name), folder / "curves.png")
    grid = prediction_grid(trainer.eval_model, val_set, trainer.device, trainer.amp)
    save_picture(grid, folder / "predictions.png")
    files = ("last.pt", "best.pt", "config.json", "metrics.jsonl", "tensorboard")
    files += ("curves.png", "predictions.png")
    print(f"wrote  {folder}/: " + ", ".join(name for name in files if (folder / name).exists()))
