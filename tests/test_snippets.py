"""Every block of Python in the README and the documentation runs alone; every command there exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from de_plugin import cli
from tests.pasting import PAGES, ROOT, Block, blocks, pasted

SNIPPETS = list({block.code: block for block in reversed(list(blocks("python")))}.values())[::-1]
"""What stands in two places is run once."""

_COMMAND = re.compile(r"(?:\bde-plugin|\B-m de_plugin)(?= )[^`\n#]*")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield where a command is shown, and its words; ``load | inspect`` are two commands."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in _COMMAND.finditer(text):
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}"
            for part in re.sub(r"^\S+( de_plugin)?", "", found[0]).split("|"):
                yield f"{place} {part.strip()}", shlex.split(part)


SHOWN = list(commands())


def test_the_readme_and_the_pages_have_blocks() -> None:
    assert sum(block.page.name == "README.md" for block in SNIPPETS) >= 6
    assert len({block.page for block in SNIPPETS}) > 15


@pytest.mark.parametrize("block", SNIPPETS, ids=str)
def test_a_block_runs_when_it_is_pasted_alone(block: Block, tmp_path: Path) -> None:
    if block.missing:
        pytest.skip(
            f"{block} shows an optional package, which the engine does without; `make test` installs it, "
            f"elsewhere: pip install 'de_plugin[{block.missing}]'"
        )
    assert pasted(block, tmp_path) == ""


def test_a_block_that_uses_a_name_it_never_made_is_found(tmp_path: Path) -> None:
    block = Block(ROOT / "README.md", 1, "python", "import torch\nprint(model)\n")
    assert "name 'model' is not defined" in pasted(block, tmp_path)


@pytest.mark.parametrize("words", [words for _, words in SHOWN], ids=[place for place, _ in SHOWN])
def test_a_command_that_is_shown_can_be_given(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--config" in words:
        path = Path(words[words.index("--config") + 1])
        path.parent.mkdir(exist_ok=True)
        path.write_text('model = "lenet5"')
    command: Any = typer.main.get_command(cli._build())
    context = command.make_context("de-plugin", [], resilient_parsing=True)
    whole = "..." not in words
    left = [word for word in words if word != "..."]
    while left and hasattr(command, "commands") and not left[0].startswith("-"):
        name, command, left = command.resolve_command(context, left)
        # A command that is only named lacks what it must have; one with options has to be whole.
        lenient = not (whole and left)
        context = command.make_context(name, list(left), parent=context, resilient_parsing=lenient)


def test_a_command_with_an_option_that_does_not_exist_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception, match="No such option"):
        test_a_command_that_is_shown_can_be_given(["prune", "--modle", "lenet5"], tmp_path, monkeypatch)
