"""What errors count, and the noise levels of flows, against definitions and `diffusers`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ipadapter.training.flow import FlowSchedule, Spread
from ipadapter.training.recipe import NoiseSchedule, Schedule
from ipadapter.training.weighting import Prediction, Weighting

LEVELS = torch.linspace(0.03, 14, 1000, dtype=torch.float64)
SCHEDULES = {
    Prediction.EPS: (NoiseSchedule(LEVELS), torch.tensor([40, 300, 980])),
    Prediction.V: (NoiseSchedule(LEVELS, Prediction.V), torch.tensor([40, 300, 980])),
    Prediction.FLOW: (FlowSchedule(), torch.tensor([0.1, 0.5, 0.95])),
}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise_and_picture(
    prediction: Prediction, found: Tensor, noisy: Tensor, signal: Tensor, amount: Tensor
) -> tuple[Tensor, Tensor]:
    """The noise and the picture that a prediction stands for."""
    if prediction is Prediction.EPS:
        return found, (noisy - amount * found) / signal
    if prediction is Prediction.V:
        picture = signal * noisy - amount * found
    else:
        picture = noisy - amount * found
    return (noisy - signal * picture) / amount, picture


@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("weighting", [Weighting.MIN_SNR, Weighting.PICTURE])
def test_a_weight_is_that_of_the_error_it_names(
    prediction: Prediction, weighting: Weighting
) -> None:
    schedule, steps = SCHEDULES[prediction]
    latents, noise, wrong = (rand(3, 4, 8, 8, seed=seed) for seed in range(3))
    signal, amount = schedule.amounts(steps)
    noisy = schedule.noisy(latents, noise, steps)
    found = schedule.target(latents, noise, steps) + 0.1 * wrong
    as_noise, as_picture = noise_and_picture(prediction, found, noisy, signal, amount)
    snr = (signal / amount).square().flatten()
    noise_error = (as_noise - noise).square().mean((1, 2, 3))
    picture_error = (as_picture - latents).square().mean((1, 2, 3))
    if weighting is Weighting.MIN_SNR:
        expected = torch.minimum(noise_error, 5 * picture_error)
    else:  # of the picture where noise rules, of the noise between, as in min-SNR at the end
        expected = torch.where(snr < 0.3, 0.3 * picture_error, noise_error)
        expected = torch.where(snr > 5, 5 * picture_error, expected)
    error = (0.1 * wrong).square().mean((1, 2, 3))
    weights = schedule.weights(steps, 0.0, weighting)
    torch.testing.assert_close(error * weights, expected, rtol=1e-3, atol=0)
    assert torch.equal(schedule.weights(steps, 0.0, Weighting.PLAIN), torch.ones(3))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_that_of_the_published_training(shift: float) -> None:
    """SD3's: https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/examples/dreambooth/train_dreambooth_sd3.py#L1669"""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_density_for_timestep_sampling

    generator = torch.Generator().manual_seed(4)
    found = FlowSchedule(shift).draw(1000, generator)
    drawn = compute_density_for_timestep_sampling(
        "logit_normal", 1000, 0.0, 1.0, generator=torch.Generator().manual_seed(4)
    )
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    indices = ((1 - drawn) * 1000).long()  # theirs count from noise to picture
    sigmas_of = torch.as_tensor(scheduler.sigmas)
    assert (found - sigmas_of[indices]).abs().max() < 0.01 * shift
    latents, noise = rand(5, 16, 4, 4), rand(5, 16, 4, 4, seed=1)
    times = sigmas_of[indices[:5]]
    schedule = FlowSchedule(shift)
    sigmas = times.view(-1, 1, 1, 1)
    assert torch.equal(
        schedule.noisy(latents, noise, times), (1 - sigmas) * latents + sigmas * noise
    )
    assert torch.equal(schedule.target(latents, noise, times), noise - latents)


def test_uniform_times_are_spread_evenly_and_early_ones_are_noisy() -> None:
    schedule = FlowSchedule(spread=Spread.UNIFORM)
    times = schedule.draw(20_000, torch.Generator().manual_seed(0))
    quarters = torch.histc(times, 4, 0, 1) / 20_000
    assert (quarters - 0.25).abs().max() < 0.02
    assert schedule.early(torch.rand(20_000)).mean() > 0.6


def test_a_frame_more_changes_nothing() -> None:
    """Latents of five dimensions, as of bases that also make films."""
    latents, noise, times = rand(2, 16, 4, 4), rand(2, 16, 4, 4, seed=1), torch.tensor([0.2, 0.9])
    flat = FlowSchedule().noisy(latents, noise, times)
    deep = FlowSchedule().noisy(latents[:, :, None], noise[:, :, None], times)
    assert torch.equal(deep[:, :, 0], flat)


@pytest.mark.parametrize("schedule", [pair[0] for pair in SCHEDULES.values()])
def test_schedules_are_what_a_trainer_asks_for(schedule: Schedule) -> None:
    drawn = schedule.draw(3, torch.Generator().manual_seed(0))
    early = schedule.early(torch.tensor([0.0, 0.5, 0.999]))
    assert drawn.shape == early.shape == (3,) and drawn.dtype == early.dtype
    assert early[0] < early[1] < early[2]
