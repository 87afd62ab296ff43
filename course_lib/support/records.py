"""What callbacks write down: numbers of every batch, a watched result of every epoch, a CSV file."""
import csv
import math
import weakref

import numpy as np
import torch

from .arguments import at_least_0, checked
from .optimizer import copy_hyper, read_hyper


class BatchRecords:
    """What `Recorder` inherits: its columns, and its plots. Losses stay on the device, unread, until somebody asks.

    `.losses`, `.lrs`, `.betas`: float64 arrays, one value for each batch.
    """
    fold_after = 512

    def __init__(self): self._folded, self._losses, self._hypers, self.epochs = [], [], [], []

    def keep(self, loss, group):
        "Write down a batch's loss, a tensor, and the lr and beta of a group of parameters."
        self._losses.append(loss)
        self._hypers.append((copy_hyper(group["lr"]), copy_hyper(read_hyper(group, "beta"))))
        if len(self._losses) >= self.fold_after: self._fold()

    def _fold(self):
        "Many small tensors into one; nothing is read."
        if self._losses: self._folded.append(torch.stack(self._losses))
        self._losses = []

    @property
    def losses(self):
        self._fold()
        return np.concatenate([np.empty(0), *(part.cpu().double().numpy() for part in self._folded)])

    @property
    def lrs(self): return self._column(0)

    @property
    def betas(self): return self._column(1)

    def _column(self, i):
        return np.array([math.nan if row[i] is None else float(row[i]) for row in self._hypers], dtype=np.float64)

    def plot_loss(self, smooth=.95):
        """Training loss by batch, its exponentially weighted average, and the validation loss after each epoch.

        smooth: of the average, at least 0 and below 1.
        """
        from .curves import plot_losses  # matplotlib, only when it is used
        plot_losses(self.losses, self.epochs, smooth)

    def plot_sched(self):
        "Learning rate and, where there is one, beta, by training batch."
        from .curves import plot_schedule
        plot_schedule(self.lrs, self.betas)


class CheckedWatcher:
    "What `Watcher` inherits: its arguments are checked, and a result that is not there is an error or no news."
    @checked(min_delta=at_least_0)
    def __init__(self, monitor="valid_loss", mode=None, min_delta=0.):
        if not isinstance(monitor, str):
            raise ValueError(f"{self!r}: monitor must be a result's name, such as 'valid_loss', not {monitor!r}. "
                             "Give the others by name, as in patience=3.")
        if mode is None:
            known = {"loss": "min", "error": "min", "acc": "max"}
            mode = next((mode for part, mode in known.items() if part in monitor), None)
        if mode not in ("min", "max"):
            raise ValueError(f"Is a smaller or a larger {monitor} better? Say mode='min' or mode='max'; got {mode!r}.")
        self.monitor, self.mode, self.min_delta, self.best = monitor, mode, min_delta, None

    def has_news(self, learn):
        "Is there a value of this epoch to look at? Not if it was cancelled, or the validation that gives it."
        validated = learn.dls.valid is None or "valid_loss" in learn.results
        return not learn.cancelled and (validated or self.monitor in learn.results)

    def news(self, learn):
        "This epoch's value. Raises `ValueError` if no result has the name."
        if self.monitor in learn.results: return learn.results[self.monitor]
        raise ValueError(f"{self!r} watches {self.monitor!r}, but an epoch's results are: {', '.join(learn.results)}.")


class SaysWhy:
    "What `EarlyStopping` inherits: the line that it prints."
    def say(self, learn):
        best = "never a number" if self.best is None else f"{self.best:.4g}"
        ago = f"{self.waited} epoch{'s' if self.waited > 1 else ''} ago"
        print(f"{type(self).__name__}: {self.monitor} was best {ago} ({best}); "
              f"stopped after epoch {learn.epochs_done}.")


class RemembersLearner:
    "For a callback that has to know whose it was, keeps no learner alive, and can be pickled with its learner."
    _learner = None

    def is_new(self, learn):
        "Is this another learner than the last time that we asked?"
        before, self._learner = self._learner and self._learner(), weakref.ref(learn)
        return before is not learn

    def __getstate__(self): return {**vars(self), "_learner": self._learner and self._learner()}

    def __setstate__(self, state):
        vars(self).update(state)
        if self._learner is not None: self._learner = weakref.ref(self._learner)


class CSVFile:
    """A CSV file to which rows are added at once, so that a crash loses nothing.

    append: go on with a file that is there.
    """
    def __init__(self, path, append): self.path, self.append, self.columns, self.more = path, append, [], []

    def open(self, columns):
        """Begin, or go on, with rows of these columns, and of those that callbacks have added to this object's rows before.

        Raises `FileExistsError` for a file that is there, unless append, and `ValueError` for one with other columns.
        """
        if not self.append and self.path.exists():
            raise FileExistsError(f"{self.path} is there already. Name another file, or say CSVLogger(path, "
                                  "append=True).")
        self.append, self.columns = True, columns  # the next fit goes on with this one's file
        self._check([*columns[:-1], *self.more, *columns[-1:]], self._text())

    def add(self, row):
        "row: column -> value."
        self.more = [name for name in row if name not in self.columns]
        self._check(list(row), written := self._text())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if not written: writer.writeheader()
            elif not written.endswith("\n"): file.write("\r\n")  # a crash cut the last line short
            writer.writerow(row)

    def _text(self): return self.path.read_bytes().decode() if self.path.exists() else ""

    def _check(self, columns, written):
        if not written: return
        head = next(csv.reader(written.splitlines()))
        if head != columns:
            raise ValueError(f"{self.path} has the columns {head}, and this fit gives {columns}: name another file.")
