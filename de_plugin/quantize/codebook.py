"""What a codebook is, and the registry that finds one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError


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


Factory = Callable[..., Codebook]
_F = TypeVar("_F", bound=Factory)
_REGISTRY: dict[str, Factory] = {}


def register(name: str) -> Callable[[_F], _F]:
    """Make a codebook's class or factory known under a name; use it as a decorator.

    Args:
        name: what users write.

    Raises:
        ArgumentError: the name is empty or taken.
    """

    def add(factory: _F) -> _F:
        if not name:
            raise ArgumentError(f"register({name!r}): expected a name as in register('uniform')")
        if name in _REGISTRY:
            raise ArgumentError(
                f"register({name!r}): the name is taken by {_REGISTRY[name]!r}; choose another"
            )
        _REGISTRY[name] = factory
        return factory

    return add


def codebooks() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(_REGISTRY))


def codebook(spec: str | Codebook, **options: Any) -> Codebook:
    """Return the codebook that a name stands for.

    Args:
        spec: a registered name, or a codebook, which is returned as it is.
        options: passed to what is registered under the name.

    Raises:
        ArgumentError: the name or an option is unknown or cannot work, or options are given for a
            finished codebook.

    >>> from de_plugin.quantize import codebook
    >>> codebook("kmeans", bits=3).name
    'kmeans'
    """
    if isinstance(spec, str):
        if spec not in _REGISTRY:
            raise ArgumentError(f"codebook={spec!r}: expected one of {', '.join(codebooks())}")
        factory = _REGISTRY[spec]
        try:
            inspect.signature(factory).bind(**options)
        except TypeError as error:
            known = ", ".join(inspect.signature(factory).parameters) or "none"
            raise ArgumentError(
                f"codebook={spec!r}: got options {', '.join(options) or 'none'} ({error}); its options "
                f"are: {known}"
            ) from None
        return factory(**options)
    if isinstance(spec, type) or not isinstance(spec, Codebook):
        raise ArgumentError(
            f"codebook={spec!r}: expected one of {', '.join(codebooks())}, or an object such as KMeans()"
        )
    if options:
        raise ArgumentError(
            f"codebook={spec.name!r}: options {', '.join(options)} are for names; set them on the object "
            "itself"
        )
    return spec
