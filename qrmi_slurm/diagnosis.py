"""What a check of the config found: each fault with its code, its place, and what to write instead.

A finding's words never hold the value of a variable. Documentation of the codes is made from `RULES`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qrmi_slurm.json_source import Position


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"  # the config is refused, or the resource cannot work
    WARNING = "warning"  # it works, but hardly as meant
    NOTE = "note"  # good to know


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is looked for.

    Args:
        code: `QS` and three digits; never given to another rule, so that scripts can rely on it.
        severity: how bad a breach is.
        title: the breach in a few words.
    """

    code: str
    severity: Severity
    title: str


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

# 1xx: the file and its text
SYNTAX: Final = Rule("QS101", _E, "the text is not JSON")
DUPLICATE_KEY: Final = Rule("QS102", _E, "a key stands twice in one object")
ENCODING: Final = Rule("QS103", _E, "the text is not UTF-8, or holds what is not a character")
TOO_LARGE: Final = Rule("QS104", _E, "the file is larger than the hooks read")
READABLE_BY_OTHERS: Final = Rule("QS110", _W, "other users can read the secrets in the file")
WRITABLE_BY_OTHERS: Final = Rule("QS111", _W, "other users can change the file")

# 2xx: the schema, and keys beside it
WRONG_TYPE: Final = Rule("QS201", _E, "a value has the wrong JSON type")
MISSING_KEY: Final = Rule("QS202", _E, "a key is missing")
UNKNOWN_KEY: Final = Rule("QS203", _W, "nobody reads this key")
BAD_NAME: Final = Rule("QS204", _E, "this cannot be a resource's name")
BAD_VARIABLE_NAME: Final = Rule("QS205", _E, "this cannot be a variable's name")
BAD_VALUE: Final = Rule("QS206", _E, "a value holds a control character")
BAD_TYPE_NAME: Final = Rule("QS207", _E, "this cannot be a type's name")
OUT_OF_RANGE: Final = Rule("QS208", _E, "a number or a name is outside of what is allowed")
SCHEMA: Final = Rule("QS299", _E, "the schema refuses the value")

# 3xx: resources
DUPLICATE_NAME: Final = Rule("QS301", _E, "two resources have one name")
UNKNOWN_TYPE: Final = Rule("QS302", _E, "neither QRMI nor the suite knows the type")
TYPE_SPELLING: Final = Rule("QS303", _W, "QRMI spells the type otherwise")
DEPRECATED_TYPE: Final = Rule("QS304", _N, "the type has a newer name")
UNSELECTABLE_NAME: Final = Rule("QS305", _W, "no --qpu list can name the resource")
AWKWARD_NAME: Final = Rule("QS306", _W, "some shells drop variables with this name in front")
NO_RESOURCES: Final = Rule("QS307", _W, "the config offers no resource")
TYPE_NOT_INSTALLED: Final = Rule("QS308", _W, "the QRMI installed here does not know the type")

# 4xx: variables
UNKNOWN_VARIABLE: Final = Rule("QS401", _W, "QRMI does not read this variable")
FOREIGN_VARIABLE: Final = Rule("QS402", _W, "the variable belongs to another type")
USERS_BRING: Final = Rule("QS403", _N, "every job has to bring these variables")
INCOMPLETE: Final = Rule("QS404", _W, "what is there cannot be used without what is missing")
PLACEHOLDER: Final = Rule("QS405", _E, "the value is still a placeholder")
EMPTY_VALUE: Final = Rule("QS406", _E, "the value is empty")
DEPRECATED_VARIABLE: Final = Rule("QS407", _N, "the variable has a newer name")
RESERVED_VARIABLE: Final = Rule("QS408", _W, "only the hooks set this variable")
PREFIXED_VARIABLE: Final = Rule("QS409", _W, "the resource's name stands in front already")
UNUSABLE_VALUE: Final = Rule("QS410", _E, "QRMI cannot use the value")
OUTER_BLANKS: Final = Rule("QS411", _W, "blanks around the value")

# 5xx: addresses
NOT_A_URL: Final = Rule("QS501", _E, "the value is not a URL")
PLAIN_HTTP: Final = Rule("QS502", _W, "requests go over the network unencrypted")
SECRET_IN_URL: Final = Rule("QS503", _W, "the URL holds a password")

RULES: Final = tuple(rule for rule in globals().copy().values() if isinstance(rule, Rule))


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault at one place.

    Args:
        rule: what was broken.
        position: where in the text; None where the file as a whole is meant.
        path: where in the JSON, as in `resources[3].environment.NAME`; empty where the file is meant.
        resource: the name of the resource concerned; empty where none is.
        message: what is wrong; one sentence, never with a variable's value in it.
        hint: what to write or do instead.
        excerpt: the masked line of a syntax error; empty for others.
        caret: the fault's distance from the beginning of `excerpt`, in characters.
    """

    rule: Rule
    position: Position | None
    path: str
    message: str
    hint: str = ""
    resource: str = ""
    excerpt: str = ""
    caret: int = 0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found in one config.

    Args:
        file: the file's name as it was given.
        resources: how many resources it has; None where that cannot be told.
        findings: in the order of the text.
    """

    file: str
    resources: int | None
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Return how many findings have `severity`."""
        return sum(finding.rule.severity is severity for finding in self.findings)

    def is_valid(self, *, strict: bool = False) -> bool:
        """Tell whether the config can be used; with `strict` warnings count as errors."""
        return not self.count(Severity.ERROR) and not (strict and self.count(Severity.WARNING))
