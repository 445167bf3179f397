"""Text from elsewhere: made fit for one line of output, and compared with the words that are known."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

# Control characters, zero-width characters, bidirectional controls and lone surrogates.
_UNSEEN: Final = "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"

# Below this similarity a suggestion confuses more than it helps.
_MIN_SIMILARITY: Final = 0.75

# A longer word is no typing error, and comparing it takes quadratic time.
_MAX_COMPARED_CHARS: Final = 100


def is_one_line(text: str) -> bool:
    """Tell whether `text` has no control character: nothing that ends a line of TaskProlog or moves a cursor."""
    return not any(char < " " or "\x7f" <= char <= "\x9f" or char in "\u2028\u2029" for char in text)


def is_plain(text: str) -> bool:
    """Tell whether `text` is one line that an environment variable can hold: no lone surrogate from a JSON escape."""
    return is_one_line(text) and not any("\ud800" <= char <= "\udfff" for char in text)


def printable(text: str, max_chars: int = 200) -> str:
    """Return `text` fit for one line of a log or a job's output: invisible characters escaped, cut to `max_chars`."""
    text = text[: max_chars + 1]  # the rest may be megabytes
    clean = text
    if not (text.isascii() and text.isprintable()):  # compiling the pattern takes 0.4 ms
        clean = re.sub(_UNSEEN, lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
    return clean if len(clean) <= max_chars else clean[: max_chars - 3] + "..."


def near_match(word: str, known: Iterable[str]) -> str | None:
    """Return the member of `known` that is most like `word`; None where none is similar."""
    return _near_match(word, tuple(sorted(known)))


@lru_cache(maxsize=1024)  # a mistake is often copied to each of a config's resources
def _near_match(word: str, known: tuple[str, ...]) -> str | None:
    if len(word) > _MAX_COMPARED_CHARS:
        return None
    from difflib import get_close_matches  # 2 ms that only a misspelled word pays

    folded = {name.lower().replace("_", "-"): name for name in known}
    matches = get_close_matches(word.lower().replace("_", "-"), folded, n=1, cutoff=_MIN_SIMILARITY)
    return folded[matches[0]] if matches else None


def unknown_names(unknown: Iterable[str], known: Iterable[str], max_names: int) -> str:
    """Return the sentence about QPU names that the config does not have, each with the known name that is like it.

    Args:
        unknown: the names; at least one.
        known: the names that the config has, in its order.
        max_names: how many known names the sentence lists, since a site may have thousands; 0 for none.
    """
    names = list(known)
    shown = []
    for name in unknown:
        near = near_match(name, names)
        shown.append(printable(name) + (f" (did you mean {printable(near)}?)" if near else ""))
    sentence = f"unknown QPU: {', '.join(shown)}"
    if not names or not max_names:
        return sentence
    more = f", ... and {len(names) - max_names} more" if len(names) > max_names else ""
    return f"{sentence}; known QPUs: {', '.join(map(printable, names[:max_names]))}{more}"
