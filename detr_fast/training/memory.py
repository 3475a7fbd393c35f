"""Advice for when memory runs out: one line, with a batch size to use instead."""

import gc

import torch

from detr_fast import processes
from detr_fast.data import Batch
from detr_fast.matching import PackedTargets
from detr_fast.training.step import TrainStep

SMALLER = "use smaller images, a smaller model or --checkpointing"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch could not allocate a tensor, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "out of memory" in text.lower()
    )


def out_of_memory_advice(step: TrainStep, batch: Batch, accumulate: int = 1) -> str:
    """Return one line for the user: the batch that was too large, and what fits instead.

    Tries forward and backward passes with half of the images, a quarter, and so on. Gradients are
    discarded and no weight is changed, but trained batch norm has counted the images: do not
    continue training. Call it once the exception, which holds tensors, is released.

    With several processes it tries nothing, and suggests half of the images: the others wait for
    this one in the middle of their step, and would take a trial's gradients for those of its batch.
    """
    images, mask, targets = batch
    if isinstance(targets, PackedTargets):
        targets = targets.unpack()
    size = len(images)
    several = processes.world_size() > 1
    line = (
        f"out of memory on {step.device} with a batch size of {size}"
        f"{' per process' if several else ''} at {images.shape[2]} x {images.shape[3]} pixels"
    )
    fits = size // 2
    if several:
        return f"{line}; try {_with(fits, size * accumulate)}" if fits else f"{line}; {SMALLER}"
    while fits:
        _release(step)
        part = (images[:fits], None if mask is None else mask[:fits], targets[:fits])
        try:
            step.gradients(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            _release(step)
            return f"{line}; {fits} fits: {_with(fits, size * accumulate)}"
        fits //= 2
    _release(step)
    return f"{line}; not even one image fits: {SMALLER}"


def _with(fewer: int, images: int) -> str:
    times = -(-images // fewer)
    return (
        f"--batch-size {fewer}, with --accumulate {times} for as many images per step, or "
        "--checkpointing"
    )


def _release(step: TrainStep) -> None:
    step.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if step.device.type == "cuda":
        torch.cuda.empty_cache()
