"""Drawings inside a page: names of their own, the page's colour, and words for who cannot see them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from de_plugin.compare.figures import INK, Drawing


def inline(drawing: Drawing) -> str:
    """Return a drawing's ``<svg>`` element, ready to stand in an HTML page beside others."""
    root = ET.fromstring(drawing.svg)
    prefix = f"{drawing.name}-"
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            plain = key.rpartition("}")[2]
            fresh = value
            if plain == "id":
                fresh = prefix + value
            elif plain == "href" and value.startswith("#"):
                fresh = f"#{prefix}{value[1:]}"
            else:
                fresh = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}\1)", value)
            fresh = re.sub(INK, "currentColor", fresh, flags=re.IGNORECASE)
            if plain != key or fresh != value:
                del element.attrib[key]
                element.set(plain, fresh)
    for child in [x for x in root if x.tag == "metadata"]:
        root.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    title = ET.Element("title", {"id": f"{prefix}title"})
    title.text = drawing.title
    words = ET.Element("desc", {"id": f"{prefix}words"})
    words.text = drawing.text
    root.insert(0, title)
    root.insert(1, words)
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}title")
    root.set("aria-describedby", f"{prefix}words")
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)
