"""Commands that installed adapters add to `de-plugin`, found by entry point and loaded when asked for."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from de_plugin.errors import DEError, MissingDependencyError

GROUP = "de_plugin.cli"
"""Each entry point names a function that returns a typer app; its name is the command's and the extra's."""


def extended(rank: int = 0) -> Any:
    """Return the class of a typer group that has, beside its own, the commands of installed adapters.

    No adapter is imported before one of its commands runs: the list of commands names them all the same.
    Ctrl-C in any of the commands is told in one line.

    Args:
        rank: of this process among those that share the work; the first alone says something.
    """
    import typer
    from typer.core import TyperGroup

    from de_plugin.terminal import interruptible

    found = {entry.name: entry for entry in entry_points(group=GROUP)}

    class Extended(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            own = super().list_commands(ctx)
            return [*own, *(name for name in sorted(found) if name not in own)]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            own = super().get_command(ctx, cmd_name)
            if own is not None or cmd_name not in found:
                return own
            named = typer.Typer(add_completion=False)
            named.command(cmd_name, help=f"See `de-plugin {cmd_name} --help`.")(lambda: None)
            return typer.main.get_command(named)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name = args[0] if args else ""
            if name in found and super().get_command(ctx, name) is None:
                command = typer.main.get_command(_loaded(found[name]))
                command.name = name
                self.add_command(command, name)
            return super().resolve_command(ctx, args)

        def invoke(self, ctx: Any) -> Any:
            with interruptible(lambda: "every file is whole", rank):
                return super().invoke(ctx)

    return Extended


def _loaded(entry: EntryPoint) -> Any:
    try:
        return entry.load()()
    except DEError:
        raise
    except ImportError as error:
        package = entry.dist.name if entry.dist is not None else "de_plugin"
        raise MissingDependencyError(
            f"de-plugin {entry.name} needs {error.name or error}: pip install '{package}[{entry.name}]'"
        ) from error
