"""A command's options as a TOML file, which makes the same run again."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from de_plugin.encode.files import whole
from de_plugin.errors import ArgumentError, FileError, MissingDependencyError

if sys.version_info >= (3, 11):
    import tomllib
else:
    try:
        import tomli as tomllib
    except ImportError as error:
        raise MissingDependencyError("--config needs tomli: pip install 'de_plugin[cli]'") from error

_EXPECTED: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    Path: "a path in quotes",
}


def read(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in a file.

    Names may be written with dashes. A list may be given as its only element, and a list of texts may hold
    numbers, as on the command line.

    Args:
        path: the file.
        kinds: the type of each option that there is, by name; ``None`` in a union is left out.

    Raises:
        FileError: it cannot be read, or is no TOML.
        ArgumentError: it holds an option that is not known, twice, or of another type.
    """
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(
            f"--config {path}: cannot be read ({error}); expected TOML with a line for each option, "
            'such as: model = "lenet5"'
        ) from error
    options: dict[str, Any] = {}
    for given, value in found.items():
        name = given.replace("-", "_")
        if name not in kinds:
            raise ArgumentError(
                f"--config {path}: {given!r} is no option; there are {', '.join(sorted(kinds))}"
            )
        if name in options:
            raise ArgumentError(f"--config {path}: {given!r} is there twice, also as {name!r}; leave one out")
        try:
            options[name] = _taken(value, kinds[name])
        except TypeError as error:
            raise ArgumentError(f"--config {path}: {given} = {_shown(value)}: expected {error}") from None
    return options


def written(options: Mapping[str, Any]) -> str:
    """Return options as TOML; those that are None are left out.

    >>> print(written({"model": "lenet5", "sparsity": [0.5, 0.9], "checkpoint": None}))
    model = "lenet5"
    sparsity = [0.5, 0.9]
    """
    return "\n".join(f"{name} = {_value(value)}" for name, value in options.items() if value is not None)


def save(path: Path, options: Mapping[str, Any], comment: str = "") -> None:
    """Write options to a file, whole or not at all.

    Args:
        path: the file.
        options: by name; those that are None are left out.
        comment: of one line, for people.

    Raises:
        FileError: the file cannot be written, or an option is not text that a file can hold.
    """
    try:
        head = f"# {comment}\n" if comment else ""
        text = f"{head}{written(options)}\n".encode()
    except UnicodeEncodeError as error:
        raise FileError(f"{path} cannot be written ({error}); TOML holds UTF-8 alone") from error
    with whole(path) as draft:
        draft.write_bytes(text)


def _taken(value: Any, kind: Any) -> Any:
    """Return a value as an option takes it.

    Raises:
        TypeError: it is of another kind; the message says of which it must be.
    """
    if get_origin(kind) is not list:  # perhaps a union with None
        kind = next((x for x in get_args(kind) if x is not type(None)), kind)
    if get_origin(kind) is list:
        (element,) = get_args(kind)
        parts = value if isinstance(value, list) else [value]
        if element is str:
            parts = [str(x) if isinstance(x, int | float) and not isinstance(x, bool) else x for x in parts]
        try:
            return [_taken(part, element) for part in parts]
        except TypeError as error:
            raise TypeError(f"a list, each of it {error}") from None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is (str if kind is Path else kind):
        return value
    raise TypeError(_EXPECTED[kind])


def _shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    return f"{value!r:.60}" if not isinstance(value, bool) else str(value).lower()


def _value(value: Any) -> str:
    """Return a value as TOML: texts, numbers and lists are written as in JSON, but for one character."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
