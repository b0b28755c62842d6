"""Comparisons as text: tables for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from de_plugin.compare.comparison import Comparison
from de_plugin.compare.row import Row
from de_plugin.compare.summary import Cell, cells, wins

TITLES = {"weights": "Single weights", "channels": "Whole channels", "bits": "Bits of weights"}
"""Headings of the tasks."""

ASKED = {"weights": "sparsity, %", "channels": "share of channels, %", "bits": "bits a weight"}
"""What the amounts of a task are."""

OVER = {"weights": ASKED["weights"], "channels": ASKED["channels"], "bits": "kilobytes of the weights"}
"""What figures are drawn over."""

LEGEND = "best of those of equal or smaller size; (in brackets) larger, not in the running"


def tasks(comparison: Comparison) -> list[str]:
    """Return the tasks that have rows, in their order."""
    return list(dict.fromkeys(row.task for row in comparison.rows))


def amount(task: str, value: float) -> str:
    """Return what was asked for, for people: "70 %", or "3" bits."""
    return f"{value:g}" if task == "bits" else f"{100 * value:g} %"


def label(text: str) -> str:
    """Return a text that matplotlib takes as it is: neither mathematics nor hidden."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def measures(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return the measures there are: attribute, title and format."""
    found = [("score", comparison.settings.score, ".2f")] if comparison.settings.score else []
    return [*found, ("divergence", f"divergence ({comparison.settings.measured_on})", ".3g")]


def columns(comparison: Comparison, task: str) -> list[tuple[str, str, str]]:
    """Return what a task has tables of: the measures, and sizes where these are not as asked for."""
    more = [("bits", "mean bits a weight, level tables included", ".2f")] if task == "bits" else []
    return [*measures(comparison), *more]


def verdict(comparison: Comparison, task: str) -> str:
    """Return in a sentence how often Directed Evolution is best."""
    parts = []
    for measure, title, _ in measures(comparison):
        won, of = wins(comparison, task, measure)
        if of:
            parts.append(f"in {title.removesuffix(', %')} at {won} of {of} sizes")
    if not parts:
        return ""
    return f"{TITLES[task]}: Directed Evolution or a hybrid of it alone is best {' and '.join(parts)}."


def shown(cell: Cell | None, measure: str, form: str) -> str:
    """Return a cell's measurement for people: in brackets where it does not compete."""
    if cell is None:
        return ""
    value = cell.value(measure)
    if value is None:
        return "failed" if cell.failed else "-"
    text = value.text(form)
    if cell.failed:
        return f"{text} ({len(cell.failed)} failed)"
    return text if cell.competes else f"({text})"


def grid(comparison: Comparison, task: str) -> tuple[list[float], list[tuple[str, str, list[Cell | None]]]]:
    """Return what was asked for, ascending, and for each host and method its cells in that order."""
    found = cells(comparison, task)
    amounts = sorted({c.sparsity for c in found})
    at = {(c.host, c.method, c.sparsity): c for c in found}
    methods = list(dict.fromkeys((c.host, c.method) for c in found))
    return amounts, [(h, m, [at.get((h, m, a)) for a in amounts]) for h, m in methods]


def seeds(comparison: Comparison) -> str:
    """Return what the numbers of a table are of."""
    count = len({row.seed for row in comparison.rows})
    return f"Means ± standard deviations over {count} seeds" if count > 1 else "One seed"


def plain(comparison: Comparison) -> str:
    """Return tables for a terminal."""
    parts = []
    for task in tasks(comparison):
        amounts, methods = grid(comparison, task)
        for measure, title, form in columns(comparison, task):
            lines = [["host", "method", *(amount(task, a) for a in amounts)]]
            for host, method, line in methods:
                lines.append([host, method, *(_starred(cell, measure, form) for cell in line)])
            widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
            padded = [
                "  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines
            ]
            parts.append("\n".join([f"{TITLES[task]}: {title}", *padded]))
    failed = [f"failed: {name(row)}: {row.error}" for row in comparison.failed]
    return "\n\n".join([*parts, "\n".join([f"* {LEGEND}", *failed])])


def _starred(cell: Cell | None, measure: str, form: str) -> str:
    best = cell is not None and measure in cell.best
    return shown(cell, measure, form) + (" *" if best else "")


def name(row: Row) -> str:
    """Return what row it is, for people."""
    return f"{row.task}, {row.host}: {row.method}, {amount(row.task, row.sparsity)}, seed {row.seed}"


def markdown(comparison: Comparison, figures: Sequence[tuple[str, str]], command: str = "") -> str:
    """Return a report in Markdown.

    Args:
        comparison: what is told.
        figures: their texts and paths.
        command: what makes the same comparison again.
    """
    parts = ["# Comparison of pruning methods"]
    for task in tasks(comparison):
        amounts, methods = grid(comparison, task)
        parts += [f"## {TITLES[task]}", verdict(comparison, task)]
        for measure, title, form in columns(comparison, task):
            head = ["host", "method", *(amount(task, a) for a in amounts)]
            lines = [head, ["---"] * len(head)]
            for host, method, line in methods:
                lines.append([_cell(host), _cell(method), *(_bold(cell, measure, form) for cell in line)])
            parts += [f"### {title[0].upper()}{title[1:]}", "\n".join(f"| {' | '.join(x)} |" for x in lines)]
    parts.append(f"**Bold**: {LEGEND}. {seeds(comparison)}.")
    if comparison.failed:
        reasons = [f"- {_cell(name(row))}: {_cell(row.error)}" for row in comparison.failed]
        parts += ["## What failed", "\n".join(reasons)]
    parts += (
        ["## Figures", "\n\n".join(f"![{_cell(text)}]({path})" for text, path in figures)] if figures else []
    )
    if comparison.notes:
        parts += ["## Notes", "\n".join(f"- {_cell(note)}" for note in comparison.notes)]
    told = {**asked(comparison), **{f"version of {k}": v for k, v in comparison.versions.items()}}
    parts += ["## Settings", "\n".join(f"- {_cell(k)}: {_cell(v)}" for k, v in told.items())]
    if command:
        parts += ["## The same again", "\n".join(f"    {line}" for line in command.splitlines())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bold(cell: Cell | None, measure: str, form: str) -> str:
    text = shown(cell, measure, form)
    return f"**{text}**" if cell is not None and measure in cell.best else text


def _cell(text: str) -> str:
    """Return a text that Markdown takes as it is, in one line."""
    for special in "\\`*_<>|[]":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def asked(comparison: Comparison) -> dict[str, str]:
    """Return the settings for people, without the grids of tasks that were not asked for."""
    settings = comparison.settings.to_dict()
    for task, amounts in (("weights", "sparsities"), ("channels", "ratios"), ("bits", "bits")):
        if task not in settings["task"]:
            del settings[amounts]
    return {name: _plain(value, "none" if name == "exclude" else "all") for name, value in settings.items()}


def _plain(value: object, empty: str) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(_plain(x, empty) for x in value) or empty
    return "no limit" if value is None else str(value) or "none"
