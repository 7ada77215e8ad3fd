"""HTML in which nothing that is data can be markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from dist_embed.observe.events import printable


class Markup(str):
    """HTML. Any other text is escaped where `tag` puts it in."""

    __slots__ = ()


def tag(name: str, *inner: str, **attributes: str) -> Markup:
    """An element. Names of attributes may end with an underscore, as ``class_``."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}>{joined(inner)}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Texts and elements, one behind the other."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table that scrolls by itself where it is too wide. The first column names rows.
    Without a header there is none.
    """
    head = tag("thead", tag("tr", *(tag("th", text, scope="col", dir="auto") for text in header)))
    body = [
        tag("tr", tag("th", first, scope="row", dir="auto"),
            *(tag("td", text, dir="auto") for text in rest))
        for first, *rest in rows
    ]  # fmt: skip
    whole = tag("table", *([head] if header else []), tag("tbody", *body))
    return tag("div", whole, class_="wide", tabindex="0")


def _escaped(text: str) -> str:
    return html.escape(printable(text))
