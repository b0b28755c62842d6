"""DETuner under a name in NNI's list of algorithms: registered, taken back, and `de-plugin nni`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from de_plugin.errors import ArgumentError, MissingDependencyError

NAME = "DirectedEvolution"
"""What ``tuner.name`` of an experiment's configuration says; ``DE`` for short."""

META: dict[str, Any] = {
    "algoType": "tuner",
    "builtinName": NAME,
    "alias": "DE",
    "className": "de_plugin.adapters.nni.tuner.DETuner",
    "acceptClassArgs": True,
}
"""The meta file's content."""


def write_meta(path: Path | str) -> Path:
    """Write the meta file that ``nnictl algo register --meta PATH`` takes, and return its path.

    Raises:
        ArgumentError: the file cannot be written.
    """
    target = Path(path)
    try:
        target.write_text(json.dumps(META, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    except OSError as error:
        raise ArgumentError(f"path={str(path)!r}: {error.strerror}; choose another file") from error
    return target


def register_tuner() -> bool:
    """Put the tuner on NNI's list of algorithms; needs no ``nnictl``.

    Returns:
        Whether the list has changed: False where the tuner was on it already.

    Raises:
        ArgumentError: another algorithm has its name or its alias.
        MissingDependencyError: NNI is not installed.
    """
    host = _host()
    new = host.AlgoMeta.load({**META, "nniVersion": _version()})
    for name in (META["builtinName"], META["alias"]):
        old = host.get_algo_meta(name)
        if old is None or old == new:
            continue
        if old.class_name != new.class_name:
            raise ArgumentError(
                f"{name}: NNI has another algorithm of this name, {old.class_name}; take it off first: "
                f"nnictl algo unregister {old.name}"
            )
    if host.get_algo_meta(NAME) == new:
        return False
    host.register_algo_meta(new)
    return True


def unregister_tuner() -> bool:
    """Take the tuner off NNI's list of algorithms; the others stay.

    Returns:
        Whether the list has changed: False where the tuner was not on it.

    Raises:
        MissingDependencyError: NNI is not installed.
    """
    host = _host()
    old = host.get_algo_meta(NAME)
    if old is None or old.class_name != META["className"]:
        return False
    host.unregister_algo_meta(old.name)
    return True


def command() -> Any:
    """Return the ``nni`` part of the command line, a typer app.

    Raises:
        MissingDependencyError: typer or NNI is not installed.
    """
    import typer

    _host()
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, help="NNI: the tuner DirectedEvolution (DE) by its name."
    )

    @app.command()
    def register() -> None:
        """Put the tuner on NNI's list: then `tuner: {name: DE}` works in an experiment."""
        done = "registered" if register_tuner() else "was registered already"
        typer.echo(f"{NAME} (DE) {done} in {_location()}")

    @app.command()
    def unregister() -> None:
        """Take the tuner off NNI's list."""
        done = "taken off" if unregister_tuner() else "was not on the list of"
        typer.echo(f"{NAME} (DE) {done} {_location()}")

    @app.command()
    def meta(path: Path) -> None:
        """Write the meta file for `nnictl algo register --meta PATH`."""
        typer.echo(str(write_meta(path)))

    return app


def _host() -> Any:
    try:
        from nni.tools import package_utils
    except ImportError as error:
        raise MissingDependencyError(
            f"registering needs {error.name}: pip install 'de_plugin[nni]'"
        ) from error
    return package_utils


def _version() -> str:
    import nni

    return str(nni.__version__)


def _location() -> str:
    from nni.runtime.config import get_config_file

    return str(get_config_file("registered_algorithms.yml"))
