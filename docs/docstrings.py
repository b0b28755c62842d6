"""Docstrings as Markdown: doctests become blocks of code, Sphinx roles become plain code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?m)^>>> .*(?:\n(?!\n).+)*")
_ROLE = re.compile(r":(?:class|func|meth|mod):(?=`)")


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = _ROLE.sub("", obj.docstring.value)
            obj.docstring.value = _DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
