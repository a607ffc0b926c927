"""Every model file that a message, a template or the README may name: where it is, how large it is,
under which licence, and the folder it goes into. The one place where addresses are written."""

from __future__ import annotations

from dataclasses import dataclass

_HUB = "https://huggingface.co"
_APACHE, _RESEARCH = "Apache-2.0", "non-commercial research (InsightFace)"
_FLUX_TERMS = "FLUX.1 [dev] non-commercial"
_STABILITY = "Stability AI Community"
_MIT, _KOLORS_TERMS = "MIT", "Kolors licence: research free, commercial use by registration"


@dataclass(frozen=True)
class Download:
    """A published file. name: what users call it. path: its place in the repository. size: as the
    model page says it. directory: below ComfyUI's `models`."""

    name: str
    repository: str
    path: str
    size: str
    licence: str
    directory: str = "ipadapter"

    @property
    def url(self) -> str:
        """The file's address."""
        return f"{_HUB}/{self.repository}/resolve/main/{self.path}"

    @property
    def advice(self) -> str:
        """For messages: what to fetch from where. The folder follows it."""
        return f"Download {self.name} ({self.size}) from {self.url}"


def _a(folder: str, name: str, size: str) -> Download:
    return Download(name, "h94/IP-Adapter", f"{folder}/{name}", size, _APACHE)


def _face(stem: str, size: str, lora: str = "") -> list[Download]:
    repository, name = "h94/IP-Adapter-FaceID", f"ip-adapter-faceid{stem}.bin"
    files = [Download(name, repository, name, size, _RESEARCH)]
    if lora:
        name = f"ip-adapter-faceid{stem}_lora.safetensors"
        files.append(Download(name, repository, name, lora, _RESEARCH, "loras"))
    return files


def _encoder(name: str, repository: str, path: str, size: str, licence: str) -> Download:
    return Download(name, repository, path, size, licence, "clip_vision")


def _text(name: str, size: str) -> Download:
    return Download(name, "comfyanonymous/flux_text_encoders", name, size, _APACHE, "text_encoders")


_COMPOSITION, _PLUS_K = "ostris/ip-composition-adapter", "Kwai-Kolors/Kolors-IP-Adapter-Plus"
_SD15_COMPOSITION = "ip_plus_composition_sd15.safetensors"
_SDXL_COMPOSITION = "ip_plus_composition_sdxl.safetensors"

_ALL = (
    _a("models", "ip-adapter_sd15.safetensors", "44.6 MB"),
    _a("models", "ip-adapter_sd15_light.safetensors", "44.6 MB"),
    _a("models", "ip-adapter_sd15_light_v11.bin", "44.6 MB"),
    _a("models", "ip-adapter_sd15_vit-G.safetensors", "46.2 MB"),
    _a("models", "ip-adapter-plus_sd15.safetensors", "98.2 MB"),
    _a("models", "ip-adapter-plus-face_sd15.safetensors", "98.2 MB"),
    _a("models", "ip-adapter-full-face_sd15.safetensors", "43.6 MB"),
    _a("sdxl_models", "ip-adapter_sdxl.safetensors", "702.6 MB"),
    _a("sdxl_models", "ip-adapter_sdxl_vit-h.safetensors", "698.4 MB"),
    _a("sdxl_models", "ip-adapter-plus_sdxl_vit-h.safetensors", "847.5 MB"),
    _a("sdxl_models", "ip-adapter-plus-face_sdxl_vit-h.safetensors", "847.5 MB"),
    Download(_SD15_COMPOSITION, _COMPOSITION, _SD15_COMPOSITION, "98.2 MB", _APACHE),
    Download(_SDXL_COMPOSITION, _COMPOSITION, _SDXL_COMPOSITION, "847.5 MB", _APACHE),
    Download(
        "noobIPAMARK1_mark1.safetensors",
        "r3gm/noob-ipa",
        "model_G/noobIPAMARK1_mark1.safetensors",
        "1.41 GB",
        "Fair AI Public License 1.0-SD",
    ),
    *_face("_sd15", "96.7 MB", "51.1 MB"),
    *_face("-plus_sd15", "156.6 MB", "51.1 MB"),
    *_face("-plusv2_sd15", "156.6 MB", "51.1 MB"),
    *_face("-portrait_sd15", "64.6 MB"),
    *_face("-portrait-v11_sd15", "64.6 MB"),
    *_face("_sdxl", "1.07 GB", "371.8 MB"),
    *_face("-plusv2_sdxl", "1.49 GB", "371.8 MB"),
    *_face("-portrait_sdxl", "749.8 MB"),
    *_face("-portrait_sdxl_unnorm", "1.01 GB"),
    Download(
        "Kolors-IP-Adapter-Plus.bin",
        _PLUS_K,
        "ip_adapter_plus_general.bin",
        "1.01 GB",
        _KOLORS_TERMS,
    ),
    Download(
        "Kolors-IP-Adapter-FaceID-Plus.bin",
        "Kwai-Kolors/Kolors-IP-Adapter-FaceID-Plus",
        "ipa-faceid-plus.bin",
        "2.39 GB",
        _KOLORS_TERMS,
    ),
    _encoder(
        "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        "h94/IP-Adapter",
        "models/image_encoder/model.safetensors",
        "2.53 GB",
        _MIT,
    ),
    _encoder(
        "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
        "h94/IP-Adapter",
        "sdxl_models/image_encoder/model.safetensors",
        "3.69 GB",
        _MIT,
    ),
    _encoder(
        "clip-vit-large-patch14-336.bin",
        _PLUS_K,
        "image_encoder/pytorch_model.bin",
        "1.71 GB",
        _MIT,
    ),
    _encoder(
        "sigclip_vision_patch14_384.safetensors",
        "Comfy-Org/sigclip_vision_384",
        "sigclip_vision_patch14_384.safetensors",
        "857 MB",
        _APACHE,
    ),
    Download(
        "flux-ip-adapter.safetensors",
        "XLabs-AI/flux-ip-adapter",
        "ip_adapter.safetensors",  # renamed since it was published
        "982 MB",
        _FLUX_TERMS,
    ),
    Download(
        "flux-ip-adapter-v2.safetensors",
        "XLabs-AI/flux-ip-adapter-v2",
        "ip_adapter.safetensors",
        "1.06 GB",
        _APACHE,
    ),
    Download(
        "flux.1-dev-ip-adapter.bin",
        "InstantX/FLUX.1-dev-IP-Adapter",
        "ip-adapter.bin",
        "5.29 GB",
        _FLUX_TERMS,
    ),
    Download(
        "sd3.5-large-ip-adapter.bin",
        "InstantX/SD3.5-Large-IP-Adapter",
        "ip-adapter.bin",
        "1.6 GB",
        _STABILITY,
    ),
    _encoder(
        "clip-vit-large-patch14.safetensors",
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "1.71 GB",
        _MIT,
    ),
    # What the templates name beside them.
    Download(
        "v1-5-pruned-emaonly-fp16.safetensors",
        "Comfy-Org/stable-diffusion-v1-5-archive",
        "v1-5-pruned-emaonly-fp16.safetensors",
        "2.13 GB",
        "CreativeML OpenRAIL-M",
        "checkpoints",
    ),
    Download(
        "sd_xl_base_1.0.safetensors",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "sd_xl_base_1.0.safetensors",
        "6.94 GB",
        "CreativeML OpenRAIL++-M",
        "checkpoints",
    ),
    Download(
        "control_v11p_sd15_canny_fp16.safetensors",
        "comfyanonymous/ControlNet-v1-1_fp16_safetensors",
        "control_v11p_sd15_canny_fp16.safetensors",
        "722.6 MB",
        "CreativeML OpenRAIL",
        "controlnet",
    ),
    Download(
        "lcm-lora-sdv1-5.safetensors",
        "latent-consistency/lcm-lora-sdv1-5",
        "pytorch_lora_weights.safetensors",
        "134.6 MB",
        "CreativeML OpenRAIL++-M",
        "loras",
    ),
    Download(
        "flux1-dev.safetensors",
        "Comfy-Org/flux1-dev",
        "flux1-dev.safetensors",
        "23.8 GB",
        _FLUX_TERMS,
        "diffusion_models",
    ),
    Download(
        "flux1-dev-kontext_fp8_scaled.safetensors",
        "Comfy-Org/flux1-kontext-dev_ComfyUI",
        "split_files/diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors",
        "11.9 GB",
        _FLUX_TERMS,
        "diffusion_models",
    ),
    _text("clip_l.safetensors", "246 MB"),
    _text("t5xxl_fp8_e4m3fn_scaled.safetensors", "5.16 GB"),
    Download(
        "ae.safetensors",
        "Comfy-Org/Lumina_Image_2.0_Repackaged",
        "split_files/vae/ae.safetensors",
        "335 MB",
        _APACHE,
        "vae",
    ),
    Download(
        "flux-canny-controlnet-v3.safetensors",
        "XLabs-AI/flux-controlnet-canny-v3",
        "flux-canny-controlnet-v3.safetensors",
        "1.49 GB",
        _FLUX_TERMS,
        "controlnet",
    ),
    Download(
        "sd3.5_large_fp8_scaled.safetensors",
        "Comfy-Org/stable-diffusion-3.5-fp8",
        "sd3.5_large_fp8_scaled.safetensors",
        "14.9 GB",
        _STABILITY,
        "checkpoints",
    ),
)

DOWNLOADS: dict[str, Download] = {file.name: file for file in _ALL}
