"""The loop of `Learner`: epochs, passes over loaders, and what is done with a batch. Each part of it runs as a stage."""
from types import SimpleNamespace

from .callbacks import Stage, in_order
from .checks import as_list
from .learner import LOOP, LearnerBase, backward
from .optimizer import drop_grads


def stages_of(cancel):
    "The stages of the loop, by name; `cancel`: the class whose subclasses say what they skip."
    by_stage = {each.skips: each for each in cancel.__subclasses__()}
    plain = {name: Stage(name, by_stage[name]) for name in ("fit", "epoch", "train", "validate", "step")}
    return SimpleNamespace(**plain, backward=Stage("backward"), valid_batch=Stage("batch", by_stage["batch"]),
                           batch=Stage("batch", by_stage["batch"], by_stage["step"]))  # a step may be cancelled early


class Loop(LearnerBase):
    "The loop in stages. A subclass says `events`, `cancel`, and in `_stage` what an exception skips."

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "cancel" not in vars(cls): return
        cls.stages = stages_of(cls.cancel)
        cls.stages_in_batch = cls.stages.backward, cls.stages.step
        cls.batch_stages = cls.stages.batch, cls.stages.valid_batch

    def _do(self, stage, work):
        "Run a stage. What `_stage` returns and does not name this stage is raised, for the stages outside."
        if stage in self._unheard: return work()  # no callback listens inside
        problem = self._stage(stage, work)
        if problem is None or getattr(problem, "skips", None) == stage.name: return
        try: raise problem
        finally: del problem  # or it would keep this frame alive, and everything in it

    # a batch

    def _batch(self):
        self.pred = self.model(self.xb)
        self._call("after_pred")
        self.loss = self.loss_func(self.pred, self.yb)
        self._call("after_loss")
        if self.training:
            self._do(self.stages.backward, self._backward)
            self.step()
        self.cancelled = None

    def _backward(self):
        self.has_grad = True  # so `_count` drops the gradients if the batch is cancelled from here on
        backward(self.loss)

    def step(self):
        "The optimizer's step, with its events."
        self._do(self.stages.step, self._step)

    def _step(self):
        self.opt.step()
        drop_grads(self.opt)

    # a pass over a loader: a training or a validation

    def _pass(self, stage, dl):
        with self._pass_over(dl, training=stage is self.stages.train): self._do(stage, self._batches)

    def _batches(self):
        stage = self.stages.batch if self.training else self.stages.valid_batch
        with self._averaging():
            for self.iter, batch in enumerate(self.dl):
                self.xb, self.yb = batch if self._on_device else self._prepare(batch)
                self.pred, self.loss, self.cancelled = None, None, True  # until it is through
                try: self._do(stage, self._batch)
                finally: self._count()

    def validate(self, dl=None):
        """Average loss and metrics over `dl`, by default the validation set: name -> number.

        Calls the events of a validation, not before_fit; cancelled: the averages up to there.
        """
        fitting = self.fit_cbs is not None
        with self._validating(dl) as dl, self._callbacks(self.fit_cbs if fitting else self.cbs):
            try: self._pass(self.stages.validate, dl)
            except self.cancel as cancel:
                if fitting or cancel.skips not in ("epoch", "fit"): raise  # it is the fit's, or an error
            return self.averages.results()

    # epochs

    def _epochs(self):
        for self.epoch in range(self.n_epoch): self._do(self.stages.epoch, self._epoch)

    def _epoch(self):
        self._pass(self.stages.train, self.dls.train)
        if self.dls.valid is not None: self._pass(self.stages.validate, self.dls.valid)
        self.epochs_done += 1

    def show_loop(self, cbs=()):
        "Print the loop with the callbacks that act at each of its places."
        cbs = in_order([*self.cbs, *as_list("cbs", cbs)])
        for line in LOOP.splitlines():
            acting = ", ".join(repr(cb) for cb in cbs if hasattr(cb, line.strip()))
            print(f"{line:<36} {acting}".rstrip())
