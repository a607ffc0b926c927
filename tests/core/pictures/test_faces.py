"""Faces with the real InsightFace on a real photograph (the ONNX models are made for the test)."""

from __future__ import annotations

import builtins
import math
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ipadapter.errors import plain_text
from ipadapter.pictures import faces
from ipadapter.pictures.faces import CROP_SIZES, DETECTION_SIZES, PACKS, find_faces, load_faces
from ipadapter.pictures.images import as_rgb


def nobody() -> Tensor:
    return torch.full((1, 512, 512, 3), 0.5)


@pytest.mark.parametrize("pack", PACKS)
def test_packs_load_with_detection_and_recognition_only(models: Path, pack: str) -> None:
    pytest.importorskip("insightface")
    loaded = load_faces(models, pack)
    assert set(loaded.models) == {"detection", "recognition"}


@pytest.mark.parametrize("size", CROP_SIZES.values())
def test_face_of_the_photograph(analysis: Any, photograph: Tensor, size: int) -> None:
    from tools.face_models import KEYPOINTS

    found = find_faces(analysis, photograph, size)
    assert found.raw.shape == (1, 512) and found.crops.shape == (1, size, size, 3)
    assert found.indices == (0,)
    assert found.normed.norm(dim=-1).item() == pytest.approx(1, abs=1e-6)
    assert found.raw.norm() > 2
    assert torch.equal(found.embeds(raw=True), found.raw)
    assert torch.equal(found.embeds(raw=False), found.normed)
    # The crop shows the eyes where ArcFace's template has them, in RGB.
    middle = found.crops[0, size // 4 : -size // 4, size // 4 : -size // 4].mean((0, 1))
    eye_y, eye_x = KEYPOINTS[0][::-1].astype(int)
    around = photograph[0, eye_y : eye_y + 40, eye_x : eye_x + 43].mean((0, 1))
    assert middle[0] > middle[1] > middle[2]  # skin
    assert (middle - around).abs().max() < 0.1


def test_embedding_is_the_librarys_own(analysis: Any, photograph: Tensor) -> None:
    bgr = (photograph[0] * 255).round().to(torch.uint8).flip(-1).contiguous().numpy()
    (face,) = analysis.get(bgr)
    found = find_faces(analysis, photograph, 224)
    assert (found.raw[0] - torch.from_numpy(face.embedding)).abs().max() < 1e-5
    assert (found.normed[0] - torch.from_numpy(face.normed_embedding)).abs().max() < 1e-6


def test_detection_leaves_the_shared_detector_as_it_was(analysis: Any, photograph: Tensor) -> None:
    before = analysis.det_model.input_size, list(getattr(analysis.det_model, "input_sizes", []))
    find_faces(analysis, photograph[:, 20:240, 110:330], 224)
    with pytest.raises(ValueError, match="no face found"):
        find_faces(analysis, nobody(), 224)
    after = analysis.det_model.input_size, list(getattr(analysis.det_model, "input_sizes", []))
    assert before == after


@pytest.mark.parametrize(("left", "top", "side", "border"), [(110, 20, 220, 0), (155, 60, 140, 70)])
def test_large_faces_are_found_at_smaller_sizes_or_with_a_border(
    analysis: Any, photograph: Tensor, left: int, top: int, side: int, border: int
) -> None:
    from tools.face_models import KEYPOINTS

    part = photograph[:, top : top + side, left : left + side]
    assert len(find_faces(analysis, part, 224).raw) == 1
    found = faces._largest_face(analysis, faces._to_bgr(part[0]))
    assert found and found.picture.shape == (side + 2 * border, side + 2 * border, 3)
    offset = [left - border, top - border]
    assert abs(found.keypoints + offset - KEYPOINTS).max() < 16


def test_pictures_come_through_the_same_door_as_everywhere(
    analysis: Any, photograph: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever an IMAGE holds, the detector is given what the image encoder would see."""
    plain = find_faces(analysis, photograph, 224).raw
    levels = (photograph * 255).round()
    alpha = torch.ones(1, 512, 512, 1)
    same = {
        "opaque": torch.cat([photograph, alpha], dim=-1),
        "no batch axis": photograph[0],
        "uint8": levels.to(torch.uint8),
        "int64 levels": levels.long(),
        "float levels": levels,
        "uint8 with alpha": torch.cat([levels, 255 * alpha], dim=-1).to(torch.uint8),
        "double": photograph.double(),
    }
    for name, image in same.items():
        assert torch.allclose(find_faces(analysis, image, 224).raw, plain, atol=1e-4), name
    assert caplog.text.count("divided by 255") == 2


def test_hidden_colours_are_not_seen(analysis: Any, photograph: Tensor) -> None:
    transparent = torch.cat([photograph, torch.zeros(1, 512, 512, 1)], dim=-1)
    with pytest.raises(ValueError, match="no face found"):
        find_faces(analysis, transparent, 224)
    grey = photograph.mean(-1, keepdim=True)
    both = torch.cat([grey, torch.ones_like(grey)], dim=-1)  # grey and alpha, not red and green
    shown, expected = (faces._to_bgr(as_rgb(image)[0]) for image in (both, grey))
    assert (shown == expected).all() and (shown[..., 0] == shown[..., 2]).all()


def test_broken_pixels_are_refused(analysis: Any, photograph: Tensor) -> None:
    broken = photograph.clone()
    broken[0, 5, 5, 0] = float("nan")
    with pytest.raises(ValueError, match="image_negative: .*image 0 of 1 has NaN"):
        find_faces(analysis, broken, 224, name="image_negative")


class FixedDetector:
    """Two boxes with their own landmarks; keeps the sizes it was asked for."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int] | None] = []

    def detect(
        self,
        picture: Any,
        input_size: tuple[int, int] | None = None,
        max_num: int = 0,
        metric: str = "default",
    ) -> tuple[Any, Any]:
        """The signature of InsightFace 0.7.3, which has no further parameters."""
        import numpy as np

        self.sizes.append(input_size)
        boxes = np.array([[0, 0, 40, 40, 0.99], [100, 100, 300, 300, 0.6]], dtype=np.float32)
        points = np.array([[0, 0], [20, 0], [10, 10], [2, 20], [18, 20]], dtype=np.float32)
        return boxes, np.stack([points, points * 5 + 100])


def test_largest_face_wins_over_the_surest(analysis: Any, photograph: Tensor) -> None:
    seen = []

    class Recogniser:
        def get(self, picture: Any, face: Any) -> None:
            import numpy as np

            seen.append(face.kps)
            face.embedding = np.ones(512, dtype=np.float32)

    stand_in = SimpleNamespace(det_model=FixedDetector(), models={"recognition": Recogniser()})
    find_faces(stand_in, photograph, 224)
    assert seen[0][0].tolist() == [100, 100]
    assert stand_in.det_model.sizes == [(640, 640)]


def test_policies_for_pictures_without_a_face(analysis: Any, photograph: Tensor) -> None:
    batch = torch.cat([nobody(), photograph, nobody(), photograph.flip(0)])
    with pytest.raises(ValueError, match=r"image: no face found in image 1, 3 of 4"):
        find_faces(analysis, batch, 224)
    skipped = find_faces(analysis, batch, 224, "skip")
    assert skipped.indices == (1, 3) and len(skipped.raw) == 2
    reused = find_faces(analysis, batch, 224, "reuse previous")
    assert reused.indices == (0, 1, 2, 3)
    assert all(torch.equal(row, skipped.raw[0]) for row in reused.raw)


@pytest.mark.parametrize("policy", ["error", "skip", "reuse previous"])
def test_no_face_at_all(analysis: Any, policy: str) -> None:
    with pytest.raises(ValueError, match="no face found") as caught:
        find_faces(analysis, nobody(), 224, policy, name="image_negative")
    assert str(caught.value) == (
        "image_negative: no face found in the picture (looked at sizes 640 to 256, and with a "
        "border added). Use a photograph of one clear face; drawn and anime faces are not "
        "recognised. [no-face]"
    )
    with pytest.raises(ValueError, match="in any of the 3 pictures"):
        find_faces(analysis, nobody().repeat(3, 1, 1, 1), 224, policy)


def test_wrong_inputs(analysis: Any) -> None:
    with pytest.raises(ValueError, match="InsightFace is not connected"):
        find_faces(None, nobody(), 224)
    with pytest.raises(ValueError, match=r"at least one image, got \(0, 8, 8, 3\)"):
        find_faces(analysis, torch.zeros(0, 8, 8, 3), 224)
    with pytest.raises(ValueError, match="got NoneType"):
        find_faces(analysis, cast("Tensor", None), 224)


def test_detection_sizes() -> None:
    assert DETECTION_SIZES == (640, 576, 512, 448, 384, 320, 256)


# --- model packs


def pack_error(root: Path) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        load_faces(root, "buffalo_l")
    return plain_text(caught.value).replace(str(root), "insightface")


TREE = (
    "Expected:\n"
    "  insightface/models/buffalo_l\n"
    "    1k3d68.onnx\n"
    "    2d106det.onnx\n"
    "    det_10g.onnx\n"
    "    genderage.onnx\n"
    "    w600k_r50.onnx\n"
    "Download buffalo_l.zip from the InsightFace releases and unpack it flat into that folder. The "
    "models are for non-commercial research."
)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("", "there is no such folder"),
        ("models/buffalo_l/readme.txt", "the folder has no .onnx files"),
        (
            "models/buffalo_l/buffalo_l/det_10g.onnx",
            "the models are one folder too deep, in insightface/models/buffalo_l/buffalo_l; "
            "move them up",
        ),
        (
            "buffalo_l/det_10g.onnx",
            "the models are in insightface/buffalo_l, which lacks the folder 'models' in between",
        ),
        (
            "models/det_10g.onnx",
            "the models lie loose in insightface/models; put them into a folder buffalo_l",
        ),
        ("models/buffalo_l.zip", "insightface/models/buffalo_l.zip is not unpacked yet"),
    ],
)
def test_pack_in_the_wrong_place(
    tmp_path: Path, place: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", None)  # whoever tries to download fails otherwise
    if place:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    assert pack_error(tmp_path) == (
        f"The InsightFace model pack buffalo_l is missing or incomplete: {found}.\n{TREE}"
    )


@pytest.mark.parametrize("name", ["../out", "..", "a/../../out", "..\\out", "C:\\out", "con", ""])
def test_a_pack_lies_below_the_models(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "insightface", tmp_path / "out"
    for folder in (outside, root / "out", root / "models" / "pack"):
        folder.mkdir(parents=True)
        (folder / "det_10g.onnx").write_bytes(b"onnx" * 30)
    for bad in (name, str(outside)):
        with pytest.raises(ValueError, match="out of its folder|reserves|empty one"):
            faces.check_pack(root, bad)
    assert faces.check_pack(root, "pack") == root / "models" / "pack"


def test_a_pack_may_lie_on_another_disk(tmp_path: Path) -> None:
    """As with all model folders, the links of the folder's owner are followed."""
    root, outside = tmp_path / "insightface", tmp_path / "out"
    outside.mkdir()
    (outside / "det_10g.onnx").write_bytes(b"onnx" * 30)
    (root / "models").mkdir(parents=True)
    try:
        (root / "models" / "linked").symlink_to(outside, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets no ordinary user make links")
    assert faces.check_pack(root, "linked") == root / "models" / "linked"


def test_incomplete_and_damaged_packs(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("insightface")
    for left_out, message in (("det_10g", "no face detector"), ("w600k_r50", "no face recogniser")):
        target = tmp_path / left_out / "models" / "buffalo_l"
        shutil.copytree(models / "models" / "buffalo_l", target)
        (target / f"{left_out}.onnx").unlink()
        with pytest.raises(ValueError, match=message):
            load_faces(tmp_path / left_out, "buffalo_l")
    (target / "w600k_r50.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"w600k_r50\.onnx is a Git LFS pointer"):
        load_faces(tmp_path / "w600k_r50", "buffalo_l")


# --- the library itself


def without(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make `import insightface...` fail with this error."""
    for name in [key for key in sys.modules if key.split(".")[0] == "insightface"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def guarded(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "insightface":
            raise error
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", guarded)


def test_not_installed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, ModuleNotFoundError("No module named 'insightface'", name="insightface"))
    with pytest.raises(ImportError, match="insightface is not installed, and FaceID") as caught:
        load_faces(models, "buffalo_l")
    assert f"{sys.executable} -m pip install insightface onnxruntime" in str(caught.value)
    assert faces.environment().startswith("INSIGHTFACE  insightface is not installed")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("numpy.dtype size changed. Expected 96 from C header, got 88"),
        ModuleNotFoundError("No module named 'onnx'", name="onnx"),
        ImportError("DLL load failed"),
    ],
)
def test_installed_but_broken(
    models: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    without(monkeypatch, error)
    with pytest.raises(ImportError, match="installed but does not load") as caught:
        load_faces(models, "buffalo_l")
    text = str(caught.value)
    assert str(error) in text and "Versions: Python 3" in text and "numpy 2" in text


def test_environment_line(analysis: Any) -> None:
    assert faces.environment().startswith("INSIGHTFACE  works (Python 3")
    assert math.isfinite(len(faces.environment()))
