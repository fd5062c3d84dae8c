"""The structure of the code: imports that are allowed, lengths of modules, and public names."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 450

# Dependencies run one way: a folder imports from those before it.
FOLDERS = ("kernels", "diffusion", "bench")
# The same inside diffusion, by the first part of a module's name: each imports from levels before
# its own, and within a package.
LEVELS = (
    ("choices", "errors", "versions"),
    ("given",),
    (
        "device",
        "files",
        "interrupts",
        "kinds",
        "noise_levels",
        "palette",
        "predictions",
        "progress",
        "projection",
        "time_embedding",
    ),
    ("schedules", "data", "locks", "logs"),
    ("models", "run_folder", "spacings"),
    ("own_networks",),
    ("reverse_steps", "training", "metrics", "plots"),
    ("solvers", "own_chains", "recorded"),
    ("chains",),
    ("sampling", "document", "settings", "made_with"),
    ("latents", "rewards", "classification", "compat", "run_record"),
    ("checkpoints",),
    ("export", "initial", "run_figures", "run_validation", "saved_run", "sweeps"),
    ("report", "viewer", "studies", "experiment"),
    ("commands",),
    ("cli", "public"),
    ("entry",),
    ("__main__", "__init__"),
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}

PUBLIC = {
    "flashpoint.kernels": """
        ACTIVATIONS Acceleration AdamWState Condition Course Draw FusedMLP Guide MLPParameters
        MLPShape Network ReducedGradient Shadow TrainingData Workspace accelerate adamw_ adamw_state
        decelerate detect_overflow draw_prior eps_table layers mlp q_sample q_sample_batch
        reduce_grad reverse_step sample_chain shadow_of train_step training_sums workspace_of""",
    "flashpoint.diffusion": """
        BlockMLP CSVLog Callback
        ClassicRecipe ConditionalMLP DATASETS DDIMScheduler DDPMScheduler Denoiser
        DPMSolverMultistepScheduler EulerDiscreteScheduler FlowMatchEulerDiscreteScheduler
        HeunDiscreteScheduler DiffusionClassifier GaussianMixture MLP ManyTrainer PointMasses
        JSONLog Points RECIPES Recipe TensorBoardLog
        STATE_NAMES SampleConfig Samples Schedule States SweepTable Task TimeEmbedding Trainer
        UserError class_reward
        class_table dataset emd emd_by_class evaluate excess_loss export_model fashion_mnist
        interpolate invert kde_nll kernel_nll load load_points memorisation mmd nearest_distances
        nearest_neighbour_test occupancy reverse_table sample sample_many sample_with_reward
        sinusoidal_embedding slerp sliced_wasserstein states_points sweep train_many
        Standardisation""",
}


def modules(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "suite" not in path.parts:
                yield pytest.param(path.relative_to(ROOT), id=str(path.relative_to(ROOT)))


def imports(path):
    """Yields the full dotted names, folder first, that a module of the project imports."""
    package = path.parent.parts
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = node.module.split(".") if node.module else []
            for name in node.names:
                yield (*base, *module, name.name)


@pytest.mark.parametrize("path", [*modules(*FOLDERS)])
def test_dependencies_of_folders_run_one_way(path):
    own = FOLDERS.index(path.parts[0])
    assert not [name for name in imports(path) if FOLDERS.index(name[0]) > own]


@pytest.mark.parametrize("path", [*modules(*FOLDERS)])
def test_no_private_module_or_name_is_imported_across_folders(path):
    across = [name for name in imports(path) if name[0] != path.parts[0]]
    assert not [name for name in across if any(part.startswith("_") for part in name)]


@pytest.mark.parametrize("path", [*modules("diffusion")])
def test_dependencies_inside_diffusion_run_one_way(path):
    own = Path(path.parts[1]).stem
    used = {name[1] for name in imports(path) if name[0] == "diffusion"} - {own}
    assert not {name for name in used if name in LEVEL and LEVEL[name] >= LEVEL[own]}


def test_every_module_of_diffusion_has_a_level():
    names = {Path(path.values[0].parts[1]).stem for path in modules("diffusion")}
    assert names == set(LEVEL)


@pytest.mark.parametrize("path", [*modules(*FOLDERS, "tests")])
def test_no_module_is_too_long(path):
    assert len((ROOT / path).read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_these(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    assert all(hasattr(module, name) for name in module.__all__)
