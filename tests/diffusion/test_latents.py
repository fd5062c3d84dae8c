"""DDIM backwards: closed forms, the way there and back, and interpolation."""

import pytest
import torch

from flashpoint.diffusion import (
    MLP,
    ConditionalMLP,
    GaussianMixture,
    Schedule,
    UserError,
    class_table,
    sample,
)
from flashpoint.diffusion.latents import interpolate, invert, slerp
from flashpoint.diffusion.reverse_steps import timesteps

from .helpers import smooth


def test_inversion_of_a_gaussian_is_its_standardisation():
    # The probability flow of N(0, s^2) scales x by the ratio of the standard deviations.
    schedule, s = Schedule(1000), 0.6
    gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 2), s**2 * torch.eye(2)[None])

    def denoiser(inputs):
        t = ((inputs[0, 2] + 1) / 2 * 999).round().long()
        return gaussian.optimal_noise(inputs[:, :2], schedule.alpha_bar[t].item()).float()

    x = torch.tensor([[0.3, -0.5], [1.2, 0.0]])
    last = schedule.alpha_bar[-1]
    want = x * ((last * s**2 + 1 - last) ** 0.5 / s).float()
    torch.testing.assert_close(invert(denoiser, schedule, x, device="cpu"), want, rtol=5e-3, atol=0)


@pytest.mark.parametrize("conditional", [False, True])
def test_there_and_back(conditional):
    schedule, label = Schedule(100), None
    if conditional:
        model = ConditionalMLP(3, 2, [32, 32], class_features=class_table(3))
        label = torch.arange(20) % 3
    else:
        model = MLP(3, 2, [32, 32])
    smooth(model)
    x = torch.randn(20, 2)
    x_T = invert(model, schedule, x, label=label, device="cpu")
    options = {"label": label} if conditional else {}
    back = sample(model, schedule, 20, method="ddim", x_T=x_T, device="cpu", **options).x
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)
    once = invert(model, schedule, x, label=label, iterations=1, device="cpu")
    rough = sample(model, schedule, 20, method="ddim", x_T=once, device="cpu", **options).x
    assert (rough - x).abs().max() > 5 * (back - x).abs().max()


def test_slerp_keeps_to_the_arc():
    a, b = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    points = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[2], b, atol=1e-6, rtol=0)
    torch.testing.assert_close(points[1, 0], torch.tensor([0.5, 0.5]).sqrt())
    torch.testing.assert_close(points[1, 1], torch.tensor([2.0, 0.0]))


def test_interpolation_starts_and_ends_at_the_two_points():
    schedule, model = Schedule(50), smooth(MLP(3, 2, [16]))
    a, b = torch.randn(4, 2), torch.randn(4, 2)
    points = interpolate(model, schedule, a, b, count=5, device="cpu")
    assert points.shape == (5, 4, 2)
    torch.testing.assert_close(points[0], a, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(points[4], b, atol=1e-4, rtol=1e-4)
    again = interpolate(model, schedule, a, b, count=5, device="cpu")
    assert torch.equal(points, again)
    told = smooth(ConditionalMLP(3, 2, [16], class_features=class_table(2)))
    ends = interpolate(
        told, schedule, a, b, count=2, label=torch.tensor([0, 1, 0, 1]), device="cpu"
    )
    torch.testing.assert_close(ends, torch.stack((a, b)), atol=1e-4, rtol=1e-4)


def test_interpolation_of_a_flow_goes_through_noise_without_any_data():
    schedule, model = Schedule(50, "flow"), smooth(MLP(3, 2, [16]))
    a, b = torch.randn(2, 4, 2)
    noise = invert(model, schedule, a, device="cpu")
    assert timesteps(schedule, None, method="ddim")[0] == 49  # where signal is 0
    back = sample(model, schedule, 4, method="ddim", x_T=noise, device="cpu").x
    torch.testing.assert_close(back, a, atol=1e-4, rtol=1e-4)
    ends = interpolate(model, schedule, a, b, count=2, device="cpu")
    torch.testing.assert_close(ends, torch.stack((a, b)), atol=1e-4, rtol=1e-4)


def test_wrong_input_is_named():
    schedule, model, a = Schedule(10), MLP(3, 2, [4]), torch.zeros(2, 2)
    for call, message in (
        (lambda: invert(model, schedule, a, iterations=0), "iterations must be at least 1"),
        (lambda: invert(model, schedule, a[0]), r"x must be \[n, 2\]"),
        (lambda: interpolate(model, schedule, a, a, count=1), "count must be at least 2"),
        (lambda: interpolate(model, schedule, a, a[:1]), "a and b must have one shape"),
    ):
        with pytest.raises(UserError, match=message):
            call()
