"""The shapes: signed distances in coordinates where the shape's radius is 1, y downwards."""

import numpy as np


def polar_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to a five-pointed star: fold into one half point, then the line tip to notch."""
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    tip, notch = np.array([1.08, 0.0]), 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = notch - tip
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (u - tip[0]) * normal[0] + (v - tip[1]) * normal[1]


def moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1, 0.82 - np.hypot(x - 0.5, y))


SHAPE_DISTANCES = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.86,
    "triangle": lambda x, y: np.maximum(y - 0.75, 0.866 * np.abs(x) - 0.5 * y - 0.5),
    "star": polar_star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.26,
    "cross": lambda x, y: np.minimum(
        np.maximum(np.abs(x) - 1, np.abs(y) - 0.33), np.maximum(np.abs(x) - 0.33, np.abs(y) - 1)
    ),
    "diamond": lambda x, y: (1.25 * np.abs(x) + np.abs(y) - 1.05) / 1.6,
    "moon": moon,
}

SHAPES = tuple(SHAPE_DISTANCES)
