"""The selection: which QPUs a job asked for, from the value of `--qpu`.

Each term asks for one QPU, by its name or as a choice among several. cli_filter/selection.c, which sbatch runs, and
cli_filter/qrmi_slurm.lua, which slurmctld runs, have the same rules; tests/contract/test_selection.py runs all three.
"""

from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from qrmi_slurm.errors import SelectionError
from qrmi_slurm.text import is_one_line, printable

# What a job may ask for. The plugin and slurmctld refuse more at submission; this catches forged lists. A name listed
# twice counts once, a choice each time.
MAX_SELECTION_BYTES: Final = 4096
MAX_TERMS: Final = 64
MAX_CHOICES: Final = 8

_FEWER: Final = "ask for fewer QPUs in one job"

ANY: Final = "any:"
LEAST_BUSY: Final = "least-busy:"


class Term(NamedTuple):
    """One term of a `--qpu` list.

    Args:
        text: as the user wrote it.
        pattern: the name, the pattern for names or the type that it asks for.
        prefix: `any:`, `least-busy:` or empty.
    """

    text: str
    pattern: str
    prefix: str = ""

    @property
    def is_choice(self) -> bool:
        """Whether the hooks choose the QPU, unless a QPU has exactly this name."""
        return bool(self.prefix) or any(char in self.pattern for char in "*?[")

    def fits_name(self, name: str) -> bool:
        """Tell whether the term matches a QPU's name; a choice may also match the QPU's type."""
        return fnmatchcase(name, self.pattern) if self.is_choice else name == self.text


def parse(text: str) -> tuple[Term, ...]:
    """Return the terms of a `--qpu` list in order: each name once, a choice as often as it is listed.

    Args:
        text: terms separated by commas; spaces and tabs around them are ignored.

    Raises:
        SelectionError: the list is too long or has too many terms or choices, or a name in it is empty or invalid.
    """
    if len(text.encode("utf-8", "surrogateescape")) > MAX_SELECTION_BYTES:
        raise SelectionError(f"--qpu has more than {MAX_SELECTION_BYTES} bytes; {_FEWER}")
    names = [name.strip(" \t") for name in text.split(",")]
    for name in names:
        fault = name_fault(name)
        if fault:
            raise SelectionError(f"--qpu={printable(text)}: {fault}", "write --qpu=NAME or --qpu=NAME,NAME")
    terms: list[Term] = []
    seen = set()
    choices = 0
    for term in map(_term, names):
        if term.is_choice:
            choices += 1
        elif term.text in seen:
            continue
        seen.add(term.text)
        terms.append(term)
        if len(terms) > MAX_TERMS:
            raise SelectionError(f"--qpu has more than {MAX_TERMS} terms; {_FEWER}")
        if choices > MAX_CHOICES:
            what = "choices (patterns, any: and least-busy:)"
            raise SelectionError(f"--qpu has more than {MAX_CHOICES} {what}; {_FEWER}")
    return tuple(terms)


def _term(text: str) -> Term:
    prefix = next((prefix for prefix in (ANY, LEAST_BUSY) if text.startswith(prefix) and text != prefix), "")
    return Term(text, text.removeprefix(prefix).strip(" \t"), prefix)


def name_fault(name: str) -> str:
    """Return why `name` cannot be a QPU's name in a `--qpu` list; empty if it can.

    Environment variables' names begin with it, so it cannot contain `=`. It is part of a line of TaskProlog's output,
    so it cannot contain control characters.
    """
    if not name:
        return "a name is empty"
    if "," in name:
        return "a name holds a comma"
    if "=" in name:
        return f"the name {printable(name)} holds a '='"
    if not is_one_line(name):
        return f"the name {printable(name)} holds a control character"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"the name {printable(name)} is not UTF-8"
    return ""
