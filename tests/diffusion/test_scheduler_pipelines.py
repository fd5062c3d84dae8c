"""Pipelines of diffusers with the schedulers of this package in the place of its own."""

import diffusers
import pytest
import torch

from flashpoint import diffusion as fd

# The small networks and chains of these tests give no pictures.
pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = {"num_inference_steps": 4, "output_type": "np"}


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    }
    return diffusers.AutoencoderKL(
        **blocks, block_out_channels=(8,), latent_channels=4, norm_num_groups=2
    ).eval()


def assert_images_agree(name, pipeline_of, call):
    images = []
    for package in (fd, diffusers):
        pipeline = pipeline_of(getattr(package, name)())
        assert isinstance(pipeline.scheduler, getattr(package, name))
        pipeline.set_progress_bar_config(disable=True)
        images.append(call(pipeline).images)
    assert images[1].std() > 0.01
    assert abs(images[0] - images[1]).max() < 1e-4


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_class_conditional_transformers(name, vae):
    transformer = diffusers.DiTTransformer2DModel(
        2, 4, in_channels=4, out_channels=4, num_layers=1, sample_size=8, norm_num_groups=2
    ).eval()
    assert_images_agree(
        name,
        lambda scheduler: diffusers.DiTPipeline(transformer, vae, scheduler),
        lambda pipeline: pipeline([1, 2], generator=seeded(), **IMAGES),
    )
