"""DETuner under a name in NNI's list of algorithms: registered, taken back, and `de-plugin nni`."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from de_plugin.encode.files import whole
from de_plugin.errors import ArgumentError, FileError, MissingDependencyError

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
    """Write the meta file that ``nnictl algo register --meta PATH`` takes, whole, and return its path.

    Raises:
        ArgumentError: the file cannot be written.
    """
    target = Path(path)
    try:
        with whole(target) as draft:
            draft.write_text(json.dumps(META, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    except FileError as error:
        raise ArgumentError(f"path={str(path)!r}: {error}; choose another file") from error
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
    with _uninterrupted():
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
    with _uninterrupted():
        host.unregister_algo_meta(old.name)
    return True


def command() -> Any:
    """Return the ``nni`` part of the command line, a typer app.

    Raises:
        MissingDependencyError: typer or NNI is not installed.
    """
    import typer

    from de_plugin import terminal

    _host()
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, help="NNI: the tuner DirectedEvolution (DE) by its name."
    )

    json_option: Any = typer.Option(False, "--json", help="Print one JSON document.")

    def say(changed: bool, done: str, as_json: bool) -> None:
        place = _location()
        if as_json:
            facts = {"name": NAME, "alias": META["alias"], "changed": changed, "file": place}
            typer.echo(terminal.document(facts))
        else:
            typer.echo(f"{NAME} (DE) {done} {place}")

    @app.command()
    def register(
        meta_file: Path | None = typer.Option(None, help="Write the meta file here as well."),
        as_json: bool = json_option,
    ) -> None:
        """Put the tuner on NNI's list: then `tuner: {name: DE}` works in an experiment.

        Example: de-plugin nni register
        """
        if meta_file is not None:
            write_meta(meta_file)
        changed = register_tuner()
        say(changed, "registered in" if changed else "was registered already in", as_json)

    @app.command()
    def unregister(as_json: bool = json_option) -> None:
        """Take the tuner off NNI's list.

        Example: de-plugin nni unregister --json
        """
        changed = unregister_tuner()
        say(changed, "taken off" if changed else "was not on the list of", as_json)

    @app.command()
    def meta(
        path: Path = typer.Argument(help="The file; an old one is replaced."), as_json: bool = json_option
    ) -> None:
        """Write the meta file for `nnictl algo register --meta PATH`.

        Example: de-plugin nni meta directed_evolution.yml
        """
        written = str(write_meta(path))
        typer.echo(terminal.document({"file": written}) if as_json else written)

    return app


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done: NNI writes its list in place, and half a list is none."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)


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
