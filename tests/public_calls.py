"""A small call of each public operation, whose result no global setting may change.

Each call is a function without arguments that returns tensors, arrays, numbers or containers of
them. What the calls take is made when this module is imported.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flashpoint import diffusion as fd
from flashpoint import kernels as fk
from flashpoint.diffusion import plots

SCHEDULE = fd.Schedule(20, beta_start=0.01, beta_end=0.4)
SINES = fd.Schedule(12, "cosine", time_feature="sinusoidal")
POINTS = fd.states_points(80)
MOONS = fd.dataset("moons")
RECIPE = fd.Recipe(steps=6, hidden_layers=(8, 8), batch_size=32, lr=1e-2)
CONDITIONAL_RECIPE = replace(RECIPE, p_uncond=0.2, class_embedding="sinusoidal", clip_norm=1.0)
CLASSIC_RECIPE = fd.ClassicRecipe(epochs=1, hidden_layers=(8,), batch_size=400)


def task(recipe, schedule=SCHEDULE, **options):
    return fd.Task(POINTS, schedule, recipe, **options)


def trained(recipe, schedule=SCHEDULE, **options):
    return fd.train_many([task(recipe, schedule, **options)], device="cpu")[0]


class OwnNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)

    def forward(self, x, t):
        h = self.first(torch.cat((x, t[:, None] / 20), dim=1))
        return self.last(torch.dropout(h, 0.2, self.training).tanh())


OWN = OwnNetwork()
OWN_WEIGHTS = copy.deepcopy(OWN.state_dict())
DENOISER = trained(RECIPE)
CONDITIONAL = trained(CONDITIONAL_RECIPE)
RELU = trained(replace(RECIPE, activation="relu", linear_input=True))
CLASSIFIER = trained(RECIPE, classify=True)
SINE_DENOISER = trained(RECIPE, SINES)
MIXTURE = fd.GaussianMixture(torch.ones(3) / 3, torch.randn(3, 2), torch.eye(2).repeat(3, 1, 1))
SAMPLES = torch.randn(40, 2)
OTHERS = 0.9 * torch.randn(40, 2) + 0.1
WEIGHTS, CLASSES = torch.tensor([0.2, 0.7]), torch.arange(40) % 3
TIMES, STRIDE = torch.arange(40) % 20, torch.arange(19, -1, -2)
FOLDER = Path(tempfile.mkdtemp())
fd.export_model(RELU, SCHEDULE, "safetensors", FOLDER / "relu.safetensors")

# Of the kernels, which run on a GPU where there is one.
MODELS, ROWS = 2, 5
with torch.device("cuda" if torch.cuda.is_available() else "cpu") as DEVICE:
    SHAPE = fk.MLPShape((3, 16, 16, 2))
    FLAT = torch.randn(MODELS, SHAPE.num_parameters) / 4
    X, EPS = torch.randn(MODELS, ROWS, 2), torch.randn(MODELS, ROWS, 2)
    TABLE = torch.randn(MODELS, 4, 4) / 2
    FEATURES = torch.randn(MODELS, 4, 1)
    ALPHA_BAR = torch.linspace(0.9, 0.1, 9)
    FORWARD_TABLE = fk.eps_table(ALPHA_BAR)
    T = torch.arange(MODELS * ROWS).reshape(MODELS, ROWS) % 9
    LABELS = torch.arange(MODELS * ROWS).reshape(MODELS, ROWS) % 3
    JUDGE = fk.MLPShape((3, 8, 3))
    GUIDE = fk.Guide(fk.Network(torch.randn(MODELS, JUDGE.num_parameters), JUDGE), LABELS)
    CONDITION_SHAPE = fk.MLPShape((6, 16, 2))
    CONDITION = fk.Condition(torch.randn(MODELS, 4, 3), LABELS, True)
    CONDITION_FLAT = torch.randn(MODELS, CONDITION_SHAPE.num_parameters) / 4
    SEEDS = torch.tensor([1, 2])


def data_of(kind):
    """Returns data of two models; the kind is that of the network."""
    data = fk.TrainingData(
        points=torch.randn(MODELS, 12, 2),
        forward_table=FORWARD_TABLE.repeat(MODELS, 1, 1),
        time_features=torch.linspace(-1, 1, 9).repeat(MODELS, 1)[..., None],
        labels=None if kind == "denoiser" else torch.arange(12).repeat(MODELS, 1) % 3,
        n_points=torch.tensor([12, 9]),
        t_table=torch.arange(9).repeat(MODELS, 1),
    )
    if kind != "conditional":
        return data
    table = torch.randn(MODELS, 4, 3)
    return data._replace(class_features=table, p_uncond=torch.full((MODELS,), 0.3))


with DEVICE:
    DATA = {
        "denoiser": (SHAPE, FLAT, data_of("denoiser")),
        "classifier": (JUDGE, GUIDE.classifier.parameters, data_of("classifier")),
        "conditional": (CONDITION_SHAPE, CONDITION_FLAT, data_of("conditional")),
    }


# Operations of the kernels.


def eps_table():
    return fk.eps_table(ALPHA_BAR)


def q_sample(backend):
    return fk.q_sample(X, FORWARD_TABLE, T, EPS, backend=backend)


def q_sample_batch(backend):
    return fk.q_sample_batch(X, FORWARD_TABLE, 7, seed=3, step=2, backend=backend)


def reverse_step(backend):
    return fk.reverse_step(X, EPS, TABLE[:, 0], grad_log_p=EPS, seed=1, step=3, backend=backend)


def draw_prior(backend):
    return fk.draw_prior(6, 3, seed=5, device=DEVICE, backend=backend)


def chain(backend):
    return fk.sample_chain(
        fk.Network(FLAT, SHAPE), X, TABLE, FEATURES, seed=1, keep_every=2, backend=backend
    )


def guided_chain(backend):
    return fk.sample_chain(
        fk.Network(FLAT, SHAPE), X, TABLE, FEATURES, seed=1, guide=GUIDE, backend=backend
    )


def conditional_chain(backend):
    network = fk.Network(CONDITION_FLAT, CONDITION_SHAPE)
    return fk.sample_chain(
        network, X, TABLE, FEATURES, seed=1, condition=CONDITION, backend=backend
    )


def train_step(kind, backend):
    shape, flat, data = DATA[kind]
    return fk.train_step(flat, shape, data, batch_size=9, seed=4, step=1, backend=backend)


def update(backend):
    parameters = fk.adamw_state(FLAT).ema  # a copy
    _, _, data = DATA["denoiser"]
    workspace = fk.workspace_of(parameters, SHAPE, data, 9, backend=backend)
    state = fk.adamw_state(parameters)
    for step in (0, 1):
        sums = fk.training_sums(
            parameters, SHAPE, data, workspace, batch_size=9, seed=SEEDS, step=step
        )
        reduced = fk.reduce_grad(sums, backend=backend)
        fk.adamw_(
            parameters, reduced.sums, state, lr=0.01, step=step + 1, squares=reduced.squares,
            clip_norm=1.0, shadow=workspace.shadow, backend=backend,
        )  # fmt: skip
    return parameters, tuple(state), reduced


def shadow(precision):
    return fk.shadow_of(FLAT, SHAPE, precision).packed


# Operations of diffusion.


def schedules():
    found = []
    for name in ("linear", "cosine", "scaled_linear", "sigmoid", "sech"):
        for feature in ("linspace", "centered", "sinusoidal"):
            s = fd.Schedule(9, name, time_feature=feature)
            found.append((s.beta, s.alpha, s.alpha_bar, s.time_features, s.inputs(SAMPLES, 3)))
    return found


def tables():
    return (
        fd.class_table(4), fd.class_table(4, "sinusoidal"),
        fd.sinusoidal_embedding(TIMES, 8), fd.reverse_table(SCHEDULE, STRIDE),
        fd.reverse_table(SCHEDULE, STRIDE, method="ddim", eta=0.5, scale=2.0),
    )  # fmt: skip


def points():
    drawn = (POINTS.only(1), POINTS.fresh(200, 3), fd.states_points(17), MOONS.fresh(9, 1))
    sets = (*drawn, *POINTS.split(0.25, seed=1))
    return [(each.data, each.labels, each.digest) for each in sets]


def named_data():
    return [fd.dataset(name).data[:20] for name in fd.DATASETS]


def own_data():
    table, array = FOLDER / "own.csv", FOLDER / "own.npy"
    np.savetxt(table, SAMPLES.numpy(), delimiter=",", header="x,y", comments="")
    np.save(array, SAMPLES.numpy())
    return [fd.load_points(path).data for path in (table, array)]


def training(recipe, classify=False):
    trainer = fd.Trainer(POINTS, SCHEDULE, recipe, classify=classify, device="cpu")
    trainer.run(3)
    state = trainer.state_dict()
    other = fd.Trainer(POINTS, SCHEDULE, recipe, classify=classify, device="cpu")
    other.load_state_dict(state)
    other.run(100)
    tuned = fd.Trainer(
        POINTS, SCHEDULE, recipe, classify=classify, device="cpu", initial=other.model()
    )
    networks = (other.model(), other.module, tuned.model())
    parameters = [dict(network.named_parameters()) for network in networks]
    return state, other.losses, other.validation_loss(POINTS), parameters


def logged_training():
    path = FOLDER / "losses.csv"
    logs = [fd.CSVLog(path, overwrite=True), fd.TensorBoardLog(FOLDER / "curves", overwrite=True)]
    fd.Trainer(POINTS, SCHEDULE, RECIPE, device="cpu").run(100, callbacks=logs)
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]  # all but the time


def own_network():
    OWN.load_state_dict(OWN_WEIGHTS)  # it trains in place
    trainer = fd.Trainer(POINTS, SCHEDULE, RECIPE, model=OWN, device="cpu")
    trainer.run(3)
    state, model = trainer.state_dict(), trainer.model()
    return state, trainer.losses, dict(model.named_parameters()), sample(model, num_steps=4)


def train_many():
    tasks = [task(RECIPE, seed=seed) for seed in (0, 1)] + [task(CONDITIONAL_RECIPE)]
    return [dict(model.named_parameters()) for model in fd.train_many(tasks, device="cpu")]


def sweep():
    values = {
        "steps": 4, "hidden": "8x2", "batch_size": 32, "timesteps": 12, "schedule": "cosine",
        "prediction": ["eps", "v"], "method": "ddim", "sampling_steps": 3,
    }  # fmt: skip
    table = fd.sweep(MOONS, values, samples=40, real_draws=2, device="cpu", quiet=True)
    return [{name: one.value for name, one in model.metrics.items()} for model in table]


def sample(model=DENOISER, schedule=SCHEDULE, **options):
    return tuple(fd.sample(model, schedule, 7, device="cpu", keep_every=2, **options))


def sample_from_noise():
    return sample(x_T=SAMPLES[:7], method="ddim")


def sample_many():
    configs = [fd.SampleConfig(DENOISER, SCHEDULE, seed=s, num_steps=5 + s) for s in (1, 2)]
    return [tuple(each) for each in fd.sample_many(configs, 6, device="cpu")]


def sample_with_reward():
    return tuple(
        fd.sample_with_reward(
            DENOISER, SCHEDULE, 4, lambda x: -x.square().sum(dim=1), candidates=5,
            temperature=0.1, posterior_draws=4, num_steps=5, device="cpu",
        )
    )  # fmt: skip


def latents():
    options = {"num_steps": 6, "device": "cpu"}
    return (
        fd.invert(DENOISER, SCHEDULE, SAMPLES, **options),
        fd.invert(CONDITIONAL, SCHEDULE, SAMPLES, label=1, **options),
        fd.interpolate(DENOISER, SCHEDULE, SAMPLES[:3], OTHERS[:3], count=3, **options),
        fd.slerp(SAMPLES, OTHERS, WEIGHTS),
    )


def classification():
    classifier = fd.DiffusionClassifier(CONDITIONAL, SCHEDULE, noises=1, device="cpu")
    return classifier.predict_proba(SAMPLES), classifier.score(SAMPLES, CLASSES)


def evaluation(points=POINTS, **options):
    return fd.evaluate(SAMPLES, points, repeats=4, full=True, **options).to_dict()


def distances():
    return (
        fd.emd(SAMPLES, OTHERS), fd.emd_by_class([SAMPLES] * 5, POINTS),
        fd.kde_nll(SAMPLES, OTHERS), fd.kernel_nll(SAMPLES, OTHERS),
        fd.memorisation(SAMPLES, OTHERS, POINTS.data), fd.mmd(SAMPLES, OTHERS),
        fd.nearest_distances(SAMPLES, OTHERS), fd.nearest_neighbour_test(SAMPLES, OTHERS),
        fd.occupancy(SAMPLES, OTHERS, POINTS), fd.sliced_wasserstein(SAMPLES, OTHERS[:30]),
    )  # fmt: skip


def closed_forms():
    masses = fd.PointMasses(POINTS.data)
    return (
        MIXTURE.draw(9, 1), MIXTURE.optimal_noise(SAMPLES, 0.4),
        masses.draw(9, 1), masses.optimal_noise(SAMPLES, 0.4),
        fd.excess_loss(DENOISER, SCHEDULE, MIXTURE, n=50, steps=[0, 9]),
    )  # fmt: skip


def files():
    path = FOLDER / "denoiser.safetensors"
    difference = fd.export_model(CONDITIONAL, SCHEDULE, "safetensors", path)
    loaded = fd.load(path)
    loaded.save(FOLDER / "denoiser.pt")
    again = fd.load(FOLDER / "denoiser.pt", schedule=SCHEDULE)
    samples = [each.sample(3, device="cpu", label=1).x for each in (loaded, again)]
    networks = (loaded.model, again.model)
    return difference, [dict(network.named_parameters()) for network in networks], samples


def classic_network():
    network = fd.BlockMLP.from_mlp(fd.load(FOLDER / "relu.safetensors").model)
    return [dict(each.named_parameters()) for each in (network, network.to_mlp())]


def exported_program():
    return fd.export_model(DENOISER, SCHEDULE, "torch.export", FOLDER / "denoiser.pt2")


def figures():
    """The colours of a classifier's answers, which are computed with PyTorch."""
    figure = plots.classifier_map(CLASSIFIER, SCHEDULE, POINTS)
    plots.trajectories(SAMPLES.expand(3, -1, -1), [9, 4, 0], POINTS)
    return [image.get_array().data for axis in figure.axes for image in axis.images]


def scheduler(kind, **options):
    s = kind(num_train_timesteps=20, beta_schedule="linear", **options)
    s.set_timesteps(5)
    x, found = SAMPLES, [s.timesteps, s.betas, s.alphas_cumprod]
    for t in s.timesteps:
        x = s.step(0.1 * x, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
        found.append(x)
    noisy = s.add_noise(SAMPLES, OTHERS, TIMES)
    return found, noisy, s.get_velocity(SAMPLES, OTHERS, TIMES)


def solver(kind, **options):
    s = kind(num_train_timesteps=20, use_karras_sigmas=True, **options)
    s.set_timesteps(5)
    x, found = SAMPLES, [s.timesteps, s.sigmas]
    draws = {"generator": torch.Generator().manual_seed(1)}
    for t in s.timesteps:
        if kind in (fd.EulerDiscreteScheduler, fd.HeunDiscreteScheduler):
            found.append(s.scale_model_input(x, t))
        x = s.step(0.1 * x, t, x, **({} if kind is fd.HeunDiscreteScheduler else draws)).prev_sample
        found.append(x)
    add_noise = getattr(s, "add_noise", None)
    t = s.timesteps[2]
    return found, add_noise(x, OTHERS, t) if add_noise else s.scale_noise(x, t, OTHERS)


def classic_states():
    states = fd.States(6, device="cpu")
    items = [states[i] for i in (0, 3)], states[2:5]
    states.mix_data()
    states.refresh_eps()
    return items, states[1], states.calc_nll(SAMPLES)


DIFFUSION: dict[str, Callable] = {
    "schedules": schedules,
    "tables": tables,
    "Points": points,
    "dataset": named_data,
    "load_points": own_data,
    "Trainer": lambda: training(RECIPE),
    "Trainer, classic": lambda: training(CLASSIC_RECIPE),
    "Trainer, classifier": lambda: training(RECIPE, classify=True),
    "Trainer, conditional": lambda: training(CONDITIONAL_RECIPE),
    "Trainer, logged": logged_training,
    "own network": own_network,
    "train_many": train_many,
    "sweep": sweep,
    "sample": sample,
    "sample, ddim": lambda: sample(method="ddim", eta=0.5, num_steps=4),
    "sample, dpm++2m": lambda: sample(method="dpm++2m", num_steps=5),
    "sample, heun": lambda: sample(method="heun", num_steps=5),
    "sample, edm": lambda: sample(method="edm", num_steps=5, s_churn=3.0),
    "sample, timesteps": lambda: sample(method="euler", timesteps=STRIDE),
    "sample, spacing": lambda: sample(num_steps=5, spacing="trailing"),
    "sample, sinusoidal": lambda: sample(SINE_DENOISER, SINES),
    "sample, guided": lambda: sample(classifier=CLASSIFIER, label=1, scale=2.0),
    "sample, classifier-free": lambda: sample(CONDITIONAL, label=1, scale=1.0),
    "sample, x_T": sample_from_noise,
    "sample_many": sample_many,
    "sample_with_reward": sample_with_reward,
    "latents": latents,
    "DiffusionClassifier": classification,
    "evaluate": evaluation,
    "evaluate, label": lambda: evaluation(label=1),
    "evaluate, own data": lambda: evaluation(fd.Points(OTHERS)),
    "metrics": distances,
    "closed forms": closed_forms,
    "files": files,
    "BlockMLP": classic_network,
    "export_model": exported_program,
    "plots": figures,
    "DDPMScheduler": lambda: scheduler(fd.DDPMScheduler),
    "DDIMScheduler": lambda: scheduler(fd.DDIMScheduler),
    "DPMSolverMultistepScheduler": lambda: solver(
        fd.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++", thresholding=True
    ),
    "EulerDiscreteScheduler": lambda: solver(fd.EulerDiscreteScheduler),
    "FlowMatchEulerDiscreteScheduler": lambda: solver(
        fd.FlowMatchEulerDiscreteScheduler, stochastic_sampling=True
    ),
    "HeunDiscreteScheduler": lambda: solver(fd.HeunDiscreteScheduler),
    "States": classic_states,
}
# Other operations run the same code around their kernels.
SLOW_INTERPRETED = ("sample_chain", "sample_chain, conditional", "train_step, denoiser")
OPERATIONS = {
    "q_sample": q_sample,
    "q_sample_batch": q_sample_batch,
    "reverse_step": reverse_step,
    "draw_prior": draw_prior,
    "sample_chain": chain,
    "sample_chain, guided": guided_chain,
    "sample_chain, conditional": conditional_chain,
    **{f"train_step, {kind}": lambda backend, k=kind: train_step(k, backend) for kind in DATA},
    "adamw_": update,
}
KERNELS: dict[str, Callable] = {
    **{
        f"{name}, {backend}": lambda run=run, backend=backend: run(backend)
        for name, run in OPERATIONS.items()
        for backend in ("torch", "triton")
        if backend == "torch" or name not in SLOW_INTERPRETED
    },
    "eps_table": eps_table,
    "shadow_of": lambda: [shadow(precision) for precision in ("fp16", "tf32", "fp32")],
}
CALLS = KERNELS | DIFFUSION
