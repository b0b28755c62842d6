"""What all commands have in common: help with examples, completion, exit codes, JSON and progress."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import typer

from de_plugin import cli, encode, loading, names, terminal
from de_plugin.assess.divergence import divergence
from de_plugin.assess.granularity import granularity
from de_plugin.errors import ArgumentError, MissingDependencyError
from de_plugin.quantize.between import level_recoveries
from de_plugin.quantize.rounding import Rounding
from tests.commands import invoke

CONFIGS = {
    "prune.toml": 'model = "lenet5"',
    "compress.toml": 'model = "lenet5"\noutput = "x.de.safetensors"',
    "report/compare.toml": 'model = "lenet5"\noutput = "report"',
}
"""Files that examples name."""

OWN = ("prune", "criteria", "compress", "load", "inspect", "compare")
PATHS = ("", *OWN, "nni register", "nni unregister", "nni meta")


def found(path: str) -> tuple[Any, Any]:
    """Return a command and the context above it."""
    command: Any = typer.main.get_command(cli._build())
    context = command.make_context("de-plugin", [], resilient_parsing=True)
    for name in path.split():
        try:
            _, command, _ = command.resolve_command(context, [name])
        except MissingDependencyError as error:
            pytest.skip(
                f"{path} is of a host, an optional package that the command line does without; `make test` "
                f"installs it, elsewhere: {error}"
            )
        if hasattr(command, "commands"):
            context = command.make_context(name, [], parent=context, resilient_parsing=True)
    return command, context


def test_no_command_is_forgotten() -> None:
    command, context = found("")
    assert set(command.list_commands(context)) >= {*OWN, "nni"}
    assert set(command.commands) == set(OWN)


def examples(command: Any) -> list[str]:
    return [
        " ".join(part.split()).removeprefix("Example: ")
        for part in re.split(r"\n\s*\n|\f", command.help or "")
        if part.strip().startswith("Example: ")
    ]


@pytest.mark.parametrize("path", PATHS)
def test_help_has_examples_that_can_be_given(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in CONFIGS.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    shown = examples(found(path)[0])
    assert shown
    for example in shown:
        assert example.startswith(f"de-plugin {path}")
        command, context = found("")
        words = shlex.split(example)[1:]
        while hasattr(command, "commands"):
            name, command, words = command.resolve_command(context, words)
            context = command.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("path", PATHS[1:])
def test_every_command_has_json_and_a_text_for_each_option(path: str) -> None:
    command, _ = found(path)
    assert all(param.help for param in command.params)
    assert "--json" in {option for param in command.params for option in param.opts}


def test_exit_codes_are_told() -> None:
    text = " ".join(invoke("--help").stdout.split())
    assert "Exit codes: 0 done; 2 an argument" in text
    assert "130 Ctrl-C" in text
    assert invoke("--no-such-option").exit_code == 2
    assert invoke("prune").exit_code == 2


def test_json_is_valid_whatever_the_numbers_are() -> None:
    value = {"a": [float("nan"), float("inf"), 1.5, torch.tensor(2.5)], 3: (True, None, "x", 10**20)}
    told = json.loads(terminal.document(value), parse_constant=pytest.fail)
    assert told == {"a": [None, None, 1.5, 2.5], "3": [True, None, "x", 10**20]}


def completed(path: str, option: str, incomplete: str) -> list[str]:
    command, context = found(path)
    (param,) = [p for p in command.params if option in p.opts]
    return [item.value for item in param.shell_complete(context, incomplete)]


def test_names_are_completed() -> None:
    assert completed("prune", "--criterion", "") == list(names())
    assert completed("prune", "--criterion", "ma") == ["magnitude"]
    assert completed("compress", "--divergence", "") == list(terminal.DIVERGENCES)
    assert completed("prune", "--granularity", "4") == ["4x4"]
    assert completed("prune", "--scope", "") == ["global", "layer"]
    assert "distill" in completed("prune", "--recovery", "")
    assert completed("prune", "--model", "lenet") == ["lenet300", "lenet5"]
    assert completed("load", "--data", "mn") == ["mnist"]
    assert completed("compare", "--task", "b") == ["bits"]
    assert "all" in completed("compare", "--hosts", "")


def test_what_is_completed_exists() -> None:
    assert [divergence(name).name for name in terminal.DIVERGENCES] == list(terminal.DIVERGENCES)
    assert [granularity(name).name for name in terminal.GRANULARITIES] == list(terminal.GRANULARITIES)
    assert get_args(get_args(Rounding)[0]) == terminal.ROUNDINGS
    assert all(level_recoveries(name) for name in terminal.RETRAININGS)
    with pytest.raises(ArgumentError, match=f"expected one of {', '.join(terminal.RETRAININGS)}, Dist"):
        level_recoveries("prayer")


def test_a_zoo_that_cannot_be_imported_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("PIL")

    monkeypatch.setattr(terminal, "found_zoos", broken)
    assert terminal._of_zoos("MODELS") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script_that_is_shown(tmp_path: Path) -> None:
    program = tmp_path / "de-plugin"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m de_plugin "$@"\n')
    program.chmod(0o755)
    inside = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ.get('PATH', '')}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # the shell is named, not looked for
    }
    script = subprocess.run(
        [sys.executable, "-m", "de_plugin", "--show-completion", "bash"],
        env=inside,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "complete -o default -F _de_plugin_completion de-plugin" in script
    asked = "COMP_WORDS=(de-plugin prune --criterion ma) COMP_CWORD=3\n_de_plugin_completion de-plugin\n"
    done = subprocess.run(
        ["bash", "--norc", "-c", f'{script}\n{asked}echo "${{COMPREPLY[@]}}"'],
        env=inside,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["magnitude"], done.stderr


class Screen(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self) -> bool:
        return True


def seen(monkeypatch: pytest.MonkeyPatch, *arguments: str, stderr: io.StringIO | None = None) -> str:
    """Run a command and return what it wrote to stderr."""
    screen = Screen() if stderr is None else stderr
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stderr", screen)
        cli._build()(args=list(arguments), standalone_mode=False)
    return screen.getvalue()


def test_progress_is_for_terminals_without_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    encode.save("x.de", {"weight": torch.ones(3)})
    for command in (("inspect", "x.de"), ("load", "x.de", "--output", "dense")):
        assert "reading" in seen(monkeypatch, *command)
        assert seen(monkeypatch, *command, "--json") == ""
        assert seen(monkeypatch, *command, stderr=io.StringIO()) == ""
    assert "reading" not in capsys.readouterr().out


def test_work_is_told_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stderr", screen)
        with terminal.working("reading", as_json=False) as tell:
            tell("training [net] on digits", 4, 4)
        assert "training [net] on digits" in screen.getvalue()  # names are no markup
        assert "100%" in screen.getvalue()
        with terminal.working("reading", as_json=False) as tell:
            tell("training", 1, 4)
            tell("pruning")
        with terminal.working("nothing", as_json=False, rank=1):
            pass
    assert "pruning" in screen.getvalue()
    assert "nothing" not in screen.getvalue()


def test_a_zoo_tells_how_its_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def teacher(model: str, data: str, *, progress: Any) -> torch.nn.Module:
        progress(1, 2)
        progress(2, 2)
        return torch.nn.Linear(1, 1)

    zoo = SimpleNamespace(
        MODELS={"net": None},
        DATA={
            "digits": lambda: SimpleNamespace(train_inputs=1, train_labels=2, test_inputs=3, test_labels=4)
        },
        teacher=teacher,
    )
    monkeypatch.setattr(loading, "found_zoos", lambda: [zoo])
    told: list[tuple[str, float, float | None]] = []

    def tell(what: str, done: float = 0, total: float | None = None) -> None:
        told.append((what, done, total))

    _, batches, test = loading.loaded("net", "digits", None, tell)
    assert (batches, test) == ((1, 2), (3, 4))
    assert told == [
        ("reading net", 0, None),
        ("training net on digits", 1, 2),
        ("training net on digits", 2, 2),
        ("reading digits", 0, None),
    ]
