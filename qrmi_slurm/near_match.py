"""The known word that a misspelt one was probably meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

# Below this share of common letters a proposal confuses more than it helps.
_LIKENESS = 0.75

# A longer word is no typing error, and comparing it takes quadratic time.
_MAX_CHARS = 100


def near_match(word: str, known: Iterable[str]) -> str | None:
    """Return the member of `known` that is most like `word`, or None where none is like it."""
    return _near_match(word, tuple(sorted(known)))


@lru_cache(maxsize=1024)  # a mistake is often copied to each of a config's resources
def _near_match(word: str, known: tuple[str, ...]) -> str | None:
    if len(word) > _MAX_CHARS:
        return None
    folded = {name.lower().replace("_", "-"): name for name in known}
    matches = get_close_matches(word.lower().replace("_", "-"), folded, n=1, cutoff=_LIKENESS)
    return folded[matches[0]] if matches else None
