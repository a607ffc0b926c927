"""The training loop on a toy UNet: what it learns, drops, keeps and refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ipadapter.adapters.adapter import Adapter
from ipadapter.adapters.checkpoint import checkpoint_from_dict, read_checkpoint
from ipadapter.adapters.families import Family
from ipadapter.adapters.wiring import KEY, VALUE
from ipadapter.attention.folding import KeyValue
from ipadapter.bases.unet import BASES
from ipadapter.pictures.images import as_rgb
from ipadapter.training.curve import loss_curve, running_mean
from ipadapter.training.data import Batch, Prompts, TrainingSet, same_length
from ipadapter.training.folder import read_folder, write_adapter, write_state
from ipadapter.training.recipe import BatchDraw, NoiseSchedule, TrainSettings
from ipadapter.training.state import TrainState, state_of, trained_adapter
from ipadapter.training.trainable import ProjectorPlan, TrainableAdapter
from ipadapter.training.trainer import COMPARE_EVERY, StepFailed, Trainer, train
from ipadapter.training.weighting import Prediction

EMBED, TOKEN, WIDTHS = 12, 16, (8, 16)
SETTINGS = TrainSettings(steps=20, batch_size=3, learning_rate=1e-2, seed=5)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def schedule(prediction: Prediction = Prediction.EPS) -> NoiseSchedule:
    return NoiseSchedule(torch.linspace(0.03, 14, 1000), prediction)


def samples(count: int = 7, hidden: bool = False) -> TrainingSet:
    features = rand(count, 5, EMBED, seed=1) if hidden else rand(count, EMBED, seed=1)
    prompts = Prompts(rand(count, 6, TOKEN, seed=2), torch.zeros(1, 6, TOKEN))
    return TrainingSet(rand(count, 4, 4, 4, seed=3), features, 0 * features[:1], prompts)


def new_adapter(family: Family = Family.STANDARD, **changes: int) -> TrainableAdapter:
    plan = ProjectorPlan(family, EMBED, TOKEN, **changes)
    text = [(rand(w, TOKEN, seed=w), rand(w, TOKEN, seed=w + 1)) for w in WIDTHS]
    return TrainableAdapter.create(plan, text, torch.Generator().manual_seed(0))


def toy_unet(
    noisy: Tensor, timesteps: Tensor, batch: Batch, key_values: Sequence[KeyValue]
) -> Tensor:
    """Noise plus something that every key and value moves."""
    image = sum((kv.key * kv.value).mean((1, 2)) for kv in key_values)
    return noisy + (image + batch.text.mean((1, 2))).view(-1, 1, 1, 1)


def trainer(settings: TrainSettings = SETTINGS, predict: Callable = toy_unet) -> Trainer:
    return Trainer(new_adapter(), samples(), predict, schedule(), settings)


def test_standard_sd15_adapter_has_the_papers_parameter_count() -> None:
    token_dim, widths = BASES["SD1.5"]
    plan = ProjectorPlan(Family.STANDARD, 1024, token_dim)
    with torch.device("meta"):
        projector = plan.family.row.projector(plan.shapes)
        matrices = [torch.empty(width, token_dim) for width in widths]
        layers = {2 * i + 1: {KEY: one, VALUE: one} for i, one in enumerate(matrices)}
    adapter = TrainableAdapter(projector, layers, plan.family)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 22_319_616
    assert all(parameter.requires_grad for parameter in adapter.parameters())


@pytest.mark.parametrize("family", [Family.STANDARD, Family.PLUS])
def test_its_tensors_are_an_adapter_file(family: Family) -> None:
    module = new_adapter(family)
    adapter = Adapter.from_checkpoint(checkpoint_from_dict(module.state_dict(), "new"))
    assert adapter.spec.family is family
    assert (adapter.spec.embed_dim, adapter.spec.token_dim) == (EMBED, TOKEN)
    assert adapter.spec.layer_widths == WIDTHS
    features = rand(2, 5, EMBED) if family is Family.PLUS else rand(2, EMBED)
    assert torch.equal(adapter.projector(features), module.image_proj(features))
    again = TrainableAdapter.from_adapter(adapter).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in module.state_dict().items())


def test_keys_and_values_begin_as_the_text_projections() -> None:
    weights = new_adapter().state_dict()
    for number, width in enumerate(WIDTHS):
        key = weights[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"]
        value = weights[f"ip_adapter.{2 * number + 1}.to_v_ip.weight"]
        assert torch.equal(key, rand(width, TOKEN, seed=width))
        assert torch.equal(value, rand(width, TOKEN, seed=width + 1))


def test_resampler_has_the_official_dimensions() -> None:
    for base, dim, heads in (("SD1.5", 768, 12), ("SDXL", 1280, 20)):
        shapes = ProjectorPlan(Family.PLUS, 1280, BASES[base][0]).shapes
        assert shapes["latents"] == (1, 16, dim)
        assert shapes["layers.3.0.to_q.weight"] == (heads * 64, dim)
        assert "layers.4.0.to_q.weight" not in shapes


def test_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="FaceID family cannot be trained: choose standard, Plus"):
        ProjectorPlan(Family.FACEID, 512, 768)


def test_loss_falls_and_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    run = trainer(replace(SETTINGS, steps=60))
    assert train(run, lambda step, loss: True) is None
    assert sum(run.losses[-20:]) < 0.9 * sum(run.losses[:20])
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_is_compared_with_that_of_the_base_alone() -> None:
    """Now and then, on the very same draw; the comparison changes nothing in the training."""
    run, twin = trainer(), trainer()
    draw = twin.draw()
    with torch.no_grad():
        share = float(twin.loss(draw) / plain_error(draw))
    train(run, lambda step, loss: True)
    assert [step for step, _ in run.compared] == [1, 1 + COMPARE_EVERY]
    assert run.compared[0][1] == pytest.approx(share, rel=1e-6)
    assert run.compared[1][1] < run.compared[0][1]
    again = trainer()
    again.restore(run.state())
    assert again.compared == run.compared


def plain_error(draw: BatchDraw) -> Tensor:
    """What the toy UNet gets wrong without an adapter."""
    batch = samples().batch(draw.samples, draw.drop_image, draw.drop_text)
    noisy = schedule().noisy(batch.latents, draw.noise, draw.timesteps)
    return (toy_unet(noisy, draw.timesteps, batch, ()) - draw.noise).square().mean()


def test_velocity_target_is_the_hosts_formula() -> None:
    latents, noise = rand(2, 4, 4, 4), rand(2, 4, 4, 4, seed=1)
    steps = torch.tensor([3, 900])
    v = schedule(Prediction.V)
    sigma = v.sigmas[steps].view(-1, 1, 1, 1)
    noisy = v.noisy(latents, noise, steps) * (sigma**2 + 1) ** 0.5
    velocity = v.target(latents, noise, steps)
    denoised = noisy / (sigma**2 + 1) - velocity * sigma / (sigma**2 + 1) ** 0.5
    assert torch.allclose(denoised, latents, atol=1e-4)
    assert torch.equal(schedule().target(latents, noise, steps), noise)


@pytest.mark.parametrize(("prediction", "offset"), [(Prediction.EPS, 0), (Prediction.V, 1)])
def test_min_snr_weighs_as_published(prediction: Prediction, offset: int) -> None:
    timesteps = torch.tensor([0, 300, 999])
    snr = schedule().sigmas[timesteps].double() ** -2
    expected = [min(float(one), 0.5) / (float(one) + offset) for one in snr]
    found = schedule(prediction).weights(timesteps, 0.5)
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-4, atol=0)


def test_min_snr_changes_the_loss_and_zero_does_not() -> None:
    plain, same, other = (
        trainer(replace(SETTINGS, **changes)).step()
        for changes in ({}, {"min_snr": 0.0}, {"min_snr": 0.01})
    )
    assert plain == same != other


def test_drops_come_at_their_rates_and_never_overlap() -> None:
    settings = replace(SETTINGS, batch_size=20_000, drop_image=0.1, drop_text=0.2, drop_both=0.3)
    draw = trainer(settings).draw()
    both = draw.drop_image & draw.drop_text
    rates = [both, draw.drop_image & ~both, draw.drop_text & ~both]
    for flags, rate in zip(rates, (0.3, 0.1, 0.2), strict=True):
        assert abs(float(flags.float().mean()) - rate) < 0.02


def test_dropped_image_and_text_are_replaced() -> None:
    data = samples()
    yes, no = torch.tensor([True, False]), torch.tensor([False, True])
    batch = data.batch(torch.tensor([2, 4]), yes, no)
    assert torch.equal(batch.features[0], data.no_features[0])
    assert torch.equal(batch.features[1], data.features[4])
    assert torch.equal(batch.text[0], data.prompts.states[2])
    assert torch.equal(batch.text[1], data.prompts.empty[0])


def test_every_sample_comes_once_a_round() -> None:
    run = trainer(replace(SETTINGS, batch_size=7))
    assert sorted(run.draw().samples.tolist()) == list(range(7))


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_accumulation_is_a_larger_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = trainer(replace(SETTINGS, batch_size=6)).draw()

    def gradients(batch_size: int) -> Tensor:
        run = trainer(replace(SETTINGS, accumulation=6 // batch_size))
        parts = zip(*(t.split(batch_size) for t in vars(draw).values()), strict=True)
        draws = [type(draw)(*part) for part in parts]
        monkeypatch.setattr(run, "draw", lambda: draws.pop(0))
        run.step()
        return torch.cat([gradient(p).flatten() for p in run.adapter.parameters()])

    one, three = gradients(6), gradients(2)
    assert (one - three).norm() < 1e-5 * one.norm()


def same(one: TrainState, two: TrainState) -> bool:
    a, b = one.tensors(), two.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_stopping_keeps_the_step_and_resuming_is_bit_identical(
    tmp_path: Path, average: float
) -> None:
    settings = replace(SETTINGS, average=average)
    whole = trainer(settings)
    states: dict[int, TrainState] = {}
    train(whole, lambda step, loss: states.update({step: whole.state()}) is None)

    stopped = trainer(settings)
    notice = train(stopped, lambda step, loss: step < 8)
    assert notice == "Stopped after step 8 of 20."
    assert same(stopped.state(), states[8])

    adapter = trained_adapter(stopped.state(), "stopped", {})
    path = write_adapter(tmp_path / "adapter", stopped.state().result, {})
    write_state(path, stopped.state().tensors())
    for source in (adapter, Adapter.from_checkpoint(read_checkpoint(path))):
        resumed = trainer(replace(settings, seed=99))
        state = state_of(source)
        assert state is not None
        resumed.restore(state)
        assert resumed.steps == 8
        assert train(resumed, lambda step, loss: True) is None
        assert same(resumed.state(), states[20])


def test_average_is_the_result_and_differs_from_the_weights() -> None:
    run = trainer(replace(SETTINGS, average=0.9))
    train(run, lambda step, loss: True)
    state = run.state()
    assert state.result is state.average
    assert any(not torch.equal(state.average[key], state.weights[key]) for key in state.weights)


def broken_at(step: int) -> Callable:
    calls = iter(range(1, 1000))

    def predict(*inputs: Any) -> Tensor:
        out, with_adapter = toy_unet(*inputs), bool(inputs[-1])
        return out * float("nan") if with_adapter and next(calls) == step else out

    return predict


def test_nan_stops_with_step_and_advice_and_keeps_the_last_good_weights() -> None:
    good = trainer(replace(SETTINGS, steps=6))
    train(good, lambda step, loss: True)
    run = trainer(SETTINGS, broken_at(7))
    notice = train(run, lambda step, loss: True)
    assert notice is not None and "stopped at step 7" in notice
    assert "learning_rate" in notice and "fp32" in notice
    assert same(run.state(), good.state())
    with pytest.raises(StepFailed, match="step 1"):
        train(trainer(SETTINGS, broken_at(1)), lambda step, loss: True)


def test_out_of_memory_names_the_settings() -> None:
    def predict(*inputs: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(StepFailed, match="batch_size \\(it is 3\\).*resolution.*bf16"):
        trainer(SETTINGS, predict).step()


def test_other_errors_are_not_hidden() -> None:
    def predict(*inputs: Any) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer(SETTINGS, predict).step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"drop_image": 0.7, "drop_text": 0.7}, "1 at most together"),
        ({"average": 1.0}, "average is 1.0"),
        ({"min_snr": -1.0}, "min_snr is -1.0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**change)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    data = samples()
    with pytest.raises(ValueError, match="7 latents and 5 images"):
        TrainingSet(data.latents, data.features[:5], data.no_features, data.prompts)
    captions = Prompts(data.prompts.states[:3], data.prompts.empty)
    with pytest.raises(ValueError, match="7 images and 3 captions"):
        TrainingSet(data.latents, data.features, data.no_features, captions)
    with pytest.raises(ValueError, match="latents have NaN"):
        TrainingSet(data.latents / 0, data.features, data.no_features, data.prompts)
    with pytest.raises(ValueError, match="at least one image"):
        TrainingSet(data.latents[:0], data.features[:0], data.no_features, data.prompts)


def test_resume_from_another_adapter_is_refused() -> None:
    state = trainer().state()
    other = Trainer(new_adapter(num_tokens=2), samples(), toy_unet, schedule(), SETTINGS)
    with pytest.raises(ValueError, match="resume_from is another adapter: image_proj"):
        other.restore(state)
    few = Trainer(new_adapter(), samples(2), toy_unet, schedule(), SETTINGS)
    run = trainer()
    run.step()
    with pytest.raises(ValueError, match="more images than the 2"):
        few.restore(run.state())


def test_texts_of_different_lengths_meet_in_the_middle() -> None:
    short, long = same_length([rand(1, 77, 4), rand(2, 154, 4)])
    assert short.shape == (1, 154, 4) and torch.equal(short[:, :77], short[:, 77:])
    assert long.shape == (2, 154, 4)
    with pytest.raises(ValueError, match="77, 78 text tokens"):
        same_length([rand(1, 77, 4), rand(1, 78, 4)])


def picture(path: Path, size: tuple[int, int] = (9, 6), caption: str | None = None) -> None:
    Image.new("RGB", size, (255, 0, 0)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "white", "dtype"), [("a.png", 65535, np.uint16), ("a.tif", 1.0, np.float32)]
)
def test_pictures_of_more_than_8_bits_keep_their_brightness(
    tmp_path: Path, name: str, white: float, dtype: Any
) -> None:
    levels = np.linspace(0, white, 12).reshape(3, 4).astype(dtype)
    Image.fromarray(levels).save(tmp_path / name)
    (picture,) = as_rgb(read_folder(tmp_path).image(0))
    expected = torch.from_numpy(levels.astype(np.float32) / white)
    assert torch.allclose(picture, expected[..., None].expand(-1, -1, 3), atol=1e-6)


def test_folder_of_pictures_and_captions(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", caption="second")
    picture(tmp_path / "a.jpg", caption=" first \n")
    (tmp_path / "notes.md").write_text("not a picture")
    found = read_folder(tmp_path)
    assert [path.name for path in found.paths] == ["a.jpg", "b.png"]
    assert found.captions == ("first", "second")
    assert found.image(1).shape == (1, 6, 9, 3)


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no readable picture"):
        read_folder(tmp_path)
    picture(tmp_path / "a.png", caption="one")
    picture(tmp_path / "b.png")
    with pytest.raises(ValueError, match="2 pictures and 1 captions: b.txt not found"):
        read_folder(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 of 2 pictures.*b\.png.*skip_unreadable"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, skip_unreadable=True).captions == ("one",)
    half = (tmp_path / "a.png").read_bytes()[:40]
    (tmp_path / "a.png").write_bytes(half)
    with pytest.raises(ValueError, match=r"2 of 2 pictures.*a\.png"):
        read_folder(tmp_path)


@pytest.mark.parametrize("state", [False, True])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: bool
) -> None:
    def full(_tensors: object, path: Path, *_metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def write() -> None:
        if state:
            write_state(tmp_path / "adapter.safetensors", {"a": rand(2)})
        else:
            write_adapter(tmp_path / "adapter", {"a": rand(2)}, {})

    with monkeypatch.context() as patched:
        patched.setattr("ipadapter.training.folder.save_file", full)
        with pytest.raises(ValueError, match=r"adapter.* could not be written.*No space"):
            write()
    assert list(tmp_path.iterdir()) == []
    write()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_of_another_adapter_is_not_used(tmp_path: Path) -> None:
    run = trainer()
    path = write_adapter(tmp_path / "adapter", run.state().result, {})
    write_state(path, run.state().tensors())
    assert state_of(Adapter.from_checkpoint(read_checkpoint(path))) is not None
    run.step()
    other = write_adapter(tmp_path / "adapter", run.state().result, {})
    write_state(path, run.state().tensors())
    assert state_of(Adapter.from_checkpoint(read_checkpoint(path))) is None
    assert state_of(Adapter.from_checkpoint(read_checkpoint(other))) is None


def test_loss_curve_is_drawn_for_any_history() -> None:
    for losses in ([], [0.3], [0.3, 0.3], [1.0 / (i + 1) for i in range(500)]):
        compared = [(step + 1, 1 - step / 1000) for step in range(0, len(losses), COMPARE_EVERY)]
        picture = loss_curve(losses, compared, 500, "Stopped after step 3 of 500.")
        assert picture.size == (640, 360)
    assert running_mean([1.0, 3.0]) == [1.0, 2.0]
