"""At which settings each live figure is recorded for pages without a kernel: for `Explorer.record`.

By module and name of what makes the explorer: values of its controls, or how many of them; other controls stand still.
What is not here is recorded at a few hundred settings of all its controls. Figures that train have few settings: each
is trained when the book is built. `image_quality`: of pictures that are not worth exact ones.
"""
POWERS = lambda low, high, n: [10 ** (low + (high - low) * i / (n - 1)) for i in range(n)]

GRIDS = {
    "data.affine_explorer": dict(angle=13, scale=[.6, 1, 1.5], shear=[-30, 0, 30], right=[-7, 0, 7], image_quality=60),
    "sgd.parabola_explorer": dict(lr=25, curvature=3, n_steps=[5, 20, 60]),
    "sgd.canyon_explorer": dict(lr=25, steepness=3, n_steps=[5, 60, 200]),
    "sgd.digits_explorer": dict(lr=POWERS(-3, 1.5, 19)),
    "momentum.average_explorer": dict(
        beta=[*(i / 10 for i in range(10)), .93, .95, .97, .98, .99], noise=6, corrected=None),
    "momentum.momentum_explorer": dict(
        lr=13, beta=[0, .3, .5, .7, .8, .9, .95, .99], steepness=[5, 20, 50], theory=None),
    "momentum.momentum_digits_explorer": dict(lr=POWERS(-3, .5, 8), beta=[0, .5, .9, .95, .99]),
    "rmsprop.rmsprop_explorer": dict(lr=POWERS(-3, 0, 13), alpha=[0, .5, .9, .99, .999], eps=POWERS(-8, 4, 7)),
    "adam.race_explorer": dict(landscape=None, lr=POWERS(-1.5, 1.5, 9), beta=[0, .5, .9, .99]),
    "learner.cancel_explorer": dict(exception=None, event=None),
    "callbacks.ablation_explorer": dict(lr=POWERS(-2, 1, 7), clip=None, accumulate=None),
    "learning_rate.finder_explorer": dict(end_lr=[.1, 1, 10], num_it=[50, 100], smooth=[0, .9, .98]),
    "learning_rate.one_cycle_explorer": dict(peak=[.02, .05, .14, .4, 1], pct_start=[0, .25, .6], beta=None),
    "sweeps.SweepExplorer": dict(optimizer=None, lr=[.1, 1], column=None, row=None),
    "sweeps.forest_explorer": dict(lr=POWERS(-2.5, 0, 6), n_seeds=[3, 10]),
    "batchnorm.activations_explorer": dict(lr=[.001, .003, .01, .03, .1, .3, 1, 10]),
    "batchnorm.running_explorer": dict(momentum=[.01, .02, .05, .1, .2, .3, .5, .7, 1], batch_size=[2, 8, 32, 128]),
    "transfer.head_explorer": dict(n_per_class=[1, 2, 5, 10, 30, 60], lr=POWERS(-4, 0, 5), draw=[0, 1, 2]),
    "regularization.memory_explorer": dict(noise=[0, .2, .4, .6, .8], dropout=[0, .4, .8]),
    "augmentation.batch_explorer": dict(
        augmentation=None, strength=[.4, 1], pictures_of=None, image_quality=60),
    "augmentation.mix_explorer": dict(share=11, first=4, second=4),
    "compression.compression_explorer": dict(bits=None, zeros=[0, .5, .8, .9, .94, .98], units=None),
    "scaling_out.timeline_explorer": dict(
        ranks=None, bucket_mb=[.1, 25, 1000], latency_us=[50, 1000], gb_per_s=[.125, 25]),
    "__main__.wave": dict(frequency=[i / 20 for i in range(1, 21)], height=None),  # at 0 it fails, as it should
    "__main__.count": dict(n=[10, 20, 50, 100]),
}


def grid_of(explorer):
    "What `explorer.record` takes, from the table: (grid, options)."
    maker = explorer.f.__qualname__.split(".")[0]
    name = f"{explorer.f.__module__.removeprefix('course_lib.figures.')}.{maker}"
    if name == "sgd.digits_explorer" and "beta" in explorer.controls: name = "momentum.momentum_digits_explorer"
    grid = dict(GRIDS.get(name, {}))
    options = {"quality": grid.pop("image_quality")} if "image_quality" in grid else {}
    if name not in GRIDS: options["limit"] = 400
    return grid or None, options
