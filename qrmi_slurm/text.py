"""Text from outside: escaped to fit one line of output, and compared with known words."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from qrmi_slurm.secret import Secret, mask

# Control characters, zero-width characters, bidirectional controls, lone surrogates and tags.
_UNSEEN: Final = (
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)

# Below this similarity a suggestion confuses more than it helps.
_MIN_SIMILARITY: Final = 0.75

# A longer word is not a typo, and comparing takes quadratic time.
_MAX_COMPARED_CHARS: Final = 100

# How many names a message lists; a site may have thousands.
_MAX_NAMES: Final = 20

# Comparing with more would take long, and a message that names one QPU of thousands helps little.
_MAX_COMPARED_NAMES: Final = 1000


def is_one_line(text: str) -> bool:
    """Tell whether `text` has no control characters, which could end a line of TaskProlog's output or move a cursor."""
    return text.isprintable() or not any(
        char < " " or "\x7f" <= char <= "\x9f" or char in "\u2028\u2029" for char in text
    )


def is_plain(text: str) -> bool:
    """Tell whether `text` is one line that an environment variable can hold: without lone surrogates (JSON escapes)."""
    return text.isprintable() or (is_one_line(text) and not any("\ud800" <= char <= "\udfff" for char in text))


def printable(text: str, max_chars: int = 200) -> str:
    """Return `text` for one line of a log or a job's output: invisible characters escaped, cut to `max_chars`."""
    text = text[: max_chars + 1]  # the rest may be megabytes
    clean = text
    if not (text.isascii() and text.isprintable()):  # compiling the pattern takes 0.4 ms
        clean = re.sub(_UNSEEN, lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
    return clean if len(clean) <= max_chars else clean[: max_chars - 3] + "..."


def shown(text: str, secrets: Iterable[Secret], max_chars: int = 400) -> str:
    """Return text from a service or from QRMI for display: secrets masked, in one line, cut to `max_chars`."""
    return printable(mask(text, secrets), max_chars)


def near_match(word: str, known: Iterable[str]) -> str | None:
    """Return the member of `known` that is most similar to `word`; None if none is similar enough."""
    return _near_match(word, tuple(sorted(known)))


def listing(texts: Sequence[str]) -> str:
    """Return texts for one line, with commas between them: the first twenty, and how many more there are."""
    more = f", ... and {len(texts) - _MAX_NAMES} more" if len(texts) > _MAX_NAMES else ""
    return ", ".join(map(printable, texts[:_MAX_NAMES])) + more


def known_names(names: Sequence[str]) -> str:
    """Return the end of a sentence about an unknown QPU: which ones there are; empty if there are none."""
    if not names:
        return ""
    return f"; known QPUs: {listing(names)}" + (" (list all: qrmi-slurm qpus)" if len(names) > _MAX_NAMES else "")


def unknown_names(unknown: Sequence[str], known: Iterable[str], *, are_ignored: bool = False) -> str:
    """Return the sentence about QPUs that the site does not have, with a similar known name for the first of them.

    Args:
        unknown: the names that were asked for; at least one.
        known: the names of the site's QPUs, in the config's order.
        are_ignored: whether the job runs with its other QPUs; the known QPUs are then not listed.
    """
    names = list(known)
    subject = f"unknown QPU{'s' if len(unknown) > 1 else ''}{', ignored' if are_ignored else ''}"
    near = near_match(unknown[0], names) if len(names) <= _MAX_COMPARED_NAMES else None
    words = [printable(unknown[0]) + (f" (did you mean {printable(near)}?)" if near else "")]
    if len(unknown) > 1:
        words.append(listing(unknown[1:]))
    return f"{subject}: {', '.join(words)}{'' if are_ignored else known_names(names)}"


@lru_cache(maxsize=1024)  # a typo is often copied to every resource of a config
def _near_match(word: str, known: tuple[str, ...]) -> str | None:
    if len(word) > _MAX_COMPARED_CHARS:
        return None
    from difflib import get_close_matches  # takes 2 ms

    folded = {name.lower().replace("_", "-"): name for name in known}
    matches = get_close_matches(word.lower().replace("_", "-"), folded, n=1, cutoff=_MIN_SIMILARITY)
    return folded[matches[0]] if matches else None
