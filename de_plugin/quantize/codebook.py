"""What a codebook is, and the registry that finds one by name."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.registry import Registry


@runtime_checkable
class Codebook(Protocol):
    """Turns the survivors of a weight into symbols of a few levels.

    Symbol 0 is exactly zero and stands for what was pruned. A survivor gets it only where `zeroes` says
    so. The same arguments give the same result; nothing is changed in place.
    """

    @property
    def name(self) -> str:
        """Short name for tables."""

    @property
    def zeroes(self) -> bool:
        """Whether a survivor may become zero."""

    def fit(self, weight: Tensor, kept: Tensor, importance: Tensor | None = None) -> Quantized:
        """Quantize one tensor.

        Args:
            weight: finite floats of any shape and precision.
            kept: bool, of weight's shape; False was pruned. A weight that is exactly zero counts as
                pruned, whatever `kept` says.
            importance: the error's weights, of weight's shape, finite and >= 0; None weighs all alike.
                Only ratios count.

        Returns:
            The symbols and their levels; levels that no survivor uses may be left out.

        Raises:
            ArgumentError: shapes differ, or values are not finite.
        """


_REGISTRY: Registry[Codebook] = Registry("codebook", Codebook, ("uniform", "KMeans()"))
register = _REGISTRY.register
codebooks = _REGISTRY.names


def codebook(spec: str | Codebook, **options: Any) -> Codebook:
    """Return the codebook that a name stands for.

    Args:
        spec: a registered name, or a codebook, which is returned as it is.
        options: passed to what is registered under the name.

    Raises:
        ArgumentError: the name or an option is unknown or cannot work, or options are given for a
            finished codebook.

    >>> codebook("kmeans", bits=3).name
    'kmeans'
    """
    return _REGISTRY.resolve(spec, **options)
