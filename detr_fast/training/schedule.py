"""The learning rate schedule (paper, section 4 and appendix A.4)."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("step", "cosine")


def make_scheduler(
    optimizer: Optimizer, schedule: str, total_steps: int, warmup_steps: int, lr_drop: float
) -> LambdaLR:
    """Return a schedule of rates per step: linear warm-up, then ``"step"`` or ``"cosine"``.

    Args:
        schedule: ``"step"``: a tenfold drop; ``"cosine"``: down to zero.
        total_steps: optimizer steps of the whole run.
        warmup_steps: capped at a tenth of the run, so that short runs train too.
        lr_drop: share of the run after which the step schedule drops.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    warmup_steps = min(warmup_steps, total_steps // 10)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "cosine":
            done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return 0.1 if step >= lr_drop * total_steps else 1.0

    return LambdaLR(optimizer, factor)


def set_step(scheduler: LambdaLR, step: int) -> None:
    """Set the optimizer's rates to what the schedule gives after ``step`` steps.

    Their previous values do not matter: a resumed run may have another length than before.
    """
    scheduler.last_epoch = step
    groups = scheduler.optimizer.param_groups
    for group, rate, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = rate * factor(step)
