"""Shape aliases used in every signature of the engine; they document, the code checks where data enters."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from torch import Tensor

Mask: TypeAlias = Annotated[Tensor, "bool, (units,), True = kept"]
Masks: TypeAlias = Annotated[Tensor, "bool, (candidates, units), True = kept"]
Scores: TypeAlias = Annotated[Tensor, "float, (units,), lowest go first, +inf = never"]
Values: TypeAlias = Annotated[Tensor, "float, (candidates,)"]
PyTree: TypeAlias = Any
"""Nested tuples, lists and dicts with tensors at the leaves."""
