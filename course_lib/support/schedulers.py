"""What torch's schedulers are made for, and what will happen where they are stepped at the wrong place."""
from torch.optim import lr_scheduler


def intended_steps(scheduler):
    "The steps that one of torch's schedulers is made for, or one of its cycles; None where it cannot be told."
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        last = intended_steps(scheduler._schedulers[-1])
        return last and sum(scheduler._milestones[-1:]) + last
    if isinstance(scheduler, lr_scheduler.MultiStepLR): return max(scheduler.milestones, default=None)
    if isinstance(scheduler, lr_scheduler.ExponentialLR):
        return round(1 / (1 - scheduler.gamma)) if 0 < scheduler.gamma < 1 else None
    for name in ("total_steps", "T_max", "T_0", "total_iters", "total_size", "step_size"):
        if length := getattr(scheduler, name, None): return max(1, round(length))
