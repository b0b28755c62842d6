"""`de-plugin compare`: its files, its exit codes, and that a folder's compare.toml makes the same run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from de_plugin import Comparison
from de_plugin.compare import command
from de_plugin.compare.runner import Step
from de_plugin.config import read
from de_plugin.errors import ArgumentError, DEError, FileError
from tests.commands import invoke, user_module

OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("model", "data", "output", "hosts", "granularity", "divergence"), str),
    **dict.fromkeys(("methods", "task", "sparsity", "ratio", "bits", "seeds"), list[str]),
    **dict.fromkeys(("budget", "samples", "batch_size"), int),
    "seconds": float,
}

SOURCE = """
import torch

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

def data():
    inputs = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    return inputs, model()(inputs).argmax(1)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with user_module("de_compare_subject", SOURCE, tmp_path, monkeypatch) as name:
        yield name


def compared(module: str, *more: str) -> Result:
    return invoke(
        *("compare", "--model", f"{module}:model", "--data", f"{module}:data", "--hosts", "none"),
        *("--methods", "magnitude", "--methods", "torch:l1*", "--sparsity", "0.5,0.75", *more),
    )


def test_it_writes_a_report_and_prints_a_table(module: str) -> None:
    result = compared(module, "--output", "report", "--seeds", "0,1")
    assert result.exit_code == 0, result.output
    assert "Single weights: divergence (calibration data)" in result.stdout
    assert {p.name for p in Path("report").iterdir()} == {
        *("index.html", "report.md", "rows.json", "compare.toml", "figures")
    }
    found = Comparison.from_json("report/rows.json")
    assert [(r.method, r.sparsity, r.seed) for r in found.rows[:4]] == [
        ("magnitude", s, seed) for s in (0.5, 0.75) for seed in (0, 1)
    ]
    assert found.settings.evaluations == 1000
    assert "de-plugin compare --config report/compare.toml" in Path("report/index.html").read_text()


def test_json_is_the_whole_comparison(module: str) -> None:
    result = compared(module, "--output", "report", "--json", "--budget", "0")
    assert result.exit_code == 0, result.output
    assert Comparison.from_dict(json.loads(result.stdout)) == Comparison.from_json("report/rows.json")
    assert json.loads(result.stdout)["settings"]["evaluations"] is None


def test_a_config_makes_the_same_run_and_the_command_line_goes_before(module: str) -> None:
    assert (
        compared(module, "--output", "report", "--task", "weights,channels", "--ratio", "0.5").exit_code == 0
    )
    result = invoke("compare", "--config", "report/compare.toml", "--output", "other", "--seeds", "3")
    assert result.exit_code == 0, result.output
    first, second = Comparison.from_json("report/rows.json"), Comparison.from_json("other/rows.json")
    assert [r.key[:4] for r in first.rows] == [r.key[:4] for r in second.rows]
    assert {r.seed for r in second.rows} == {3}
    assert first.settings.differences(second.settings) == []
    assert {r.task for r in first.rows} == {"weights", "channels"}
    kept = [read(Path(folder) / "compare.toml", OPTIONS) for folder in ("report", "other")]
    assert kept[1] == {**kept[0], "output": "other", "seeds": ["3"]}


def test_a_folder_with_rows_is_gone_on_with_when_asked(module: str) -> None:
    assert compared(module, "--output", "report").exit_code == 0
    refused = compared(module, "--output", "report")
    assert isinstance(refused.exception, FileError)
    assert "--resume" in str(refused.exception)
    result = compared(module, "--output", "report", "--resume", "--seeds", "0,1", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["rows"]) == 2 * 2 * 3
    config = Path("report/compare.toml").read_text()
    other = compared(module, "--output", "report", "--resume", "--budget", "7")
    assert isinstance(other.exception, FileError)
    assert "evaluations was 1000, is 7" in str(other.exception)
    assert Path("report/compare.toml").read_text() == config


def test_ctrl_c_keeps_what_is_done(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = vars(command)["run"]

    def interrupted(*args: Any, progress: Any, **options: Any) -> Comparison:
        def tell(step: Step) -> None:
            progress(step)
            if step.done == 3:
                raise KeyboardInterrupt

        result: Comparison = known(*args, progress=tell, **options)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(command, "run", interrupted)
        result = compared(module, "--output", "report")
    assert result.exit_code == 130
    assert "go on with --resume" in " ".join(result.output.split())
    assert len(Comparison.from_json("report/rows.json").rows) == 2
    assert Path("report/compare.toml").exists()
    assert compared(module, "--output", "report", "--resume").exit_code == 0


def test_numbers_in_a_config_need_no_quotes(module: str) -> None:
    Path("mine.toml").write_text("sparsity = [0.25, 0.5]\nseeds = 2\nbatch-size = 64")
    result = invoke(
        *("compare", "--model", f"{module}:model", "--data", f"{module}:data", "--hosts", "none"),
        *("--methods", "magnitude", "--output", "report", "--config", "mine.toml"),
    )
    assert result.exit_code == 0, result.output
    found = Comparison.from_json("report/rows.json")
    assert [(r.sparsity, r.seed) for r in found.rows if r.method == "magnitude"] == [(0.25, 2), (0.5, 2)]


def test_bits_are_a_task_and_an_option_that_a_config_keeps(module: str) -> None:
    result = invoke(
        *("compare", "--model", f"{module}:model", "--data", f"{module}:data", "--hosts", "none"),
        *("--task", "bits", "--bits", "3,2", "--bits", "5", "--methods", "uniform", "--output", "report"),
    )
    assert result.exit_code == 0, result.output
    assert "Bits of weights: divergence (calibration data)" in result.stdout
    found = Comparison.from_json("report/rows.json")
    assert [(r.task, r.sparsity, r.failed) for r in found.rows] == [("bits", b, False) for b in (3, 2, 5)]
    assert read(Path("report") / "compare.toml", OPTIONS)["bits"] == ["3,2", "5"]
    again = invoke("compare", "--config", "report/compare.toml", "--output", "other", "--bits", "4")
    assert again.exit_code == 0, again.output
    assert [r.sparsity for r in Comparison.from_json("other/rows.json").rows] == [4.0]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--task", "bits", "--bits", "few"), ArgumentError, "--bits few: .* expected numbers"),
        (("--task", "bits", "--bits", "0"), DEError, "bits=\\[0.0\\]"),
        (("--sparsity", "half"), ArgumentError, "--sparsity half: .* expected numbers"),
        (("--hosts", "no-such-host"), DEError, "'no-such-host' is none"),
        (("--methods", "magnitud"), DEError, "'magnitud' stands for none"),
        (("--task", "wide"), DEError, "task='wide'"),
        (("--config", "nowhere.toml"), FileError, "--config nowhere.toml"),
        (("--config", "wrong.toml"), ArgumentError, "wrong.toml: budget = 'many': expected a whole number"),
        (("--seconds", "-1"), DEError, "seconds=-1"),
    ],
)
def test_what_is_wrong_is_named(
    more: tuple[str, ...], error: type[DEError], message: str, module: str
) -> None:
    Path("wrong.toml").write_text("budget = 'many'")
    result = invoke(
        *("compare", "--model", f"{module}:model", "--data", f"{module}:data", "--hosts", "none"),
        *("--output", "report", *more),
    )
    assert isinstance(result.exception, error), result.output
    assert result.exception.args[0]

    assert re.search(message, str(result.exception))
    assert not Path("report/index.html").exists()


def test_help_has_an_example() -> None:
    result = invoke("compare", "--help")
    assert result.exit_code == 0
    assert "Example: de-plugin compare --model lenet5" in " ".join(result.stdout.split())
