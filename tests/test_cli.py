"""The command line: what it prints, and how it says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import de_plugin
from de_plugin import cli
from de_plugin.errors import DEError
from tests.commands import invoke, user_module

SOURCE = """
import torch

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

def data():
    return torch.randn(400, 6, generator=torch.Generator().manual_seed(0))

def number():
    return 7

def talkative():
    print("drawing weights")
    return model()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with user_module("de_cli_subject", SOURCE, tmp_path, monkeypatch) as name:
        yield name


def pruned(module: str, *more: str) -> Result:
    return invoke(
        "prune", "--model", f"{module}:model", "--data", f"{module}:data", "--criterion", "magnitude", *more
    )


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == de_plugin.__version__


def test_criteria_as_json_and_as_a_table() -> None:
    known = json.loads(invoke("criteria", "--json").stdout)
    assert set(known) == set(de_plugin.names())
    assert all(known.values())
    assert "magnitude" in invoke("criteria").stdout


def test_prune_prints_the_report_as_json(module: str) -> None:
    result = pruned(module, "--sparsity", "0.75", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["sparsity"] == 0.75
    assert report["criterion"] == "magnitude"
    assert [x["name"] for x in report["layers"]] == ["0.weight", "2.weight"]


def test_prune_prints_a_table_and_writes_weights(module: str, tmp_path: Path) -> None:
    target = tmp_path / "pruned.safetensors"
    result = pruned(module, "--sparsity", "0.5", "--output", str(target))
    assert result.exit_code == 0, result.output
    assert "50.00% of units" in result.stdout
    weights = load_file(target)
    assert sum(int((weights[n] == 0).sum()) for n in ("0.weight", "2.weight")) == 40


def test_prune_takes_every_option(module: str) -> None:
    result = pruned(
        module,
        *("--granularity", "channel", "--scope", "layer", "--cycles", "2", "--recovery", "leastsquares"),
        *("--samples", "30", "--evaluations", "1000", "--seconds", "100", "--seed", "3"),
        *("--sparsity", "0.25", "--json"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [x["zeroed"] for x in report["layers"]] == [2, 1]
    assert len(report["history"]) == 2


def test_patterns_choose_what_is_pruned(module: str) -> None:
    chosen = json.loads(pruned(module, "--include", "0", "--include", "2", "--exclude", "2", "--json").stdout)
    assert [x["name"] for x in chosen["layers"]] == ["0.weight"]


def test_recoveries_follow_each_other_and_finish(module: str) -> None:
    plain = json.loads(pruned(module, "--json", "--divergence", "mse").stdout)
    both = ("--recovery", "bias", "--recovery", "leastsquares")
    repaired = json.loads(pruned(module, *both, "--json", "--divergence", "mse").stdout)
    assert repaired["divergence"] < plain["divergence"]
    last = ("--recovery", "bias", "--finish", "distill")
    finished = json.loads(pruned(module, *last, "--json", "--divergence", "mse").stdout)
    assert finished["divergence"] < finished["history"][-1]["divergence"]


def told(result: Result) -> dict[str, Any]:
    """Return a printed report without what differs from run to run."""
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    report.pop("seconds")
    for cycle in report["history"]:
        cycle.pop("seconds")
    return report


def test_a_saved_config_makes_the_same_run(module: str) -> None:
    more = ("--criterion", "de", "--sparsity", "0.7", "--recovery", "bias", "--recovery", "leastsquares")
    first = told(
        pruned(
            module,
            *(*more, "--cycles", "2", "--evaluations", "300", "--seed", "3", "--exclude", "2"),
            *("--resume", "kept", "--output", "a.safetensors", "--save-config", "run.toml", "--json"),
        )
    )
    weights = Path("a.safetensors").read_bytes()
    Path("a.safetensors").unlink()
    assert told(invoke("prune", "--config", "run.toml", "--json")) == first
    assert Path("a.safetensors").read_bytes() == weights
    again = told(
        invoke("prune", "--config", "run.toml", "--save-config", "again.toml", "--json", "--cycles", "1")
    )
    assert len(first["history"]) == 2
    assert len(again["history"]) == 1
    changed = Path("run.toml").read_text().replace("cycles = 2", "cycles = 1")
    assert Path("again.toml").read_text() == changed
    assert "kept" not in changed


def test_a_config_is_written_only_for_options_that_work(module: str) -> None:
    Path("run.toml").write_text("seed = 1")
    for wrong in (("--recovery", "prayer"), ("--sparsity", "95"), ("--seconds", "-1")):
        assert isinstance(pruned(module, *wrong, "--save-config", "run.toml").exception, DEError)
    assert Path("run.toml").read_text() == "seed = 1"
    missing = pruned(module, "--save-config", "missing/run.toml")
    assert "--save-config missing/run.toml: there is no folder missing" in str(missing.exception)


def test_a_saved_config_tells_the_sparsity_that_was_used_and_the_versions(module: str) -> None:
    assert pruned(module, "--save-config", "run.toml").exit_code == 0
    first, *rest = Path("run.toml").read_text().splitlines()
    assert first.startswith(f"# de_plugin {de_plugin.__version__}, torch {torch.__version__}, ")
    assert "sparsity = 0.9" in rest


def test_no_file_is_written_over_another_or_what_is_read(module: str) -> None:
    Path("dense.safetensors").write_bytes(b"precious")
    same = pruned(module, "--output", "a.toml", "--save-config", "./a.toml")
    assert "--save-config a.toml: is the file of --output; choose another" in str(same.exception)
    over = pruned(module, "--checkpoint", "dense.safetensors", "--output", "dense.safetensors")
    assert "--output dense.safetensors: is the file of --checkpoint" in str(over.exception)
    assert Path("dense.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty = 0.5", "--config run.toml: 'sparsty' is no option; there are checkpoint, criterion"),
        ("sparsity = 'half'", "--config run.toml: sparsity = 'half': expected a number"),
        ("recovery = 1.5\nrecovery = 2", "--config run.toml: cannot be read"),
        ("resume = 'kept'", "--config run.toml: 'resume' is no option"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(text: str, message: str, module: str) -> None:
    Path("run.toml").write_text(text)
    result = pruned(module, "--config", "run.toml")
    assert isinstance(result.exception, DEError)
    assert message in str(result.exception)
    assert result.stdout == ""


def test_what_a_model_prints_is_no_part_of_the_document(module: str) -> None:
    result = invoke("prune", "--model", f"{module}:talkative", "--data", f"{module}:data", "--json")
    assert json.loads(result.stdout)["sparsity"] > 0
    assert "drawing weights" in result.stderr


def test_an_output_that_cannot_be_written_is_refused_before_the_search(module: str, tmp_path: Path) -> None:
    (tmp_path / "pipe").symlink_to("/dev/null")
    for output in (tmp_path / "missing" / "x.safetensors", tmp_path, tmp_path / "pipe"):
        with pytest.raises(DEError, match=f"--output {output}"):
            CliRunner().invoke(
                cli._build(),
                ["prune", "--model", "no_such_model", "--output", str(output)],
                catch_exceptions=False,
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "no_such_model"), "--model no_such_model: expected one of .*lenet5"),
        (("--data", "no_such_data"), "--data no_such_data: expected one of .*mnist"),
        (("--model", "no_such_module:model"), "--model no_such_module:model"),
        (("--model", "de_cli_subject:missing"), "--model de_cli_subject:missing"),
        (("--model", "de_cli_subject:number"), "returned int"),
        (("--criterion", "magnitud"), "criterion='magnitud'"),
        (("--sparsity", "95"), "sparsity=95"),
        (("--granularity", "huge"), "granularity='huge'"),
        (("--scope", "local"), "scope='local'"),
        (("--recovery", "prayer"), "prayer"),
    ],
)
def test_what_is_wrong_is_named(module: str, arguments: tuple[str, ...], message: str) -> None:
    given: dict[str, Any] = {"--model": f"{module}:model", "--data": f"{module}:data"}
    given["--criterion"] = "magnitude"
    given.update(zip(arguments[::2], arguments[1::2], strict=True))
    with pytest.raises(DEError, match=message):
        CliRunner().invoke(
            cli._build(), ["prune", *(x for pair in given.items() for x in pair)], catch_exceptions=False
        )


def test_an_error_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "de_plugin", "prune", "--model", "no_such_model", "--data", "mnist"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: --model no_such_model")
    assert done.stdout == ""
