"""ONNX models in the layout of InsightFace's packs, made for tests.

The detector has the inputs and outputs of SCRFD with landmarks (three strides, two anchors) and
finds one known face: a convolution measures how far each place of the picture is from that face,
at the size that it has in the photograph scaled to 640 pixels. The recogniser has ArcFace's inputs
and outputs and is a fixed random projection. The other files of a pack are there with their shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PACKS = {
    "buffalo_l": ("1k3d68", "2d106det", "det_10g", "genderage", "w600k_r50"),
    "antelopev2": ("1k3d68", "2d106det", "genderage", "glintr100", "scrfd_10g_bnkps"),
}
PHOTOGRAPH = 512
DETECTION = 640
STRIDE = 8
# Box, then eyes, nose and corners of the mouth of the astronaut of scikit-image (x, y).
BOX = np.array([[181.7, 78.0], [270.8, 178.0]], dtype=np.float32)
KEYPOINTS = np.array(
    [[203.3, 101.3], [246.7, 103.3], [224.2, 125.0], [205.8, 140.8], [243.0, 141.3]],
    dtype=np.float32,
)
CENTRE = np.array([224.0, 124.0], dtype=np.float32)
CELLS = 11  # the template's side, in strides


def write_pack(folder: Path, pack: str) -> Path:
    """Write the models of a pack, unpacked flat, into `folder`/models/`pack`."""
    target = folder / "models" / pack
    target.mkdir(parents=True)
    for name in PACKS[pack]:
        onnx.save(_MODELS[name](), target / f"{name}.onnx")
    return target


def ensure_pack(folder: Path, pack: str) -> Path:
    """Like `write_pack`, unless the pack is there already."""
    target = folder / "models" / pack
    return target if target.exists() else write_pack(folder, pack)


def astronaut() -> np.ndarray:
    """The photograph, RGB, 512x512."""
    from skimage import data

    return data.astronaut()


def _pooled(image: np.ndarray) -> np.ndarray:
    """Mean colour per cell of the picture as the detector sees it, (3, rows, columns)."""
    import cv2

    size = (DETECTION, DETECTION)
    scaled = cv2.resize(image, size).astype(np.float32)
    values = (scaled - 127.5) / 128.0
    rows = DETECTION // STRIDE
    return values.reshape(rows, STRIDE, rows, STRIDE, 3).mean((1, 3)).transpose(2, 0, 1)


def detector() -> onnx.ModelProto:
    """Scores, boxes and landmarks for strides 8, 16 and 32; only stride 8 ever sees a face."""
    scale = DETECTION / PHOTOGRAPH
    cell = np.round(CENTRE * scale / STRIDE).astype(int)
    anchor = cell * STRIDE
    half = CELLS // 2
    template = _pooled(astronaut())[
        :, cell[1] - half : cell[1] + half + 1, cell[0] - half : cell[0] + half + 1
    ]
    distances = np.stack([anchor - BOX[0] * scale, BOX[1] * scale - anchor]).reshape(-1) / STRIDE
    offsets = ((KEYPOINTS * scale - anchor) / STRIDE).reshape(-1)
    graph = _Graph()
    graph.add("AveragePool", ["image"], "cells", kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2)
    graph.add("Mul", ["cells", "cells"], "squares")
    pads = {"pads": [half] * 4}
    graph.add("Conv", ["cells", graph.constant("template", -2 * template[None])], "cross", **pads)
    graph.add(
        "Conv", ["squares", graph.constant("ones", np.ones_like(template[None]))], "own", **pads
    )
    graph.add("Add", ["cross", "own"], "partial")
    energy = graph.constant("energy", np.array((template**2).sum()))
    graph.add("Add", ["partial", energy], "distance")
    graph.add("Div", ["distance", graph.constant("count", np.array(float(template.size)))], "mean")
    graph.add("Sub", [graph.constant("limit", np.array(0.03)), "mean"], "margin")
    graph.add("Mul", ["margin", graph.constant("slope", np.array(600.0))], "steep")
    graph.add("Sigmoid", ["steep"], "face_map")
    graph.heads(distances, offsets)
    return graph.model("image", [1, 3, "height", "width"])


class _Graph:
    """A graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs: list[tuple[str, int]] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        dtype = value.dtype if value.dtype == np.int64 else np.float32
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"n_{output}", **attributes)
        )
        return output

    def heads(self, distances: np.ndarray, offsets: np.ndarray) -> None:
        """The nine outputs in SCRFD's order: scores, boxes, landmarks, each for three strides."""
        column = self.constant("column", np.array([-1, 1], dtype=np.int64))
        pair = self.constant("pair", np.ones((1, 1, 2)))
        zero = self.constant("zero", np.array(0.0))
        scores = {}
        for stride in (8, 16, 32):
            source = "face_map"
            if stride > 8:
                step = [stride // 8] * 2
                self.add("MaxPool", ["face_map"], f"m{stride}", kernel_shape=step, strides=step)
                source = self.add("Mul", [f"m{stride}", zero], f"z{stride}")
            self.add("Reshape", [source, column], f"column{stride}")
            self.add("Mul", [f"column{stride}", pair], f"anchors{stride}")
            self.add("Reshape", [f"anchors{stride}", column], f"score_{stride}")
            scores[stride] = f"score_{stride}"
            self.outputs.append((scores[stride], 1))
        for name, values in (("bbox", distances), ("kps", offsets)):
            row = self.constant(f"{name}_row", values[None])
            for stride, score in scores.items():
                self.add("Mul", [score, zero], f"{name}_zero_{stride}")
                self.add("Add", [f"{name}_zero_{stride}", row], f"{name}_{stride}")
                self.outputs.append((f"{name}_{stride}", len(values)))

    def model(self, name: str, shape: list) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "made_for_tests",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            [
                helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", columns])
                for output, columns in self.outputs
            ],
            self.constants,
        )
        opset = [helper.make_opsetid("", 13)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


def _projection(side: int, outputs: int, cells: int = 7) -> onnx.ModelProto:
    """(1, 3, side, side) -> (1, outputs): mean colours times a fixed random matrix."""
    generator = np.random.default_rng(outputs)
    features = 3 * (side // cells) ** 2
    graph = _Graph()
    graph.add("AveragePool", ["image"], "cells", kernel_shape=[cells] * 2, strides=[cells] * 2)
    graph.add("Flatten", ["cells"], "flat")
    matrix = graph.constant("matrix", generator.standard_normal((features, outputs)))
    graph.add("MatMul", ["flat", matrix], "out")
    graph.outputs.append(("out", outputs))
    return graph.model("image", [1, 3, side, side])


def recogniser() -> onnx.ModelProto:
    """ArcFace's shape: 112 pixels to 512 numbers."""
    return _projection(112, 512)


_MODELS = {
    "det_10g": detector,
    "scrfd_10g_bnkps": detector,
    "w600k_r50": recogniser,
    "glintr100": recogniser,
    "1k3d68": lambda: _projection(192, 3309, 8),
    "2d106det": lambda: _projection(192, 212, 8),
    "genderage": lambda: _projection(96, 3, 8),
}
