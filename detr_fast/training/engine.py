"""The training loop (paper, section 4): steps, evaluation, checkpoints, resuming."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast import __version__, evaluation, processes
from detr_fast.data import (
    Batch,
    DetectionDataset,
    DeviceDecoder,
    Prefetcher,
    Recipe,
    is_worker_lost,
)
from detr_fast.evaluation import format_figure
from detr_fast.faults import PredictionError, check_faults
from detr_fast.files import written_whole
from detr_fast.losses import SetCriterion
from detr_fast.models import DETR, MODELS
from detr_fast.precision import amp_dtype
from detr_fast.training import distributed
from detr_fast.training.averaging import WeightAverage
from detr_fast.training.checkpoint import copy_checkpoint, save_checkpoint
from detr_fast.training.config import TrainConfig
from detr_fast.training.datasets import check_same_classes
from detr_fast.training.evaluation_losses import EvaluationLosses
from detr_fast.training.graph import GraphedStep, ShapeMismatch, cuda_graph_obstacle
from detr_fast.training.initial import load_initial
from detr_fast.training.instability import MatchingInstability
from detr_fast.training.interval import LogInterval
from detr_fast.training.loader import TrainLoader, default_workers
from detr_fast.training.logs import ProgressBar, RunLog
from detr_fast.training.memory import is_out_of_memory, out_of_memory_advice
from detr_fast.training.optimizer import make_optimizer
from detr_fast.training.run_state import restore, rng_state, run_state
from detr_fast.training.schedule import make_scheduler
from detr_fast.training.signals import StopSignals
from detr_fast.training.step import TrainStep, ignore

SAVE_MINUTES = 30.0
PATIENCE = 10.0  # seconds between logs, from which on processes agree at every step on stopping
_DIVERGED = "the training diverged; try a lower learning rate"
_EARLIER = f"{_DIVERGED}. Checkpoints are from earlier steps"


class Interrupted(Exception):
    """The run was stopped by Ctrl-C or a termination signal.

    A checkpoint was written, unless the signal also ended the data workers in mid-step.
    """


class Trainer:
    """A training run.

    Args:
        config: what to train.
        train_set, val_set: data sets with their transforms; their classes must agree.
        run: the folder to write to.
        device: where to train.
        checkpoint: the state to resume from, as ``load_checkpoint`` returns it.
        quiet: show no progress bar and print nothing.
        save_minutes: minutes between checkpoints within an epoch, saved at a step that is logged;
            0: only at its end. The results do not depend on it.

    Raises:
        ValueError: data that cannot be trained on (no images, no class, or other classes in the
            validation data), or options that do not fit the data or the device.
        CheckpointError: a checkpoint of a run with other data or another number of processes.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_set: DetectionDataset,
        val_set: DetectionDataset,
        run: Path | str,
        device: torch.device | str,
        checkpoint: dict[str, Any] | None = None,
        quiet: bool = False,
        save_minutes: float = SAVE_MINUTES,
    ) -> None:
        for split, data in (("training", train_set), ("validation", val_set)):
            if not len(data):
                raise ValueError(f"the {split} data has no images")
        if not train_set.class_names:
            raise ValueError("the training data has no objects, and so no class to learn")
        check_same_classes(train_set.class_names, val_set.class_names)
        if not 0 <= save_minutes < math.inf:
            raise ValueError(f"save_minutes is {save_minutes}, expected 0 or more")
        self.config = config
        self.train_set, self.val_set = train_set, val_set
        self.run_dir = Path(run)
        self.device = device = torch.device(device)
        self.is_main = processes.rank() == 0
        self.quiet = quiet or not self.is_main
        self.save_minutes = save_minutes

        torch.manual_seed(config.seed)  # every process starts from the same weights
        self.model_args = config.model_args(len(train_set.class_names))
        self.model = self._make_model(initial=checkpoint is None)
        self.amp = amp_dtype(config.amp, device)
        self.criterion = self._make_criterion()
        self.ema = WeightAverage(self.model, config.ema) if config.ema else None
        self.optimizer = make_optimizer(
            self.model, config.lr, config.lr_backbone, config.weight_decay
        )
        self.workers = default_workers(device) if config.workers is None else config.workers
        self.loader = self._make_loader()
        self.prefetcher = Prefetcher(device, self._decoder())
        self.steps_per_epoch = self.loader.batches_per_epoch // config.accumulate
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"accumulate is {config.accumulate}, but an epoch has only "
                f"{self.loader.batches_per_epoch} batches of {config.batch_size} images"
            )
        self.total_steps = self.steps_per_epoch * config.epochs
        self.scheduler = make_scheduler(
            self.optimizer, config.schedule, self.total_steps, config.warmup_steps, config.lr_drop
        )
        self.model.set_checkpointing(config.checkpointing)
        self.watch = MatchingInstability()
        self.step = 0
        self.evaluation_due = False  # for the epoch that ended with this step
        self.best_ap = -math.inf
        self.images_seen, self.seconds = 0, 0.0
        torch.manual_seed(hash((config.seed, processes.rank())))  # dropout differs by process
        if checkpoint is not None:
            restore(self, checkpoint)
        self.parallel = distributed.parallel(self.model, device)
        self.train_step = TrainStep(
            self.parallel,
            self.criterion,
            self.optimizer,
            device,
            self.amp,
            config.clip,
            config.compile,
        )
        self.graphed = self._graphed_step() if config.cuda_graph else None
        self._stop = StopSignals(announce=self.is_main)
        self._slow = True  # on any process, as of the last log
        self._saved_at = time.monotonic()

    def _make_model(self, initial: bool) -> DETR:
        """Return the model on the device; with the weights that training starts from, or random."""
        config, weights = self.config, {}
        if config.backbone_weights is not None and initial:
            weights = {"backbone_weights": config.backbone_weights}
        model = MODELS[config.model](**self.model_args, **weights)
        if config.init_from is not None and initial:
            copied = load_initial(model, config.init_from, self.train_set.class_names)
            if not self.quiet:
                print(f"init   {copied}")
        return model.to(self.device, memory_format=torch.channels_last)

    def _make_criterion(self) -> SetCriterion:
        config = self.config
        return SetCriterion(
            len(self.train_set.class_names),
            config.matcher(),
            eos_coef=config.eos_coef,
            weight_class=config.weight_class,
            weight_bbox=config.weight_bbox,
            weight_giou=config.weight_giou,
            box_loss=config.box_loss,
        ).to(self.device)

    def _make_loader(self) -> TrainLoader:
        return TrainLoader(
            self.train_set,
            self.config.batch_size,
            self.config.seed,
            self.workers,
            processes.rank(),
            processes.world_size(),
            pin_memory=self.device.type == "cuda",
            pad_to_multiple=self.config.pad_multiple,
            encoded=self.config.decode == "cuda",
        )

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated: the averaged one, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def run(self) -> dict[str, Any]:
        """Train to the end and return the last evaluation's row.

        Raises:
            Interrupted: on Ctrl-C or SIGTERM, after saving; resuming continues exactly there.
            ValueError: an error that the criterion finds, such as predictions that are not finite,
                with the step; the last checkpoint is left as it was. Or such an error in an
                evaluation, or too little memory for it: ``last.pt`` has the training before it.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._stop)
            log = None
            if self.is_main:
                self._write_config()
                log = RunLog(self.run_dir, self.step, self.evaluation_due)
                stack.callback(log.close)
            bar = ProgressBar(self.total_steps, self.step, self.quiet)
            stack.callback(bar.close)
            try:
                return self._run(log, bar)
            except RuntimeError as error:
                if distributed.is_process_lost(error):
                    raise distributed.LostProcess(
                        "a process of this run is gone, after step "
                        f"{self.step} of {self.total_steps}"
                    ) from error
                if not is_worker_lost(error):
                    raise
                # In the middle of a step: there is no consistent state to save.
                if self._stop.requested:  # whoever ended this process did not wait for the workers
                    raise Interrupted(f"stopped at step {self.step}: its workers ended") from error
                raise ValueError(
                    f"a data worker died at step {self.step}, perhaps for lack of memory (use "
                    f"fewer --workers): {' '.join(str(error).split())}"
                ) from error

    def _write_config(self) -> None:
        """Write ``config.json``, for people and other programs; checkpoints hold it as well."""
        content = {
            "config": self.config.to_dict(),
            "class_names": list(self.train_set.class_names),
            "processes": processes.world_size(),
            "versions": {"detr_fast": __version__, "torch": torch.__version__},
        }
        with written_whole(self.run_dir / "config.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    def _run(self, log: RunLog | None, bar: ProgressBar) -> dict[str, Any]:
        row: dict[str, Any] = {}
        while self.evaluation_due or self.step < self.total_steps:
            if not self.evaluation_due:  # due if resumed between training and evaluation
                self._train_epoch(self.step // self.steps_per_epoch, log, bar)
            if self.evaluation_due:
                row = self._finish_epoch(log, bar)
                (stop,) = distributed.any_rank(self._stop.requested)
                if stop and self.step < self.total_steps:
                    raise self._interrupted()
        if not row:  # resumed after the last step, whose evaluation is in the log already
            row = self._evaluate(self.config.epochs, None, bar)
        return row

    def _train_epoch(self, epoch: int, log: RunLog | None, bar: ProgressBar) -> None:
        """Train to the epoch's end, and save it, so that no error in its evaluation can lose it.

        Raises:
            Interrupted: after saving.
        """
        config = self.config
        clock = time.perf_counter()
        done = self.step - epoch * self.steps_per_epoch  # > 0 after an interruption
        batches = self.prefetcher.batches(
            self.loader.epoch(epoch, first_batch=done * config.accumulate)
        )
        self.parallel.train()
        interval = LogInterval(*self._counters())
        for _ in range(done, self.steps_per_epoch):
            loaded = [next(batches) for _ in range(config.accumulate)]
            interval.add(self.train_on(loaded))
            self.step += 1
            ends = self.step % self.steps_per_epoch == 0
            logs = ends or self.step % config.log_every == 0
            # SIGKILL soon follows SIGTERM: stop at this step. Fast processes agree on it at a log.
            if not logs and (self._slow or processes.world_size() == 1):
                (logs,) = distributed.any_rank(self._stop.requested)
            means = interval.means() if logs else {}  # waits for the device: part of the steps
            before, clock = clock, time.perf_counter()
            self.seconds += clock - before
            bar.advance()
            if logs:
                self._log(interval, means, log, bar)
                slow = interval.step_seconds(self.seconds) * config.log_every >= PATIENCE
                interval = LogInterval(*self._counters())
                stop, save, self._slow = distributed.any_rank(
                    self._stop.requested, self._save_is_due(), slow
                )
            else:
                stop, save = False, False
            if ends or stop or save:
                last = self.step == self.total_steps
                self.evaluation_due = ends and (last or (epoch + 1) % config.eval_every == 0)
                distributed.sync_buffers(self.model, self.eval_model)
                self._save("last.pt")
                clock = time.perf_counter()  # saving does not count as training
            if stop:
                raise self._interrupted()

    def _counters(self) -> tuple[int, float, float]:
        """Images, seconds of training, and of those the ones spent waiting for data, so far."""
        return self.images_seen, self.seconds, self.prefetcher.data_seconds

    def _log(
        self,
        interval: LogInterval,
        means: dict[str, float],
        log: RunLog | None,
        bar: ProgressBar,
    ) -> None:
        """Check and report the steps of an interval. Waits for the device."""
        self._check_matching()
        self._check_finite(means)
        speed, share = interval.speed(*self._counters())
        means |= {
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "images_per_second": speed,
            "data_share": share,
        }
        if log is not None:
            log.write("train", self.step, self.step / self.steps_per_epoch, means)
        epoch = (self.step - 1) // self.steps_per_epoch
        bar.show(
            epoch=f"{epoch + 1}/{self.config.epochs}",
            loss=f"{means['loss']:.2f}",
            ce=f"{means['loss_ce']:.2f}",
            l1=f"{means['loss_bbox']:.2f}",
            giou=f"{means['loss_giou']:.2f}",
            **{"img/s": f"{speed:.{speed < 10:d}f} data {share:.0%} | step {1 - share:.0%}"},
        )

    def train_on(
        self, batches: list[Batch], mark: Callable[[str], None] = ignore
    ) -> dict[str, Tensor]:
        """Run one optimizer step on ``accumulate`` batches and what follows it; return the losses.

        Raises:
            ValueError: invalid values, or too little memory; the message names the step.
        """
        try:
            losses = self._run_step(batches, mark)
        except ValueError as error:
            raise ValueError(f"step {self.step + 1}: {_explained(error)}") from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        else:
            failed = False
        if failed:  # here the error is released, and the tensors that it held
            largest = max(batches, key=lambda batch: batch.images.numel())
            raise ValueError(
                f"step {self.step + 1}: "
                + out_of_memory_advice(self.train_step, largest, len(batches))
            )
        self.images_seen += sum(len(batch.images) for batch in batches) * processes.world_size()
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.model)
        return losses

    def _run_step(self, batches: list[Batch], mark: Callable[[str], None]) -> dict[str, Tensor]:
        if self.graphed is not None:
            try:
                return self.graphed(batches[0], mark)
            except ShapeMismatch as error:
                self.graphed = None
                if not self.quiet:
                    print(f"note   continuing without a CUDA graph: {error}")
        return self.train_step(batches, mark)

    def _graphed_step(self) -> GraphedStep | None:
        """Return the step as a CUDA graph; or None, after printing why not."""
        reason = cuda_graph_obstacle(self.config, self.device, processes.world_size())
        if reason is None:
            most = int(self.train_set.objects_per_image.max())
            return GraphedStep(self.train_step, capacity=self.config.batch_size * most)
        if not self.quiet:
            print(f"note   no CUDA graph: {reason}")
        return None

    def _decoder(self) -> DeviceDecoder | None:
        if self.config.decode == "cpu":
            return None
        recipe = self.train_set.transforms
        if self.device.type != "cuda" or not isinstance(recipe, Recipe):
            raise ValueError(
                "decode is cuda, which needs a GPU to train on, and a Recipe as training transforms"
            )
        return DeviceDecoder(recipe, self.device, self.config.pad_multiple)

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped at step {self.step} of {self.total_steps}")

    def _check_matching(self) -> None:
        """Raise errors that the GPU found in matching: replaying a CUDA graph does not check."""
        try:
            check_faults(self.device)
        except ValueError as error:
            raise ValueError(f"by step {self.step}: {_explained(error)}") from error

    def _check_finite(self, means: dict[str, float]) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(means[name]):
                raise ValueError(f"{name} is {means[name]} by step {self.step}: {_EARLIER}")

    def _finish_epoch(self, log: RunLog | None, bar: ProgressBar) -> dict[str, Any]:
        """Evaluate the epoch just trained, and save a checkpoint."""
        best = self.best_ap
        row = self._evaluate(self.step // self.steps_per_epoch, log, bar)
        self.evaluation_due = False
        if row["AP"] >= best:  # of equals the last, which has trained for longest
            self._save("best.pt")
            if self.is_main:
                copy_checkpoint(self.run_dir / "best.pt", self.run_dir / "last.pt")
        else:
            self._save("last.pt")
        return row

    def _evaluate(self, epoch: int, log: RunLog | None, bar: ProgressBar) -> dict[str, Any]:
        started = time.perf_counter()
        losses = EvaluationLosses(self.criterion)

        def observe(outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> None:
            matches = losses.add(outputs, targets)
            self.watch.add(matches.query_index[-1], targets)

        try:
            row = evaluation.evaluate(
                self.eval_model,
                self.val_set,
                self.device,
                self.config.batch_size,
                self.workers,
                self.amp,
                observe,
                progress=not self.quiet,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"evaluation of epoch {epoch}: out of memory on {self.device} with a batch size of "
                f"{self.config.batch_size}; the epoch's training is saved, and resuming the run "
                "begins with this evaluation: free some memory first"
            ) from error
        except PredictionError as error:
            raise ValueError(
                f"evaluation of epoch {epoch}: {error}: {_DIVERGED}. last.pt has these weights; a "
                "best.pt is from an earlier epoch"
            ) from error
        row |= losses.finish() | self.watch.finish()
        seconds = time.perf_counter() - started
        row |= {"seconds": round(seconds, 2), "train_seconds": round(self.seconds, 1)}
        if log is not None:
            log.write("val", self.step, epoch, row)
        figures = [f"{name} {format_figure(row[name])}" for name in ("AP", "AP50", "AP75")]
        bar.show(AP=format_figure(row["AP"]))
        bar.say(
            f"epoch {epoch:3d}/{self.config.epochs}  {'  '.join(figures)}  "
            f"(trained {self.seconds:.0f} s, evaluated in {seconds:.1f} s)"
        )
        self.best_ap = max(self.best_ap, row["AP"])
        return row

    def _save_is_due(self) -> bool:
        return 0 < 60 * self.save_minutes <= time.monotonic() - self._saved_at

    def _save(self, name: str) -> None:
        self._check_matching()
        self._saved_at = time.monotonic()
        rng = processes.gather(rng_state(self.device))
        if not self.is_main:
            return
        save_checkpoint(self.run_dir / name, run_state(self, rng))


def _explained(error: ValueError) -> str:
    """Return an error's message, and what its cause is where predictions are at fault."""
    return f"{error}: {_EARLIER}" if isinstance(error, PredictionError) else str(error)
