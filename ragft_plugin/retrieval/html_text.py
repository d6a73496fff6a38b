"""HTML text: what a page shows, and its title.

A passage is to hold what a browser shows: words of one line stay in one line, blocks get lines of their own, and
scripts and styles are no text. The parser is Python's own, so that HTML needs no extra; it builds no tree, and what is
left open or out of place, as in many pages, is coped with here.
"""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser

# What the standard calls phrasing content stands within a line; some of it has a box of its own there. An element that
# is not known rather begins a line than glues two words together.
_GAPS = {
    **dict.fromkeys(
        "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label link mark math meta mfrac mi mn "
        "mo mrow msqrt msub msubsup msup mtext nobr noscript output q rb rp rt rtc ruby s samp script slot small span "
        "strike strong style sub sup template time tt u var wbr".split(),
        "",
    ),
    **dict.fromkeys(
        "area audio button canvas datalist embed iframe img input map meter object picture progress select source svg "
        "textarea track video".split(),
        " ",
    ),
}


@dataclass(frozen=True, slots=True)
class WebPage:
    """What a page of HTML shows.

    Attributes:
        title: in one line; "" without one.
        text: a line per block; no line is empty.
    """

    title: str
    text: str


def read_html(markup: str) -> WebPage:
    """Read a page, however broken it is."""
    parser = _VisibleText()
    parser.feed(markup)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return WebPage(" ".join(parser.title.split()), "\n".join(line for line in lines if line))


class _VisibleText(HTMLParser):
    """Collects the title, and the text outside of scripts and styles, a line per block.

    Whether something stands in the head or in the body does not matter: their tags may be left out.
    """

    _HIDDEN = frozenset("noscript script style svg template title".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title = ""
        self._hidden: list[str] = []
        self._titles = 0  # those of drawings are names of icons, and hidden with them
        self._as_typed = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self._hidden.clear()  # what a broken head has left open
        self._as_typed |= tag == "pre"
        if not self._hidden:
            self._titles += tag == "title"
            self._gap(tag)
        if tag in self._HIDDEN:
            self._hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._as_typed &= tag != "pre"
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        if not self._hidden:
            self._gap(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data if self._as_typed else data.replace("\n", " "))
        elif self._hidden == ["title"] and self._titles == 1:
            self.title += data

    def _gap(self, tag: str) -> None:
        self.parts.append(_GAPS.get(tag, "\n"))
