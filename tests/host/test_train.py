"""Training from a graph: the file that comes out, the official recipe, stopping and going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.hosts.process import GraphError
from support.hosts.training import (
    ONE_LEVEL,
    PICTURES,
    Capture,
    capture_node,
    conditioning,
    node_inputs,
    pictures,
    register,
    save_node,
    train_graph,
)
from support.models.unets import (
    FULL_SD15,
    TINY_SD15,
    TINY_SDXL,
    Geometry,
    Pair,
    build_model,
    build_pair,
)
from support.models.vision import tiny_clip_vision
from support.references.interface import defaults
from support.references.parity import Case, model_output, nested, reference_output
from support.references.recipe import official_step
from torch import Tensor

STEPS = 200


@pytest.fixture(scope="module")
def pair(host: Any) -> Pair:
    return register(host)


def training_of(host: Any, graph: dict[str, Any]) -> Any:
    """Run a graph; returns the training state of node 2's adapter."""
    host.run({**graph, "capture": capture_node(["2", 0])})
    return Capture.kept["result"].adapter.training


def same(one: Any, two: Any) -> bool:
    a, b = one.tensors(), two.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def trained(host: Any, pair: Pair) -> tuple[Any, str]:
    """The training state of a whole run, and the name of its saved file."""
    graph = train_graph(steps=STEPS)
    graph["3"] = save_node(["2", 0], "whole")
    state = training_of(host, graph)
    (saved,) = sorted(host.models("ipadapter").glob("whole_*"))
    return state, saved.name


@pytest.fixture(scope="module")
def interrupted(host: Any, pair: Pair) -> tuple[int, Any, Any]:
    """The step at which the user stops a run, and the training states of that run and of one that
    goes on from it in the same graph."""
    import comfy.model_management
    import comfy.utils

    seen: list[int] = []

    def stop(value: int, _total: int, _preview: Any, node_id: Any = None) -> None:
        # A host need not show every step: some do so every 100 ms at most.
        if value >= STEPS // 4 and not seen:
            seen.append(value)
            comfy.model_management.interrupt_current_processing()

    graph = train_graph(steps=STEPS, captions="keeps this run from being the other one")
    graph["3"] = save_node(["2", 0], "stopped", with_training_state=True)
    graph["4"] = train_graph(steps=STEPS, resume_from=["2", 0])["2"]
    graph["5"] = capture_node(["4", 0], "resumed")
    comfy.utils.set_progress_bar_global_hook(stop)
    try:
        state = training_of(host, graph)
        return seen[0], state, Capture.kept["resumed"].adapter.training
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


def test_loss_falls(trained: tuple[Any, str]) -> None:
    losses = trained[0].losses
    assert len(losses) == STEPS
    assert float(losses[-40:].mean()) < 0.85 * float(losses[:40].mean())
    shares = trained[0].compared[:, 1]
    assert float(shares[-4:].mean()) < 0.9 * float(shares[:4].mean())


def test_base_is_not_changed(host: Any, pair: Pair, trained: tuple[Any, str]) -> None:
    model = host_model(pair)
    before = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    node(host, model, steps=3)
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in model.model.diffusion_model.parameters())


def test_saved_file_gives_the_same_unet_output_here_and_in_diffusers(
    host: Any, pair: Pair, trained: tuple[Any, str]
) -> None:
    graph = {
        "1": {"class_type": "TestTrainingInputs", "inputs": {}},
        "2": {"class_type": "IPAdapterModelLoader", "inputs": {"ipadapter_file": trained[1]}},
        "3": {
            "class_type": "IPAdapterAdvanced",
            "inputs": {
                **defaults("IPAdapterAdvanced"),
                "model": ["1", 0],
                "ipadapter": ["2", 0],
                "image": ["1", 4],
                "clip_vision": ["1", 1],
                "weight": 0.8,
            },
        },
        "4": capture_node(["3", 0], "patched"),
    }
    host.run(graph)
    model = Capture.kept["patched"]
    with torch.no_grad():
        embeds = tiny_clip_vision().encode_image(pictures())["image_embeds"].float()
    state = nested(load_file(host.models("ipadapter") / trained[1]))
    case = Case([state], [0.8], [embeds], [torch.zeros(1, embeds.shape[-1])])
    ours, theirs = model_output(pair, model), reference_output(pair, case)
    assert float((ours - theirs).abs().max()) < 1e-5
    plain = model_output(pair, host_model(pair))
    assert float((ours - plain).abs().max()) > 1e-3


def test_saved_file_says_what_it_is(host: Any, trained: tuple[Any, str]) -> None:
    from safetensors import safe_open

    with safe_open(host.models("ipadapter") / trained[1], "pt") as file:
        found = file.metadata()
    assert (found["family"], found["steps"], found["num_tokens"]) == ("standard", "200", "4")
    assert found["base"].startswith("custom UNet (4 layers") and "48" in found["encoder"]


def test_a_number_of_tokens_that_diffusers_cannot_read_is_told(host: Any, pair: Pair) -> None:
    from safetensors import safe_open

    for tokens, told in ((0, False), (8, True)):
        adapter = node(host, host_model(pair), num_tokens=tokens, family="standard")
        assert adapter.spec.num_tokens == (tokens or 4)
        save(host, adapter, filename_prefix=f"tokens{tokens}")
        path = host.models("ipadapter") / f"tokens{tokens}_00001_.safetensors"
        with safe_open(path, "pt") as file:
            note = file.metadata().get("note", "")
        assert ("diffusers cannot read it: it expects 4 tokens" in note) == told


def test_interrupt_keeps_the_adapter_of_that_step(
    host: Any, pair: Pair, interrupted: tuple[int, Any, Any]
) -> None:
    step, state, _resumed = interrupted
    assert state.steps == step < STEPS
    (file,) = host.models("ipadapter").glob("stopped_*.safetensors")
    saved = load_file(file)
    assert all(torch.equal(saved[key], value) for key, value in state.weights.items())
    assert same(training_of(host, train_graph(steps=step)), state)


def test_resume_is_bit_identical_to_an_uninterrupted_run(
    host: Any, trained: tuple[Any, str], interrupted: tuple[int, Any, Any]
) -> None:
    _step, state, resumed = interrupted
    assert not same(state, resumed)
    assert same(resumed, trained[0])
    (file,) = host.models("ipadapter").glob("stopped_*.safetensors")
    loader = {"class_type": "IPAdapterModelLoader", "inputs": {"ipadapter_file": file.name}}
    graph = train_graph(steps=STEPS, resume_from=["load", 0])
    assert same(training_of(host, {**graph, "load": loader}), trained[0])


def data_of(host: Any, pair: Pair, features: Tensor) -> Any:
    """Two random samples; SDXL's vectors are the pair's, in the order of the samples."""
    data = host.module("ipadapter.training.data")
    g = torch.Generator().manual_seed(8)
    width, size = pair.geometry.context_dim, pair.geometry.latent
    states = torch.randn(3, 77, width, generator=g).split((2, 1))
    vectors = pair.extra.get("y")
    nothing = None if vectors is None else vectors[:1]
    prompts = data.Prompts(*states, vectors, nothing)
    picture_latents = torch.randn(2, 4, size, size, generator=g)
    return data.TrainingSet(picture_latents, features, torch.zeros_like(features[:1]), prompts)


def compare_with_the_recipe(
    host: Any, geometry: Geometry, family: str, velocity: bool = False, weighting: str = "plain"
) -> dict[str, float]:
    """Relative differences of one optimiser step from the official recipe."""
    core = lambda name: host.module(f"ipadapter.{name}")  # noqa: E731
    pair = build_pair(geometry)
    hidden, g = family == "Plus", torch.Generator().manual_seed(9)
    shape = (2, 17, 48) if hidden else (2, 48)
    data = data_of(host, pair, torch.randn(shape, generator=g))
    trainable, train, frozen = (
        core("training.trainable"),
        core("training.trainer"),
        core("host.training.frozen"),
    )
    plan = trainable.ProjectorPlan(
        core("adapters.families").Family(family),
        48,
        geometry.context_dim,
        resampler_dim=128 * hidden,
    )
    counted = core("training.weighting").Weighting(weighting)
    settings = train.TrainSettings(
        batch_size=2, seed=4, drop_image=0.4, drop_text=0.4, weighting=counted
    )
    if velocity:
        pair.model.add_object_patch("model_sampling", velocity_sampling())
    with frozen.frozen_base(pair.model, frozen.Precision.FP32, (2, *data.latent_shape)) as unet:
        weights = unet.text_weights()
        adapter = trainable.TrainableAdapter.create(plan, weights, g)
        before = {key: value.clone() for key, value in adapter.state_dict().items()}
        schedule = frozen.schedule_of(pair.model)
        trainer = train.Trainer(adapter, data, unet.predict, schedule, settings)
        loss = trainer.step()
        gradients = {n: p.grad.clone() for n, p in adapter.named_parameters()}
    reference = pair.reference.state_dict()
    first = next(key for key in reference if key.endswith("attn2.to_k.weight"))
    assert torch.equal(weights[0][0], reference[first])
    draw = train.Trainer(adapter, data, unet.predict, schedule, settings).draw()
    assert draw.drop_image.any() or draw.drop_text.any()
    prediction = "v_prediction" if velocity else "epsilon"
    official = official_step(pair, before, data, draw, prediction, weighting)
    assert gradients.keys() == official.gradients.keys()
    assert abs(loss - official.loss) < 1e-4 * abs(official.loss)
    error = {
        key: float((gradients[key] - theirs).norm() / theirs.norm())
        for key, theirs in official.gradients.items()
        if theirs.norm() > 0
    }
    moved = torch.cat([(official.weights[key] - before[key]).flatten() for key in before])
    ours = adapter.state_dict()
    apart = torch.cat([(official.weights[key] - ours[key]).flatten() for key in before])
    return {**error, "update": 0.01 * float(apart.norm() / moved.norm())}


CASES = [(TINY_SD15, "standard"), (TINY_SD15, "Plus"), (TINY_SDXL, "standard")]


@pytest.mark.parametrize(("geometry", "family"), CASES, ids=lambda c: getattr(c, "name", c))
def test_one_step_equals_the_official_recipe(host: Any, geometry: Geometry, family: str) -> None:
    errors = compare_with_the_recipe(host, geometry, family)
    assert max(errors.values()) < 1e-4, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("velocity", [False, True], ids=["noise", "velocity"])
@pytest.mark.parametrize("weighting", ["plain", "min-SNR", "picture"])
def test_every_loss_equals_the_plainly_written_one(
    host: Any, velocity: bool, weighting: str
) -> None:
    errors = compare_with_the_recipe(host, ONE_LEVEL, "standard", velocity, weighting)
    assert max(errors.values()) < 1e-4, max(errors.items(), key=lambda item: item[1])


def velocity_sampling() -> Any:
    """A MODEL's sampling, as its checkpoint says: velocity."""
    import comfy.model_sampling

    bases = (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION)
    return type("V", bases, {})()


@pytest.mark.slow
def test_one_step_equals_the_official_recipe_on_full_sd15(host: Any) -> None:
    errors = compare_with_the_recipe(host, FULL_SD15, "standard")
    print(f"\nlargest relative difference on full SD1.5: {max(errors.values()):.1e}")
    assert max(errors.values()) < 1e-4, max(errors.items(), key=lambda item: item[1])


def host_model(pair: Pair, dtype: torch.dtype = torch.float32) -> Any:
    state = {key: value.to(dtype) for key, value in pair.reference.state_dict().items()}
    model = build_model(ONE_LEVEL, {k: v for k, v in state.items() if "_ip" not in k})
    model.model.diffusion_model.dtype = dtype
    return model


def node(host: Any, model: Any, **changes: Any) -> Any:
    """Run the node alone, without a graph; returns the adapter."""
    given = {**node_inputs(model, steps=2), **changes}
    left_open = {key for key, value in given.items() if value is None} - {"clip_vision"}
    given = {key: value for key, value in given.items() if key not in left_open}
    pipeline, curve = host.call("IPAdapterTrain", **given)
    assert curve.shape == (1, 360, 640, 3)
    return pipeline.adapter


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_frozen_base_in_half_precision(host: Any, pair: Pair, precision: str) -> None:
    adapter = node(host, host_model(pair, torch.float16), precision=precision, family="Plus")
    assert adapter.spec.family.value == "Plus" and adapter.spec.num_tokens == 16
    state = adapter.training
    assert torch.isfinite(state.losses).all()
    assert all(tensor.dtype == torch.float32 for tensor in state.weights.values())
    assert adapter.checkpoint.metadata["precision"] == {"bf16": "bfloat16"}.get(
        precision, "float32"
    )


def test_lora_on_the_model_reaches_the_first_keys(host: Any, pair: Pair) -> None:
    model, frozen = host_model(pair), host.module("ipadapter.host.training.frozen")
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    plain = model.model.state_dict()[key].clone()
    patched = model.clone()
    patched.add_patches({key: ("diff", (torch.ones_like(plain),))}, 0.5)
    with frozen.frozen_base(patched, frozen.Precision.FP32, (1, 4, 8, 8)) as unet:
        assert torch.allclose(unet.text_weights()[-1][0], plain + 0.5, atol=1e-6)
    patched.unpatch_model()


class Words:
    """A CLIP that knows only how long a caption is."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        return [[torch.full((1, 7, ONE_LEVEL.context_dim), 0.1 * len(text)), {}]]


def tiny_vae(channels: int = 4) -> Any:
    """A real VAE with random weights, of TAESD's shape."""
    import comfy.sd
    import comfy.taesd.taesd

    g = torch.Generator().manual_seed(6)
    shapes = comfy.taesd.taesd.TAESD(latent_channels=channels).state_dict()
    state = {key: 0.1 * torch.randn(value.shape, generator=g) for key, value in shapes.items()}
    return comfy.sd.VAE(sd={**state, "vae_scale": torch.ones(()), "vae_shift": torch.zeros(())})


def folder(host: Any, name: str, count: int = 3, captions: bool = True) -> Path:
    path = host.base / "input" / name
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (40 + 8 * number, 64), (80 * number, 9, 9)).save(path / f"{number}.png")
        if captions:
            (path / f"{number}.txt").write_text("word " * (number + 1))
    return path


def test_folder_of_pictures_with_captions(host: Any, pair: Pair) -> None:
    folder(host, "good")
    given = {"latent": None, "images": None, "conditioning": None, "resolution": 64}
    adapter = node(
        host, host_model(pair), **given, vae=tiny_vae(), clip=Words(), image_folder="good"
    )
    assert adapter.training.steps == 2


BAD = {
    "no pictures": ({"images": None}, "There is nothing to train on"),
    "other count": ({"images": pictures(3)}, "4 latents and 3 images"),
    "captions": (
        {"conditioning": None, "clip": Words(), "captions": "a\nb"},
        "4 images and 2 captions",
    ),
    "conditionings": ({"conditioning": conditioning(2)}, "4 images and 2 captions"),
    "no text": ({"conditioning": None}, "Connect a clip"),
    "no encoder": ({"clip_vision": None}, "clip_vision is empty"),
    "no latent": ({"latent": None}, "Connect a vae"),
    "latent of another base": (
        {"latent": {"samples": torch.zeros(PICTURES, 16, 8, 8)}},
        "of another base: its latents are",
    ),
    "text of another base": ({"conditioning": conditioning(4, 96)}, "96 wide, the MODEL"),
    "missing folder": ({"images": None, "image_folder": "../"}, "is not a folder in ComfyUI's"),
    "family": ({"family": "FaceID"}, "cannot be trained|expected one of"),
    "steps": ({"steps": 0}, "steps is 0"),
    "warm start": ({"warm_start": -1}, "warm_start is -1"),
    "loss weighting": ({"loss_weighting": "loud"}, "loss_weighting"),
    "NaN picture": ({"images": pictures() * float("nan")}, "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained(host: Any, pair: Pair, case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        node(host, host_model(pair), **changes)


def test_broken_folders_are_explained(host: Any, pair: Pair) -> None:
    given = {"latent": None, "images": None, "conditioning": None, "resolution": 64}
    given |= {"vae": tiny_vae(), "clip": Words()}
    folder(host, "empty", count=0)
    with pytest.raises(ValueError, match="no readable picture"):
        node(host, host_model(pair), **given, image_folder="empty")
    path = folder(host, "broken")
    (path / "1.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"1 of 3 pictures in broken.*1\.png"):
        node(host, host_model(pair), **given, image_folder="broken")
    kept = node(host, host_model(pair), **given, image_folder="broken", skip_unreadable=True)
    assert kept.training.steps == 2
    given["vae"] = tiny_vae(16)
    with pytest.raises(ValueError, match="VAE is of another base"):
        node(host, host_model(pair), **given, image_folder="broken", skip_unreadable=True)


def test_models_without_cross_attention_or_noise_are_refused(host: Any, pair: Pair) -> None:
    import comfy.model_sampling

    flow = host_model(pair)
    sampling = type("Flow", (comfy.model_sampling.ModelSamplingDiscreteFlow,), {})()
    flow.add_object_patch("model_sampling", sampling)
    with pytest.raises(ValueError, match="cannot be trained on: expected a model that predicts"):
        node(host, flow)
    bare = host_model(pair)
    bare.model.diffusion_model.input_blocks = torch.nn.ModuleList()
    bare.model.diffusion_model.output_blocks = torch.nn.ModuleList()
    bare.model.diffusion_model.middle_block = torch.nn.Sequential()
    with pytest.raises(ValueError, match="has no UNet cross-attention"):
        node(host, bare)


def test_velocity_model_trains_to_another_target(host: Any, pair: Pair) -> None:
    model = host_model(pair)
    model.add_object_patch("model_sampling", velocity_sampling())
    velocity, noise = node(host, model), node(host, host_model(pair))
    assert not torch.equal(velocity.training.losses, noise.training.losses)


def save(host: Any, adapter: Any, **changes: Any) -> None:
    inputs = {**save_node(["2", 0])["inputs"], "ipadapter": adapter, **changes}
    host.call("IPAdapterSave", **inputs)


@pytest.mark.parametrize("prefix", ["", "../out", "/etc/passwd", "a/../../b", "C:\\x"])
def test_saving_stays_in_its_folder(host: Any, pair: Pair, prefix: str) -> None:
    adapter = node(host, host_model(pair))
    with pytest.raises(ValueError, match="folder|name"):
        save(host, adapter, filename_prefix=prefix)


def test_saving_never_overwrites_and_says_why_it_cannot(host: Any, pair: Pair) -> None:
    adapter, models = node(host, host_model(pair)), host.models("ipadapter")
    for number in (1, 2):
        save(host, adapter, filename_prefix="again/and", precision="fp16")
        assert (models / "again" / f"and_{number:05}_.safetensors").is_file()
    (models / "blocked").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match="could not be written.*still in memory"):
        save(host, adapter, filename_prefix="blocked/adapter")
    half = load_file(models / "again" / "and_00001_.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in half.values())


def test_errors_reach_the_user_through_the_graph(host: Any, pair: Pair) -> None:
    graph = train_graph(steps=2, captions="other")
    del graph["2"]["inputs"]["latent"]
    with pytest.raises(GraphError, match="Connect a vae") as error:
        host.run({**graph, "capture": capture_node(["2", 0])})
    assert error.value.node_type == "IPAdapterTrain"
