"""The line of a config shown under a syntax error, with everything masked that could be a secret.

Broken syntax makes it impossible to tell keys from values, so only an allow-list is shown: brackets, quotes, commas,
colons, JSON's own words, and the names of keys, types and variables, which are public.
"""

import re
from collections.abc import Iterator
from typing import Final

from qrmi_slurm.config import resource_types
from qrmi_slurm.secret import MASK
from qrmi_slurm.validation.json_text import Position

# Shown on each side of the caret; a config on a single line may have a megabyte.
_CONTEXT_CHARS: Final = 50

_TOKEN: Final = re.compile(
    r"""(?P<string> "(?:[^"\\]|\\.)*" (?=\s*[:,}\]]|\s*$) )
      | (?P<blank> \s+ )
      | (?P<sign> [{}\[\],:"] )
      | (?P<word> [^\s{}\[\],:"]+ )""",
    re.VERBOSE,
)
_KEYS: Final = ("$schema", "resources", "name", "type", "environment", "is_dynamic", "slurm")
_PUBLIC: Final = frozenset(
    {*_KEYS, "true", "false", "null", "True", "False", "None", "//", "#", "/*", "*/"}
    | set(resource_types.KNOWN)
    | {variable for known in resource_types.KNOWN.values() for variable in known.variables}
)


def masked_line(text: str, position: Position) -> tuple[str, int]:
    """Return the line at `position`, masked, and where the caret belongs.

    Args:
        text: the whole text.
        position: where the fault is.

    Returns:
        The masked line, cut to the surroundings of the fault, and the caret's offset in it.
    """
    lines = text.split("\n")
    line = lines[position.line - 1] if position.line <= len(lines) else ""
    shown = ""
    caret: int | None = None
    for start, token, visible in _tokens(line):
        if caret is None and position.column - 1 < start + len(token):
            inside = position.column - 1 - start
            caret = len(shown) + (inside if MASK not in visible else min(inside, visible.index(MASK)))
        if visible == MASK and shown.endswith(MASK):
            continue
        shown += visible
    caret = len(shown) if caret is None else min(caret, len(shown))
    return _cut(shown, caret)


def _tokens(line: str) -> Iterator[tuple[int, str, str]]:
    """Yield the offset, the text and the visible form of each token of a line."""
    for match in _TOKEN.finditer(line):
        token = match[0]
        if match["blank"]:
            visible = " " * len(token)
        elif match["sign"]:
            visible = token
        elif match["string"]:
            visible = token if token[1:-1] in _PUBLIC else f'"{MASK}"'
        else:
            visible = token if token in _PUBLIC else MASK
        yield match.start(), token, visible


def _cut(shown: str, caret: int) -> tuple[str, int]:
    begin = max(0, caret - _CONTEXT_CHARS)
    end = min(len(shown), caret + _CONTEXT_CHARS)
    head = "..." if begin else ""
    tail = "..." if end < len(shown) else ""
    kept = shown[begin:end].rstrip()
    if not head:
        stripped = kept.lstrip()
        begin = len(kept) - len(stripped)
        kept = stripped
    return f"{head}{kept}{tail}", max(0, caret - begin) + len(head)
