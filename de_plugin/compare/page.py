"""One self-contained HTML page of a comparison: it needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from de_plugin.compare.comparison import Comparison
from de_plugin.compare.figures import Drawing
from de_plugin.compare.row import Row
from de_plugin.compare.summary import Cell
from de_plugin.compare.svg import inline
from de_plugin.compare.text import (
    ASKED,
    LEGEND,
    TITLES,
    amount,
    asked,
    columns,
    grid,
    name,
    seeds,
    shown,
    tasks,
    verdict,
)

TITLE = "Comparison of pruning methods"


def page(comparison: Comparison, figures: Sequence[Drawing], command: str = "") -> str:
    """Return the page.

    Args:
        comparison: what is told.
        figures: its drawings.
        command: what makes the same comparison again.
    """
    style, script = _own("page.css"), _own("page.js")
    done = tasks(comparison)
    sections = [(f"task-{task}", TITLES[task], _task(comparison, task, figures)) for task in done]
    sections.append(("failed", "What failed", _failed(comparison.failed)))
    if comparison.notes:
        sections.append(("notes", "Notes", _list(comparison.notes)))
    sections.append(("settings", "Settings", _pairs(asked(comparison))))
    sections.append(("versions", "Versions", _pairs(comparison.versions)))
    if command:
        sections.append(("again", "The same again", f"<pre><code>{escape(command)}</code></pre>"))
    links = "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title, _ in sections)
    body = "\n".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(title)}</h2>\n{content}\n</section>'
        for key, title, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<title>{TITLE}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>{TITLE}</h1>
{_summary(comparison)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main">
{body}
<p id="status" class="hidden" role="status"></p>
<dialog id="large" aria-labelledby="large-title">
<button type="button" class="close">Close</button>
<h2 id="large-title">Figure</h2>
<div id="large-figure" role="group" tabindex="0" aria-labelledby="large-title"></div>
</dialog>
</main>
<footer><p>Made by de_plugin {escape(comparison.versions.get("de_plugin", ""))}.</p></footer>
<script>
{script}</script>
</body>
</html>
"""


def _own(resource: str) -> str:
    return (files("de_plugin.compare") / resource).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Return what the page may do: run its own script, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _summary(comparison: Comparison) -> str:
    said = [verdict(comparison, task) for task in tasks(comparison)]
    facts = [f"{len(comparison.rows)} rows, {len(comparison.failed)} of them failed"]
    if (score := comparison.intact.get("score")) is not None:
        facts.append(f"{comparison.settings.score} of the intact model: {score:.2f}")
    for key, what in (("macs", "multiplications a sample"), ("params", "parameters")):
        if (count := comparison.intact.get(key)) is not None:
            facts.append(f"its {what}: {count:,.0f}")
    return "\n".join(f"<p>{escape(text)}</p>" for text in (*said, "; ".join(facts) + ".") if text)


def _task(comparison: Comparison, task: str, figures: Sequence[Drawing]) -> str:
    parts = [_grid(comparison, task, *column) for column in columns(comparison, task)]
    mine = [drawing for drawing in figures if drawing.task == task]
    if mine:
        drawn = "\n".join(map(_figure, mine))
        parts.append(f'<h3>Figures</h3>\n<div class="figures">\n{drawn}\n</div>')
    parts.append(
        "<h3>All rows</h3>\n" + _rows([r for r in comparison.rows if r.task == task and not r.failed], task)
    )
    return "\n".join(parts)


# -- tables ----------------------------------------------------------------------------------------


def _table(key: str, caption: str, head: str, bodies: str) -> str:
    """Return a table that scrolls by itself where it is wide, by keyboard too."""
    return f"""<div class="scroll" role="region" tabindex="0" aria-labelledby="{key}">
<table>
<caption id="{key}"><span>{caption}</span></caption>
<thead><tr>{head}</tr></thead>
{bodies}
</table>
</div>"""


def _grid(comparison: Comparison, task: str, measure: str, title: str, form: str) -> str:
    amounts, methods = grid(comparison, task)
    head = '<th scope="col" class="text">method</th>' + "".join(
        f'<th scope="col">{escape(amount(task, a))}</th>' for a in amounts
    )
    bodies = []
    for host in dict.fromkeys(h for h, _, _ in methods):
        lines = [f'<tr><th scope="rowgroup" colspan="{len(amounts) + 1}">{escape(host)}</th></tr>']
        for other, method, line in methods:
            if other == host:
                values = "".join(_value(cell, measure, form) for cell in line)
                lines.append(f'<tr><th scope="row">{escape(method)}</th>{values}</tr>')
        bodies.append("<tbody>" + "\n".join(lines) + "</tbody>")
    over = ASKED[task].removesuffix(", %")
    caption = f"{escape(TITLES[task])}: {escape(title)} by {over}. Marked: {LEGEND}. {seeds(comparison)}."
    heading = f"<h3>{escape(title[0].upper() + title[1:])}</h3>\n"
    return heading + _table(f"grid-{task}-{measure}", caption, head, "\n".join(bodies))


def _value(cell: Cell | None, measure: str, form: str) -> str:
    text = escape(shown(cell, measure, form))
    if cell is not None and measure in cell.best:
        return f'<td class="best">{text}<span class="hidden"> best</span></td>'
    kind = "" if cell is not None and cell.competes else ' class="out"'
    return f"<td{kind}>{text}</td>"


_COLUMNS = (
    ("method", "", "method"),
    ("host", "", "host"),
    ("sparsity", "g", "asked"),
    ("seed", "d", "seed"),
    ("density", ".3f", "density"),
    ("macs", ",.0f", "multiplications"),
    ("params", ",.0f", "parameters"),
    ("bits", ".2f", "mean bits"),
    ("score", ".2f", "score"),
    ("divergence", ".3g", "divergence"),
    ("evaluations", ",d", "evaluations"),
    ("seconds", ".1f", "seconds"),
)
"""Attributes of a row, their format and heading."""


def _rows(rows: Iterable[Row], task: str) -> str:
    found = list(rows)
    columns = [c for c in _COLUMNS if any(getattr(row, c[0]) is not None for row in found)]
    head = "".join(
        f'<th scope="col" aria-sort="none"{_text(form)}><button type="button">{title}</button></th>'
        for _, form, title in columns
    )
    lines = []
    for row in found:
        parts = []
        for attribute, form, _ in columns:
            value = getattr(row, attribute)
            text = "" if value is None else escape(format(value, form))
            exact = "" if value is None else escape(str(value))
            if attribute == "method":
                parts.append(f'<th scope="row" data-value="{exact}">{text}</th>')
            else:
                parts.append(f'<td data-value="{exact}"{_text(form)}>{text}</td>')
        lines.append(f"<tr>{''.join(parts)}</tr>")
    caption = f"{escape(TITLES[task])}: every row. The buttons in the head sort."
    return _table(f"rows-{task}", caption, head, "<tbody>\n" + "\n".join(lines) + "\n</tbody>")


def _text(form: str) -> str:
    return "" if form else ' class="text"'


# -- the rest --------------------------------------------------------------------------------------


def _figure(drawing: Drawing) -> str:
    title = escape(drawing.title)
    opened = f'<button type="button" class="zoom" aria-haspopup="dialog" aria-label="Enlarge: {title}">'
    return (
        f'<figure data-title="{title}">\n{opened}{inline(drawing)}</button>\n'
        f"<figcaption>{escape(drawing.text)}</figcaption>\n</figure>"
    )


def _failed(rows: Sequence[Row]) -> str:
    if not rows:
        return "<p>Nothing.</p>"
    lines = [
        f'<li><strong>{escape(name(r))}</strong>: <span class="error">{escape(r.error)}</span></li>'
        for r in rows
    ]
    return "<ul>\n" + "\n".join(lines) + "\n</ul>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _pairs(values: Mapping[str, str]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in values.items())
        + "</dl>"
    )
