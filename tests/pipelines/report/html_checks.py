"""What any page of ours must be: well formed, nothing to load, unique ids, texts for pictures."""
from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Parse a page; `tags` holds every start tag with its attributes, `text` what a person reads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data


def check_page(html: str) -> Page:
    """Assert what any page of ours must be, and return it parsed."""
    assert html.lstrip().startswith("<!DOCTYPE html>")
    page = Page(html)
    assert not {"script", "iframe", "object", "link"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:80]}> loads something"
            assert not name.startswith("on"), f"<{tag} {name}> is a script"
        assert tag != "img" or "alt" in attributes
    assert not re.search(r"https?://|url\((?!#)|@import", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id stands twice"
    referred = {value for _, attributes in page.tags for name, value in attributes.items()
                if name in ("href", "xlink:href")} | {f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", html)}
    assert {name for name in referred if name.startswith("#")} <= {f"#{name}" for name in ids}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), "a heading is skipped"
    return page
