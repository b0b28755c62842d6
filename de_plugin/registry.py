"""Things that users write by name: criteria, codebooks and others of one kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from de_plugin.errors import ArgumentError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Factories of one kind, by the names that users write.

    Args:
        what: the kind, as its argument is called.
        kind: the protocol that the things keep to.
        example: how one is written, by name and as an object.
    """

    def __init__(self, what: str, kind: type[Any], example: tuple[str, str]) -> None:
        self._what = what
        self._kind = kind
        self._example = example
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Make a class or factory known under a name; use it as a decorator.

        Args:
            name: what users write; several names may stand for the same class.

        Raises:
            ArgumentError: the name is empty or taken.
        """

        def add(factory: F) -> F:
            if not name:
                raise ArgumentError(
                    f"register({name!r}): expected a name as in register({self._example[0]!r})"
                )
            if name in self._factories:
                raise ArgumentError(
                    f"register({name!r}): the name is taken by {self._factories[name]!r}; choose another"
                )
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> tuple[str, ...]:
        """Return the registered names, sorted."""
        return tuple(sorted(self._factories))

    def describe(self) -> dict[str, str]:
        """Return the first line of each docstring, by name."""
        return {n: (inspect.getdoc(self._factories[n]) or "").partition("\n")[0] for n in self.names()}

    def resolve(self, spec: str | T, **options: Any) -> T:
        """Return what a name stands for.

        Args:
            spec: a registered name, or a thing of the kind, which is returned as it is.
            options: passed to what is registered under the name.

        Raises:
            ArgumentError: the name or an option is unknown, an option is missing or has a value that
                cannot work, or options are given for a finished thing.
        """
        what, known = self._what, ", ".join(self.names())
        if isinstance(spec, str):
            if spec not in self._factories:
                raise ArgumentError(f"{what}={spec!r}: expected one of {known}")
            factory = self._factories[spec]
            try:
                inspect.signature(factory).bind(**options)
            except TypeError as error:
                its = ", ".join(inspect.signature(factory).parameters) or "none"
                raise ArgumentError(
                    f"{what}={spec!r}: got options {', '.join(options) or 'none'} ({error}); its options "
                    f"are: {its}"
                ) from None
            return factory(**options)
        if isinstance(spec, type) or not isinstance(spec, self._kind):
            raise ArgumentError(
                f"{what}={spec!r}: expected one of {known}, or an object such as {self._example[1]}"
            )
        if options:
            name = getattr(spec, "name", spec)
            raise ArgumentError(
                f"{what}={name!r}: options {', '.join(options)} are for names; set them on the object itself"
            )
        return spec
