"""Training on transformers: one step against the same written plainly on `diffusers`' classes, and
an adapter from the node, saved, loaded and applied."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.hosts.applied import pack_model
from support.hosts.scene import Scene, picture
from support.hosts.training import PICTURES, node_inputs, save_node
from support.models.transformer_adapters import normed, xlabs
from support.models.transformers import (
    TINY_COSMOS,
    TINY_FLUX,
    TINY_MEDIUM,
    TINY_SD3,
    Geometry,
    Pair,
    build_pair,
)
from support.references.transformers import (
    Case,
    model_output,
    normed_pairs,
    normed_terms,
    official_xlabs,
    reference_call,
    reference_output,
)
from torch import Tensor

EMBED, ROWS, TEXT = 48, 2, 9
BASES = [TINY_FLUX, TINY_SD3, TINY_MEDIUM, TINY_COSMOS]
# The base's noise levels: e^1.15 of Flux.1-dev, 3 of SD3.5, none of Cosmos.
SHIFTS = {"Flux": 2.718281828**1.15, "SD3": 3.0, "CosmosT2IPredict2": 1.0}
_PAIRS: dict[str, Pair] = {}


def pair_of(geometry: Geometry) -> Pair:
    if geometry.name not in _PAIRS:
        _PAIRS[geometry.name] = build_pair(geometry)
    return _PAIRS[geometry.name]


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state_of(geometry: Geometry) -> dict[str, Tensor]:
    """A random adapter as it would be trained for this base."""
    if geometry.kind == "Flux":
        return xlabs(geometry, EMBED)
    return normed(geometry, EMBED, dim=geometry.width if geometry.kind == "SD3" else 0)


@pytest.fixture
def core(host: Any) -> Any:
    return lambda name: host.module(f"ipadapter.{name}")


def data_of(core: Any, pair: Pair) -> Any:
    geometry, data = pair.geometry, core("training.data")
    states = seeded(1, ROWS + 1, TEXT, geometry.text_dim)
    vectors = seeded(2, ROWS + 1, geometry.pooled)
    others = {"guidance": torch.tensor([3.5])} if geometry.kind == "Flux" else {}
    if geometry.kind == "CosmosT2IPredict2":
        prompts = data.Prompts(states[:ROWS], states[ROWS:])
    else:
        texts = (states[:ROWS], states[ROWS:], vectors[:ROWS], vectors[ROWS:])
        prompts = data.Prompts(*texts, others)
    features = seeded(3, ROWS, EMBED)
    return data.TrainingSet(pair.latents(), features, 0 * features[:1], prompts)


def trainable_of(core: Any, geometry: Geometry) -> Any:
    checkpoint = core("adapters.checkpoint").checkpoint_from_dict(state_of(geometry), "random")
    adapter = core("adapters.adapter").Adapter.from_checkpoint(checkpoint)
    return core("training.trainable").TrainableAdapter.from_adapter(adapter)


def our_step(core: Any, pair: Pair, checkpointing: bool = False) -> tuple[float, Mapping, Any, Any]:
    """Loss, gradients, data and draw of one step."""
    frozen, trainer = core("host.training.frozen"), core("training.trainer")
    data, adapter = data_of(core, pair), trainable_of(core, pair.geometry)
    settings = core("training.recipe").TrainSettings(
        batch_size=ROWS, seed=4, drop_image=0.4, drop_text=0.4
    )
    schedule = core("host.training.schedule").schedule_of(pair.model)
    shape = (ROWS, *data.latent_shape)
    with frozen.frozen_base(pair.model, frozen.Precision.FP32, shape, checkpointing) as base:
        given = (adapter, data, base.predict, schedule, settings)
        draw = trainer.Trainer(*given).draw()
        loss = trainer.Trainer(*given).loss(draw)
        loss.backward()
    gradients = {name: p.grad.clone() for name, p in adapter.named_parameters()}
    return float(loss.detach()), gradients, data, draw


def their_step(pair: Pair, data: Any, draw: Any) -> tuple[float, dict[str, Tensor]]:
    """The same with the drops, the noise, the flow and the loss written out.

    x_t = (1 - t) x + t noise, and the target noise - x, as in
    https://github.com/XLabs-AI/x-flux/blob/47495425dbed499be1e8e5a6e52628b07349cba2/train_flux_deepspeed.py#L225-L241
    """
    rows = torch.arange(ROWS)[draw.samples]
    features, text = data.features[rows].clone(), data.prompts.states[rows].clone()
    features[draw.drop_image], text[draw.drop_text] = 0.0, data.prompts.empty
    pooled = torch.zeros(ROWS, 1)
    if data.prompts.vectors is not None:
        pooled = data.prompts.vectors[rows].clone()
        pooled[draw.drop_text] = data.prompts.empty_vectors
    latents, time = data.latents[rows], draw.timesteps
    share = time.view(-1, *[1] * (latents.ndim - 1))
    noisy = (1 - share) * latents + share * draw.noise
    predict, leaves = reference_with(pair, features)
    loss = (predict(noisy, time, text, pooled) - (draw.noise - latents)).square().mean()
    loss.backward()
    return float(loss.detach()), {name: torch.as_tensor(leaf.grad) for name, leaf in leaves.items()}


def reference_with(pair: Pair, features: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """The reference's prediction with the adapter in it, and the adapter's tensors."""
    geometry, state = pair.geometry, state_of(pair.geometry)
    if geometry.kind == "Flux":
        return flux_with(pair, state, features)
    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    images = normed_pairs(leaves, features, geometry.blocks, geometry.head_dim)

    def predict(latents: Tensor, time: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        with normed_terms(pair, images):
            return reference_call(pair, latents, time, text, pooled)

    return predict, leaves


def flux_with(pair: Pair, state: Mapping[str, Tensor], features: Tensor) -> tuple[Any, dict]:
    """XLabs' adapter as `diffusers` loads it."""
    network, plain = pair.reference, dict(pair.reference.attn_processors)
    halves = official_xlabs({name: value.clone() for name, value in state.items()})
    network._load_ip_adapter_weights([halves], low_cpu_mem_usage=False)
    network.requires_grad_(False)
    (projector,) = network.encoder_hid_proj.image_projection_layers
    leaves = {
        f"image_proj.{name.replace('image_embeds.', 'proj.')}": parameter
        for name, parameter in projector.named_parameters()
    }
    double = [one for one in network.attn_processors.values() if hasattr(one, "to_k_ip")]
    for number, processor in enumerate(double):
        for name, parameter in processor.named_parameters():
            leaves[f"ip_adapter.{number}.{name.replace('.0.', '.')}"] = parameter
    for leaf in leaves.values():
        leaf.requires_grad_(True)

    def predict(*given: Tensor) -> Tensor:
        try:
            latents, time, text, pooled = given
            joint = {"ip_adapter_image_embeds": [features[:, None]]}
            more = {"joint_attention_kwargs": joint}
            return reference_call(pair, latents, time, text, pooled, **more)
        finally:
            network.encoder_hid_proj = None
            network.set_attn_processor(plain)

    return predict, leaves


@pytest.mark.parametrize("geometry", BASES, ids=lambda g: g.name)
def test_one_step_equals_the_plain_one(core: Any, geometry: Geometry, record_property: Any) -> None:
    pair = pair_of(geometry)
    loss, gradients, data, draw = our_step(core, pair)
    assert draw.drop_image.any() or draw.drop_text.any()
    expected, theirs = their_step(pair, data, draw)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == theirs.keys()
    # A bias of all keys alike changes no softmax: its gradient is zero but for rounding.
    largest = max(float(one.norm()) for one in theirs.values())
    moving = [name for name in theirs if not name.endswith("to_k_ip.bias")]
    still = theirs.keys() - set(moving)
    assert all(float(gradients[name].norm()) < 1e-4 * largest for name in still)
    errors = {
        name: float((gradients[name] - theirs[name]).norm() / theirs[name].norm())
        for name in moving
    }
    worst = max(errors.values())
    record_property("measured", f"gradients of {geometry.name} against diffusers: {worst:.1e}")
    assert worst < 1e-4, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("geometry", BASES, ids=lambda g: g.name)
def test_checkpointing_changes_nothing(core: Any, geometry: Geometry) -> None:
    pair = pair_of(geometry)
    (_, plain, _, _), (_, again, _, _) = (our_step(core, pair, flag) for flag in (False, True))
    assert all(torch.allclose(plain[name], again[name], atol=1e-7) for name in plain)
    modules = list(pair.model.model.modules())
    assert not [one for one in modules if "forward" in vars(one) or one._forward_pre_hooks]


@pytest.mark.parametrize("geometry", BASES, ids=lambda g: g.name)
def test_the_base_tells_its_noise_levels(core: Any, geometry: Geometry) -> None:
    pair, schedule = pair_of(geometry), core("host.training.schedule")
    spread = core("training.flow").Spread
    flow = schedule.schedule_of(pair.model, spread.UNIFORM)
    assert flow.shift == pytest.approx(SHIFTS[geometry.kind], rel=1e-6)
    sampling = pair.model.get_model_object("model_sampling")
    times = torch.linspace(0.01, 0.98, 9)
    shifted = schedule.sigmas_of(sampling, flow.shifted(times))
    scale = getattr(sampling, "multiplier", 1.0)
    host_levels = torch.stack([torch.as_tensor(sampling.sigma(time * scale)) for time in times])
    assert torch.allclose(shifted, host_levels, rtol=1e-4)
    noise, latents = seeded(5, *pair.latents().shape), pair.latents()
    noisy = flow.noisy(latents, noise, flow.shifted(times[4:5]).expand(ROWS))
    scaled = sampling.noise_scaling(shifted[4:5].expand(ROWS), noise.clone(), latents)
    given = sampling.calculate_input(shifted[4:5].expand(ROWS), scaled)
    assert torch.allclose(noisy, given, atol=1e-5)


@pytest.mark.parametrize("geometry", [TINY_SD3, TINY_MEDIUM, TINY_COSMOS], ids=lambda g: g.name)
def test_apply_equals_the_plain_term(core: Any, geometry: Geometry, record_property: Any) -> None:
    pair, state = pair_of(geometry), state_of(geometry)
    cond, uncond = seeded(20, 1, EMBED), 0.1 * seeded(21, 1, EMBED)
    case = Case([state], [0.7], [cond], [uncond])
    features = torch.cat([uncond, cond])
    images = normed_pairs(state, features, geometry.blocks, geometry.head_dim)
    with normed_terms(pair, images, 0.7):
        theirs = reference_output(pair)
    ours = model_output(pair, pack_model(pair, case, core))
    largest = theirs.abs().max()
    assert float((ours - model_output(pair, pair.model)).abs().max() / largest) > 0.05
    error = float((ours - theirs).abs().max() / largest)
    record_property("measured", f"{geometry.name} with an adapter trained here: {error:.1e}")
    assert error < 1e-5


@pytest.fixture(scope="module", params=[TINY_MEDIUM, TINY_COSMOS], ids=lambda g: g.name)
def scene(host: Any, request: pytest.FixtureRequest) -> Scene:
    """A MODEL with an adapter that could be trained for it."""
    return Scene.of_transformer(host, request.param, state_of(request.param))


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_masks_ranges_and_layers_act(scene: Scene) -> None:
    plain, whole = scene.sample(), scene.sample(scene.apply())
    assert difference(whole, plain) > 1e-3
    left = torch.zeros(1, 16, 16)
    left[:, :, :8] = 1.0
    same = {
        "nothing of a mask": (scene.apply(attn_mask=0 * left), plain),
        "weight 0": (scene.apply(weight=0.0), plain),
        "a range that is over": (scene.apply(start_at=1.0), plain),
        "a whole mask": (scene.apply(attn_mask=torch.ones(1, 16, 16)), whole),
    }
    for what, (model, expected) in same.items():
        assert difference(scene.sample(model), expected) < 1e-6, what
    other = {
        "half a mask": scene.apply(attn_mask=left),
        "half a range": scene.apply(end_at=0.5),
        "weights over the blocks": scene.apply(weight_type="ease in"),
        "K+V": scene.apply(embeds_scaling="K+V", weight=0.5),
        "two": scene.apply(scene.apply(), image=picture(2)),
    }
    for what, model in other.items():
        found = scene.sample(model)
        assert min(difference(found, plain), difference(found, whole)) > 1e-4, what


def test_a_mask_covers_every_frame(host: Any) -> None:
    scene = Scene.of_transformer(host, TINY_COSMOS, state_of(TINY_COSMOS))
    video = {"samples": torch.zeros(1, 16, 3, 16, 16)}
    whole, ones, plain = (
        scene.sample(model, latent_image=video)
        for model in (scene.apply(), scene.apply(attn_mask=torch.ones(1, 16, 16)), scene.model)
    )
    assert whole.shape == (1, 16, 3, 16, 16)
    assert difference(ones, whole) < 1e-6
    assert difference(whole, plain) > 1e-3


def test_a_hook_on_both_prompts_is_the_adapter_on_the_model(scene: Scene) -> None:
    positive, negative = (scene.hooked(cond) for cond in (scene.positive, scene.negative))
    both, on_model = scene.sample(positive=positive, negative=negative), scene.sample(scene.apply())
    assert difference(both, on_model) < 1e-5
    assert difference(scene.sample(positive=positive), on_model) > 1e-3


def test_another_packs_attention_before_or_after(scene: Scene) -> None:
    def with_override(model: Any) -> Any:
        clone = model.clone()
        options = clone.model_options["transformer_options"]
        before = options.get("optimized_attention_override")
        assert before is None  # ours comes with each call

        def attend(function: Any, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return 0.9 * function(query, *args, **kwargs)

        options["optimized_attention_override"] = attend
        return clone

    before = scene.sample(scene.apply(with_override(scene.model)))
    after = scene.sample(with_override(scene.apply()))
    assert difference(before, after) < 1e-6
    assert difference(after, scene.sample(scene.apply())) > 1e-3


def test_maps_show_a_picture_where_its_mask_lets_it(scene: Scene) -> None:
    left = torch.zeros(1, 16, 16)
    left[:, :, :8] = 1.0
    maps = scene.maps(scene.apply(attn_mask=left))
    assert maps.shape == (1, 16, 16)
    assert maps[:, :, 10:].max() < 0.1 < maps[:, :, :6].mean()


def node_inputs_of(geometry: Geometry, **changes: Any) -> dict[str, Any]:
    """What IPAdapter Train is given for this base."""
    pair = pair_of(geometry)
    extra = {"pooled_output": seeded(31, 1, geometry.pooled), "guidance": 3.5}
    text = [[seeded(30 + n, 1, TEXT, geometry.text_dim), extra] for n in range(PICTURES)]
    frames = (1,) if geometry.kind.startswith("Cosmos") else ()
    samples = seeded(9, PICTURES, 16, *frames, 1, 1).repeat(*[1] * (2 + len(frames)), 8, 8)
    given = node_inputs(pair.model, **{"steps": 4, "warm_start": 30, "held_out": 0.0, **changes})
    return {**given, "latent": {"samples": samples}, "conditioning": text}


TRAINED = [
    (TINY_FLUX, "standard"),
    (TINY_MEDIUM, "standard"),
    (TINY_COSMOS, "standard"),
    (TINY_SD3, "Plus"),
]


def test_flux_has_no_plus(host: Any) -> None:
    with pytest.raises(ValueError, match="no Plus adapters for Flux.1: choose standard"):
        host.call("IPAdapterTrain", **node_inputs_of(TINY_FLUX, family="Plus"))


@pytest.mark.parametrize(("geometry", "family"), TRAINED, ids=lambda c: getattr(c, "name", c))
def test_from_the_node_to_a_file_to_a_picture(host: Any, geometry: Geometry, family: str) -> None:
    """What the node has trained is saved, known to the loader and applied; the base has not
    changed by it."""
    given = node_inputs_of(geometry, family=family)
    network = pair_of(geometry).model.model.diffusion_model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pipeline, _curve = host.call("IPAdapterTrain", **given)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    state = pipeline.adapter.training
    assert float(state.studied[-5:].mean()) < 0.9 * float(state.studied[:3].mean())
    prefix = f"for {geometry.name} {family}"
    saving = {**save_node(["2", 0], prefix)["inputs"], "ipadapter": pipeline}
    host.call("IPAdapterSave", **saving)
    (path,) = host.models("ipadapter").glob(f"{prefix}_*")
    (loaded,) = host.call("IPAdapterModelLoader", ipadapter_file=path.name)
    spec = loaded["spec"] if isinstance(loaded, dict) else getattr(loaded, "adapter", loaded).spec
    assert (spec.num_tokens, spec.family.row.training is not None) == (
        {"standard": 4, "Plus": 16}[family],
        True,
    )
    scene = Scene.of_transformer(host, geometry, dict(load_file(path)))
    scene = replace(scene, clip_vision=given["clip_vision"])
    assert scene.adapter.spec.family is spec.family
    assert difference(scene.sample(scene.apply()), scene.sample()) > 1e-5


class Words:
    """A CLIP of one matrix, which knows only how long a caption is."""

    def __init__(self, geometry: Geometry) -> None:
        self.cond_stage_model, self.pooled = torch.nn.Linear(1, geometry.text_dim), geometry.pooled
        with torch.no_grad():
            self.cond_stage_model.weight.copy_(seeded(40, geometry.text_dim, 1))
            self.cond_stage_model.bias.zero_()

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        length = TEXT if len(text) < 40 else 2 * TEXT
        told = self.cond_stage_model(torch.full((1, length, 1), 0.1 * len(text))).detach()
        return [[told, {"pooled_output": torch.full((1, self.pooled), 0.1 * len(text))}]]


def captioned(host: Any, *captions: str) -> dict[str, Any]:
    """What the node is given for a folder of pictures with these captions, on Flux."""
    folder = host.base / "input" / "captioned"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, text in enumerate(captions):
        Image.new("RGB", (64, 64), (80 * number, 9, 90)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    given = node_inputs_of(TINY_FLUX, image_folder="captioned", resolution=64, steps=2)
    clip, vae = Words(TINY_FLUX), vae_of_shape(16)
    left_out = ("latent", "conditioning", "images")
    return {**{k: v for k, v in given.items() if k not in left_out}, "clip": clip, "vae": vae}


def vae_of_shape(channels: int) -> Any:
    """A real VAE with random weights, of TAESD's shape."""
    import comfy.sd
    import comfy.taesd.taesd

    shapes = comfy.taesd.taesd.TAESD(latent_channels=channels).state_dict()
    state = {
        key: 0.1 * seeded(n, 1, *value.shape)[0] for n, (key, value) in enumerate(shapes.items())
    }
    return comfy.sd.VAE(sd={**state, "vae_scale": torch.ones(()), "vae_shift": torch.zeros(())})


def test_captions_in_memory_and_from_disk_are_the_same(host: Any) -> None:
    given = captioned(host, "a cat", "a longer dog", "three")
    kept, memory = (
        host.call("IPAdapterTrain", **given, keep_encoded=flag)[0].adapter.training
        for flag in (True, False)
    )
    ours, theirs = kept.tensors(), memory.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(list((host.base / "output" / "ipadapter_encoded").rglob("*.safetensors"))) >= 9


@pytest.mark.parametrize("keep", [True, False])
def test_captions_of_other_lengths_are_told(host: Any, keep: bool) -> None:
    given = captioned(host, "a cat", "a caption that is longer than a text encoder likes it")
    with pytest.raises(ValueError, match="have 9, 18 text tokens.*Shorten the longest"):
        host.call("IPAdapterTrain", **given, keep_encoded=keep)


def test_bad_input_is_explained(host: Any) -> None:
    cosmos, flux = node_inputs_of(TINY_COSMOS), node_inputs_of(TINY_FLUX)
    video = {"samples": seeded(9, PICTURES, 16, 3, 8, 8)}
    narrow = [[seeded(30, 1, TEXT, 24), {"pooled_output": seeded(31, 1, 24)}]]
    bad = {
        "latents are .* takes .pictures, 16, 1, height": {**cosmos, "latent": video},
        "24 wide, the MODEL .Flux.1. takes 32": {**flux, "conditioning": narrow},
        "flow_times": {**flux, "flow_times": "loud"},
    }
    for message, given in bad.items():
        with pytest.raises(ValueError, match=message):
            host.call("IPAdapterTrain", **given)


def test_cosmos_is_the_same_base(host: Any) -> None:
    pair = pair_of(TINY_COSMOS)
    ours, theirs = model_output(pair, pair.model), reference_output(pair)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5
