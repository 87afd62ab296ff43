"""What acts between gradient and step: limits, and the books of gradients that wait, whatever is cancelled on the way."""
from .arguments import above_0, checked
from .tensors import batch_size


def parameters_with_grad(opt): return [p for group in opt.param_groups for p in group["params"] if p.grad is not None]


class Limits:
    "What `GradientClip` inherits: one of two limits, checked. `.norm`: the last norm before clipping, a tensor, None before it."
    @checked(max_norm=above_0, max_value=above_0)
    def __init__(self, max_norm=None, max_value=None):
        if (max_norm is None) == (max_value is None):
            raise ValueError("GradientClip needs either max_norm or max_value, above 0; "
                             f"got {max_norm} and {max_value}.")
        self.max_norm, self.max_value, self.norm = max_norm, max_value, None


class WaitingBatches:
    """What `GradientAccumulation` inherits: it counts what waits, puts back the loss that it multiplied, and steps what is
    left at the end of an epoch.

    `.n_waiting`, `.n_samples`: batches and samples whose gradients wait; `.mean`: the batch's loss as others know it, None
    before backward; `.divided`: the waiting gradient is a mean now, and no longer a sum.
    """
    def before_train(self, learn): self.n_waiting, self.n_samples, self.divided, self.at_the_end = 0, 0, False, False

    def before_batch(self, learn): self.mean = None

    def after_backward(self, learn):
        if self.mean is None: return  # somebody cancelled before it was our turn
        learn.loss = self.mean  # what recorders shall see
        if learn.cancelled: return
        self.n_waiting, self.n_samples = self.n_waiting + 1, self.n_samples + batch_size(learn.yb)

    def is_due(self, learn):
        "Is it time for a step? After n_batches, and at the end of an epoch."
        return self.n_waiting >= self.n_batches or self.at_the_end or learn.iter + 1 == learn.n_iter

    def after_cancel_step(self, learn):
        if self.divided:  # somebody else cancels it: a sum again, that goes on waiting
            for p in parameters_with_grad(learn.opt): p.grad.mul_(self.n_samples)
        self.divided = False

    def after_step(self, learn):
        if self.divided: self.n_waiting = self.n_samples = 0
        self.divided = False

    def after_batch(self, learn):
        if learn.cancelled and learn.has_grad: self.n_waiting = self.n_samples = 0  # the loop drops all gradients

    def after_train(self, learn):
        "If the last batch was cancelled, or never came, some still wait."
        cancelled, self.at_the_end = learn.cancelled, True
        if self.n_waiting and (cancelled is None or getattr(cancelled, "skips", None) == "train"):
            try: learn.step()
            finally: learn.cancelled = cancelled
        self.before_train(learn)
