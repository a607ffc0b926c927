"""Kinds of problems that a user can do something about, and the codes that end their messages."""

from __future__ import annotations

import re
from enum import Enum
from typing import TypeVar

_Error = TypeVar("_Error", bound=Exception)


class Problem(str, Enum):
    """What can be wrong with files, wires and settings. Programming mistakes have no code.

    The page says in the user's language what a code means and what to do: locales/*/main.json,
    "imagePromptProblems".
    """

    FILE_MISSING = "file-missing"
    FILE_BROKEN = "file-broken"
    WRONG_FILE = "wrong-file"
    PICKLE_REFUSED = "pickle-refused"
    NO_FITTING_FILE = "no-fitting-file"
    SEVERAL_FILES = "several-files"
    WRONG_BASE = "wrong-base"
    WRONG_ENCODER = "wrong-encoder"
    UNSUPPORTED = "unsupported"
    WRONG_INPUT = "wrong-input"
    BAD_VALUE = "bad-value"
    BAD_NAME = "bad-name"
    WEIGHTS_TEXT = "weights-text"
    BAD_MASK = "bad-mask"
    BAD_PICTURE = "bad-picture"
    EMBEDS_MISMATCH = "embeds-mismatch"
    NO_FACE = "no-face"
    FACE_MODELS = "face-models"
    FACE_LIBRARY = "face-library"
    TRAINING_DATA = "training-data"
    TRAINING_RESUME = "training-resume"
    TRAINING_FAILED = "training-failed"
    WRITE_FAILED = "write-failed"
    OTHER_PACK = "other-pack"

    def __call__(self, text: str, kind: type[_Error] = ValueError) -> _Error:
        """An exception to raise, whose message is `text` and the code."""
        return kind(f"{text} [{self.value}]")


def plain_text(error: BaseException) -> str:
    """An exception's message without its code, for reports and for messages that quote it."""
    codes = "|".join(problem.value for problem in Problem)
    return re.sub(rf"\s+\[(?:{codes})\]$", "", str(error))
