"""The names that users choose from, and limits of numbers: what the command line knows at once.

This module imports nothing, so that help, versions and mistakes of typing need no PyTorch. Where a
name stands for a function, the table of functions is elsewhere and has these names as its keys.
"""

DATASETS = ("states", "moons", "circles", "blobs", "manycircles", "helix", "sin_5_5", "digits")
BETA_SCHEDULES = ("linear", "cosine", "scaled_linear", "sigmoid", "sech")
SCHEDULES = (*BETA_SCHEDULES, "flow", "edm")
TIME_FEATURES = ("linspace", "centered", "sinusoidal", "c_noise")
PREDICTIONS = ("eps", "x0", "v", "flow", "edm")
NATURAL = {"flow": "flow", "edm": "edm"}  # prediction of these schedules; of all others it is eps
WEIGHTINGS = ("uniform", "min-snr", "p2", "edm")
T_DENSITIES = ("uniform", "logit-normal", "log-normal")
ACTIVATIONS = ("prelu", "leaky_relu", "relu", "silu", "gelu", "tanh")
RECIPES = ("fast", "states", "long", "small", "classic-a", "classic-b")
OPTIMIZERS = ("adamw", "adam")
DECAYS = ("step", "cosine", "plateau")
CLASS_EMBEDDINGS = ("learned", "sinusoidal")
SOLVERS = ("euler", "dpm++2m", "heun", "edm")
METHODS = ("ddpm", "ddim", *SOLVERS)
VARIANCES = ("beta", "posterior", "none")
SPACINGS = ("linspace", "karras", "leading", "trailing")
STUDIES = (
    "timesteps", "betas", "schedules", "epochs", "complexity", "guidance", "reward", "digits",
    "predictions",
)  # fmt: skip
LOGS = ("jsonl", "tensorboard")  # beside losses.csv, which every run writes
SAMPLE_FILES = (".pt", ".npy", ".csv")
FIGURES = ("png", "svg", "pdf")  # formats
EXPORTS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch.export": ".pt2"}  # suffixes
MOST_DRAWS = 10_000  # of real data, behind a metric's band
