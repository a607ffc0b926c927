"""What only a file's name can tell of an adapter that has the shapes of another."""

from __future__ import annotations

from ..adapters.families import Family
from ..adapters.spec import AdapterSpec

# (family by its shapes, letters that the path has, what to say)
_REMARKS = (
    (
        Family.PORTRAIT_UNNORM,
        "instantid",
        "The name says InstantID, which has the shapes of this family: InstantID is made to work "
        "together with its own ControlNet, which reads the face tokens too. This pack applies the "
        "adapter alone, so the likeness is weaker; the nodes made for InstantID use both.",
    ),
)


def remark(spec: AdapterSpec, name: str) -> str:
    """What the user should know of an adapter with this name; empty for most.

    name: its path below the model folder, as lists have it.
    """
    letters = "".join(filter(str.isalnum, name.lower()))
    found = (text for family, sign, text in _REMARKS if family is spec.family and sign in letters)
    return next(found, "")
