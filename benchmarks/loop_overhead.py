"""Time of a training loop per batch, as a multiple of one that is written by hand: ours and those of other libraries.

784-50-10, cross entropy, torch.optim.SGD, one torch thread, batches of 64 in memory, in a plain list. "Bare" and
"minimal" only train. "Full" also averages the training loss, validates with loss and accuracy at the end of the epoch,
and reports progress (ours prints a line for each epoch, since nobody watches; its bar is for notebooks); all of its
time is told per training batch. Before anything is timed, each must reach the weights, and the full ones the accuracy,
of the loops by hand.

Where a model lies in memory changes its times by several percent. So each round builds everything anew; a ratio is the
median over the rounds of the ratio of the medians in a round.
"""
import contextlib
import gc
import logging
import os
import statistics
import warnings
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.callbacks import Progress, Recorder
from course_lib.learner import Learner, accuracy

LR, BATCH_SIZE = .01, 64
sgd = partial(torch.optim.SGD, lr=LR)


# A contender is a function (model, train, valid) -> a function that trains for an epoch and, if it validates, returns
# the accuracy.
def hand(model, train, valid):
    opt = sgd(model.parameters())

    def epoch():
        for xb, yb in train:
            loss = cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()

    return epoch


def hand_full(model, train, valid):
    opt = sgd(model.parameters())

    def averages(values, sizes):
        "Of rows of tensors, each row weighed by its number of samples."
        sizes = torch.tensor(sizes, dtype=torch.float64)
        return (sizes @ torch.stack([torch.stack(row) for row in values]).double() / sizes.sum()).tolist()

    def epoch():
        losses, sizes = [], []
        model.train()
        for xb, yb in train:
            loss = cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append((loss.detach(),))
            sizes.append(len(yb))
        [train_loss] = averages(losses, sizes)
        results, sizes = [], []
        model.eval()
        with torch.no_grad():
            for xb, yb in valid:
                pred = model(xb)
                results.append((cross_entropy(pred, yb), accuracy(pred, yb)))
                sizes.append(len(yb))
        valid_loss, share = averages(results, sizes)
        print(train_loss, valid_loss, share)
        return share

    return epoch


def learner_bare(model, train, valid):
    learn = Learner(model, SimpleNamespace(train=train, valid=None), cross_entropy, torch.optim.SGD, lr=LR)
    return lambda: learn.fit(1)


def learner_full(model, train, valid):
    learn = Learner(model, SimpleNamespace(train=train, valid=valid), cross_entropy, torch.optim.SGD, lr=LR,
                    cbs=[Recorder(), Progress()], metrics=[accuracy])

    def epoch():
        learn.fit(1)
        return learn.results["accuracy"]

    return epoch


def fastai_contenders():
    from fastai.basics import DataLoaders, OptimWrapper, TrainEvalCallback
    from fastai.basics import Learner as FastaiLearner
    from fastai.basics import accuracy as fastai_accuracy
    import fastai.callback.progress  # noqa: F401  makes the bar one of the defaults
    opt_func = partial(OptimWrapper, opt=torch.optim.SGD)

    def minimal(model, train, valid):
        learn = FastaiLearner(DataLoaders(train, []), model, cross_entropy, opt_func, lr=LR, cbs=TrainEvalCallback,
                              default_cbs=False)
        return lambda: learn.fit(1)

    def full(model, train, valid):
        learn = FastaiLearner(DataLoaders(train, valid), model, cross_entropy, opt_func, lr=LR, metrics=fastai_accuracy)

        def epoch():
            learn.fit(1)
            return learn.recorder.values[-1][-1]

        return epoch

    return {"fastai_minimal": minimal, "fastai_full": full}


def lightning_contenders():
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def configure_optimizers(self): return sgd(self.model.parameters())
        def training_step(self, batch, i): return cross_entropy(self.model(batch[0]), batch[1])

    class LoggingModule(Module):
        def training_step(self, batch, i):
            loss = super().training_step(batch, i)
            self.log("loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch, i):
            pred = self.model(batch[0])
            self.log_dict({"valid_loss": cross_entropy(pred, batch[1]), "accuracy": accuracy(pred, batch[1])},
                          prog_bar=True)

    class Batches:  # Lightning takes a plain list for a list of loaders
        def __init__(self, batches): self.batches = batches
        def __len__(self): return len(self.batches)
        def __iter__(self): return iter(self.batches)

    def trainer(bar):
        return lightning.Trainer(accelerator="cpu", max_epochs=0, logger=False, enable_checkpointing=False,
                                 enable_progress_bar=bar, enable_model_summary=False, num_sanity_val_steps=0)

    def minimal(model, train, valid):
        module, train, fitter = Module(model), Batches(train), trainer(bar=False)

        def epoch():
            fitter.fit_loop.max_epochs += 1
            fitter.fit(module, train)

        return epoch

    def full(model, train, valid):
        module, train, valid, fitter = LoggingModule(model), Batches(train), Batches(valid), trainer(bar=True)

        def epoch():
            fitter.fit_loop.max_epochs += 1
            fitter.fit(module, train, valid)
            return fitter.callback_metrics["accuracy"].item()

        return epoch

    return {"lightning_minimal": minimal, "lightning_full": full}


def ignite_contenders():
    from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.handlers import ProgressBar
    from ignite.metrics import Accuracy, Loss, RunningAverage

    def bare(model, train, valid):
        opt = sgd(model.parameters())

        def step(engine, batch):
            xb, yb = batch
            loss = cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()

        trainer = Engine(step)
        return lambda: trainer.run(train, max_epochs=1)

    def supervised(model, train, valid):
        trainer = create_supervised_trainer(model, sgd(model.parameters()), cross_entropy)
        return lambda: trainer.run(train, max_epochs=1)

    def full(model, train, valid):
        trainer = create_supervised_trainer(model, sgd(model.parameters()), cross_entropy)
        evaluator = create_supervised_evaluator(model, {"accuracy": Accuracy(), "loss": Loss(cross_entropy)})
        RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
        with contextlib.suppress(ModuleNotFoundError): ProgressBar().attach(trainer, ["loss"])  # needs tqdm
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(valid))

        def epoch():
            trainer.run(train, max_epochs=1)
            return evaluator.state.metrics["accuracy"]

        return epoch

    return {"ignite_bare": bare, "ignite_supervised": supervised, "ignite_full": full}


def skorch_contenders():
    from skorch import NeuralNetClassifier
    from skorch.helper import predefined_split
    from torch.utils.data import TensorDataset

    def joined(batches): return TensorDataset(*map(torch.cat, zip(*batches)))

    def net(model, train, valid, **args):
        class Net(NeuralNetClassifier):
            "Takes its batches from the lists."
            def get_iterator(self, dataset, training=False): return train if training else valid

        return Net(model, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=LR, max_epochs=1,
                   **args).initialize()

    def minimal(model, train, valid):
        learner = net(model, train, valid, train_split=None, callbacks="disable")
        dataset = joined(train[:1])  # it wants one, to no purpose here
        return lambda: learner.partial_fit(dataset)

    def full(model, train, valid):
        learner = net(model, train, valid, train_split=predefined_split(joined(valid)), classes=range(10))
        dataset = joined(train[:1])

        def epoch():
            learner.partial_fit(dataset)
            return learner.history[-1, "valid_acc"]

        return epoch

    return {"skorch_minimal": minimal, "skorch_full": full}


def accelerate_contenders():
    from accelerate import Accelerator

    def minimal(model, train, valid):
        accelerator = Accelerator(cpu=True)
        model, opt = accelerator.prepare(model, sgd(model.parameters()))

        def epoch():
            for xb, yb in train:
                loss = cross_entropy(model(xb), yb)
                accelerator.backward(loss)
                opt.step()
                opt.zero_grad()

        return epoch

    return {"accelerate_minimal": minimal}


PEERS = {  # package -> its contenders
    "fastai": fastai_contenders, "lightning": lightning_contenders, "pytorch-ignite": ignite_contenders,
    "skorch": skorch_contenders, "accelerate": accelerate_contenders}
LABELS = {
    "hand": "by hand", "hand_full": "by hand, full", "learner_bare": "course_lib: bare",
    "learner_full": "course_lib: full (Recorder, Progress, accuracy)",
    "fastai_minimal": "fastai: minimal (TrainEvalCallback)",
    "fastai_full": "fastai: full (default callbacks, accuracy)",
    "lightning_minimal": "Lightning: minimal (all switched off)",
    "lightning_full": "Lightning: full (logged loss, accuracy, bar)",
    "ignite_bare": "Ignite: bare Engine", "ignite_supervised": "Ignite: create_supervised_trainer",
    "ignite_full": "Ignite: full (RunningAverage, bar, evaluator)",
    "skorch_minimal": "skorch: minimal (callbacks disabled)",
    "skorch_full": "skorch: full (default callbacks)",
    "accelerate_minimal": "accelerate: its model and optimizer, loop by hand"}
COMPARED = [("learner_bare", "hand", "<=1.04"), ("learner_full", "hand_full", "<=1.15"), ("learner_full", "hand", "-"),
            *((name, "hand_full" if name.endswith("_full") else "hand", "-") for name in LABELS
              if not name.startswith(("hand", "learner")))]


@contextlib.contextmanager
def quiet():
    "Nothing is printed, warned of or logged."
    logging.disable(logging.WARNING)
    with (open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink),
          warnings.catch_warnings(action="ignore")): yield


def contenders(quick):
    "name -> contender; packages that they come from; words on those that are missing."
    makes, packages, skipped = ({make.__name__: make for make in (hand, hand_full, learner_bare, learner_full)},
                                ["torch"], [])
    if quick: return makes, packages, [f"{', '.join(PEERS)}, for --quick"]
    with quiet():
        for package, make in PEERS.items():
            try: makes |= make()
            except ModuleNotFoundError as error: skipped.append(f"{package}, for there is no {error.name}")
            else: packages.append(package)
    return makes, packages, skipped


def fresh_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))


def random_batches(n):
    return [(torch.rand(BATCH_SIZE, 784), torch.randint(10, (BATCH_SIZE,))) for _ in range(n)]


def check(makes, train, valid):
    "Raises `AssertionError` for a contender that does not do, over two epochs, what the loops by hand do."
    reached, shares = {}, {}
    for name, make in makes.items():
        model = fresh_model()
        epoch = make(model, train, valid)
        for _ in range(2): shares[name] = epoch()
        reached[name] = [p.detach() for p in model.parameters()]
    for before, after in zip(fresh_model().parameters(), reached["hand"]): assert not torch.allclose(before, after)
    for name in makes:
        torch.testing.assert_close(reached[name], reached["hand"], msg=lambda m: f"{name}: {m}")
        if name.endswith("_full"):
            torch.testing.assert_close(shares[name], shares["hand_full"], rtol=1e-6, atol=0,
                                       msg=lambda m: f"{name}: {m}")


def main():
    args = arguments(__doc__)
    n_train, n_valid, n_rounds, n_epochs = (400, 50, 8, 3) if args.quick else (780, 100, 10, 4)
    torch.set_num_threads(1)
    makes, packages, skipped = contenders(args.quick)
    say_machine(*packages, threads=torch.get_num_threads())
    print(f"{n_rounds} rounds: all built anew, then a warm-up epoch and {n_epochs} that count, taking turns; {n_train} "
          "batches an epoch")
    for words in skipped: print(f"skipped: {words}")

    torch.manual_seed(0)
    train, valid = random_batches(n_train), random_batches(n_valid)
    times = {name: [] for name in makes}
    with quiet():
        check(makes, train[:100], valid[:10])
        for i in range(n_rounds):
            order = [*list(makes)[i % len(makes):], *list(makes)[:i % len(makes)]]
            gc.collect()
            seconds = take_turns({name: makes[name](fresh_model(), train, valid) for name in order}, n_epochs)
            for name, values in seconds.items(): times[name].append([1e6 * value / n_train for value in values])
    table("Training loops", {LABELS[name]: sum(times[name], []) for name in makes}, "µs a training batch")
    medians = {name: [statistics.median(values) for values in rounds] for name, rounds in times.items()}
    multiples = {(name, base): [a / b for a, b in zip(medians[name], medians[base])]
                 for name, base, _ in COMPARED if name in makes}
    table("In each round, as a multiple", {f"{name} / {base}": values for (name, base), values in multiples.items()},
          "ratio")
    print()
    for name, base, goal in COMPARED:
        if name in makes: ratio(f"{name}_over_{base}", statistics.median(multiples[name, base]), goal)


if __name__ == "__main__":
    main()
