"""Escaping: text that users and documents bring must not be read as a role or as the end of a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable

BREAK = "\u2060"  # word joiner: invisible, of no width, and no part of any special token
# Role markers of the templates in use: <|user|>, [INST], <<SYS>>, <start_of_turn>.
MARKER = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\]|<</?SYS>>"
    r"|</?\w+_of_\w+>"
)


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the tokens, longest first."""
    kept = sorted({t for t in tokens if len(t) > 1}, key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, kept)) or r"(?!)")


def break_tokens(pattern: re.Pattern[str], text: str) -> str:
    """Put a zero-width character into everything that ``pattern`` finds; other text stays as it is.

    Example:
        >>> break_tokens(MARKER, "a <|user|> b").replace(BREAK, "·")
        'a <·|user|> b'
    """
    while pattern.search(text):
        text = pattern.sub(lambda m: m[0][0] + BREAK + m[0][1:], text)
    return text
