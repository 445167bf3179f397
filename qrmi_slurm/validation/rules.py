"""What a check of the config found: each fault with its code, its place, and what to write instead.

A finding's words never hold the value of a variable. Documentation of the codes is made from `RULES`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qrmi_slurm.validation.json_text import Position


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
        why: what comes of it; for the page that is made of the rules.
    """

    code: str
    severity: Severity
    title: str
    why: str


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

# 1xx: the file and its text
SYNTAX: Final = Rule(
    "QS101",
    _E,
    "the text is not JSON",
    "JSON has no comments, no commas behind the last item, and double quotes only. QRMI and the hooks "
    "refuse the whole file. Reading goes on behind the usual mistakes, so that one run tells all of them; "
    "the line is shown with everything masked that might be a secret.",
)
DUPLICATE_KEY: Final = Rule(
    "QS102",
    _E,
    "a key stands twice in one object",
    "Readers differ in which of the two counts; the hooks and QRMI take the last one.",
)
ENCODING: Final = Rule(
    "QS103",
    _E,
    "the text is not UTF-8, or holds what is not a character",
    "The hooks and QRMI read UTF-8. An escape such as `\\ud800` alone is half a character, which no "
    "environment can hold.",
)
TOO_LARGE: Final = Rule(
    "QS104",
    _E,
    "the file is larger than the hooks read",
    "The hooks read the file as root when a job with `--qpu` starts, and no more than 64 MiB of it.",
)
READABLE_BY_OTHERS: Final = Rule(
    "QS110",
    _W,
    "other users can read the secrets in the file",
    "Jobs get the variables of the QPUs that they hold from the hooks, which run as root. Nobody else "
    "needs to read the file.",
)
WRITABLE_BY_OTHERS: Final = Rule(
    "QS111",
    _W,
    "other users can change the file",
    "The hooks act on the file as root: who can write it decides where the site's credentials go.",
)

# 2xx: the schema, and keys beside it
WRONG_TYPE: Final = Rule(
    "QS201",
    _E,
    "a value has the wrong JSON type",
    "Each key takes one kind of value. Variables are texts: numbers among them stand in quotes too.",
)
MISSING_KEY: Final = Rule(
    "QS202",
    _E,
    "a key is missing",
    "A resource needs `name`, `type` and `environment`; the file needs `resources`.",
)
UNKNOWN_KEY: Final = Rule(
    "QS203",
    _W,
    "nobody reads this key",
    "Neither QRMI nor the hooks read it, so that what it should say is not said. Keys that begin with "
    "`_`, `//`, `$` or `x-` are comments and are left alone.",
)
BAD_NAME: Final = Rule(
    "QS204",
    _E,
    "this cannot be a resource's name",
    "The name becomes the front part of environment variables, hence no `=` and no control character.",
)
BAD_VARIABLE_NAME: Final = Rule(
    "QS205",
    _E,
    "this cannot be a variable's name",
    "It becomes the name of an environment variable: not empty, no `=`, no control character, no blank at its end.",
)
BAD_VALUE: Final = Rule(
    "QS206",
    _E,
    "a value holds a control character",
    "A value is handed to tasks in one line. A line break in it often comes from a file that was pasted as a whole.",
)
BAD_TYPE_NAME: Final = Rule(
    "QS207",
    _E,
    "this cannot be a type's name",
    "A type is a name in one line.",
)
OUT_OF_RANGE: Final = Rule(
    "QS208",
    _E,
    "a number or a name is outside of what is allowed",
    "A capacity is a whole number from 1 on; a license is one name as in `Licenses=` of slurm.conf, without a count.",
)
BAD_ACCESS_RULE: Final = Rule(
    "QS209",
    _E,
    "this cannot be an access rule",
    "`allow` takes lists of names under `users`, `groups`, `accounts`, `partitions` and `qos`. A misspelt rule would "
    "let everybody in, so it is refused.",
)
BAD_SOURCE: Final = Rule(
    "QS210",
    _E,
    "this does not say where a secret is",
    'It is `{"file": PATH}` or `{"command": [PATH, ARGUMENT, ...]}` with absolute paths, no shell.',
)
SCHEMA: Final = Rule(
    "QS299",
    _E,
    "the schema refuses the value",
    "The schema, `qrmi_config.schema.json`, says what is allowed there.",
)

# 3xx: resources
DUPLICATE_NAME: Final = Rule(
    "QS301",
    _E,
    "two resources have one name",
    "Users name a resource in `--qpu`; of two with one name the last one counts.",
)
UNKNOWN_TYPE: Final = Rule(
    "QS302",
    _E,
    "neither QRMI nor the suite knows the type",
    "Jobs that ask for the resource fail. A type that only the installed QRMI knows is accepted.",
)
TYPE_SPELLING: Final = Rule(
    "QS303",
    _W,
    "QRMI spells the type otherwise",
    "The hooks understand it, but QRMI, which programs may hand the same file to, does not.",
)
DEPRECATED_TYPE: Final = Rule(
    "QS304",
    _N,
    "the type has a newer name",
    "Both names work. New versions of QRMI may drop the older one.",
)
UNSELECTABLE_NAME: Final = Rule(
    "QS305",
    _W,
    "no --qpu list can name the resource",
    "`--qpu` takes names between commas, without the blanks around them, 4096 bytes in all.",
)
AWKWARD_NAME: Final = Rule(
    "QS306",
    _W,
    "some shells drop variables with this name in front",
    "dash, the `/bin/sh` of Debian and Ubuntu, keeps only variables whose names have letters, digits and "
    "underscores. TaskProlog restores them for each step; a job script that begins with `#!/bin/sh` does "
    "not see them.",
)
NO_RESOURCES: Final = Rule(
    "QS307",
    _W,
    "the config offers no resource",
    "Every job with `--qpu` fails.",
)
TYPE_NOT_INSTALLED: Final = Rule(
    "QS308",
    _W,
    "the QRMI installed here does not know the type",
    "Jobs that ask for the resource fail until another version of QRMI is installed beside the hooks.",
)

SHARED_LICENSE: Final = Rule(
    "QS309",
    _W,
    "two resources are counted by one license, each in another way",
    "A license has one count, so that one of the two capacities does not hold; and where neither resource names its "
    "license, jobs of the one wait for the other.",
)
UNCOUNTED_CAPACITY: Final = Rule(
    "QS310",
    _W,
    "without a license nothing counts the jobs",
    'With `"license": null` jobs start whether the resource is free or not.',
)
NOBODY: Final = Rule(
    "QS311",
    _W,
    "an access rule lets nobody in",
    "An empty list is a list that nobody is in.",
)
BROKER_OF_NO_USE: Final = Rule(
    "QS312",
    _E,
    "the resource cannot have a credential broker",
    "A broker speaks for ibm-quantum-compute-service and ibm-quantum-system alone. Prolog refuses the resource "
    "rather than let its key reach a job.",
)
BROKER_WITHOUT_KEY: Final = Rule(
    "QS313",
    _E,
    "there is no key for the credential broker to keep",
    "A broker adds the site's key to the requests of jobs that do not have it. Where users bring their own, there is "
    "nothing to keep from them, and their jobs reach the service directly.",
)

# 4xx: variables
UNKNOWN_VARIABLE: Final = Rule(
    "QS401",
    _W,
    "QRMI does not read this variable",
    "A misspelt variable is as good as none. A proxy belongs on the plugin's line: `--env:https_proxy=URL`.",
)
FOREIGN_VARIABLE: Final = Rule(
    "QS402",
    _W,
    "the variable belongs to another type",
    "QRMI looks for variables of the resource's own type alone.",
)
USERS_BRING: Final = Rule(
    "QS403",
    _N,
    "every job has to bring these variables",
    "As it should be where users have credentials of their own; jobs without them fail.",
)
INCOMPLETE: Final = Rule(
    "QS404",
    _W,
    "what is there cannot be used without what is missing",
    "A secret without its endpoint is never used: where a job brings the endpoint, it brings the whole set.",
)
PLACEHOLDER: Final = Rule(
    "QS405",
    _E,
    "the value is still a placeholder",
    "QRMI would send the placeholder as it stands.",
)
EMPTY_VALUE: Final = Rule(
    "QS406",
    _E,
    "the value is empty",
    "An empty value counts as set, also before the user's own is looked at by other programs.",
)
DEPRECATED_VARIABLE: Final = Rule(
    "QS407",
    _N,
    "the variable has a newer name",
    "Programs see it under both names. QRMI reads the newer one.",
)
RESERVED_VARIABLE: Final = Rule(
    "QS408",
    _W,
    "only the hooks set this variable",
    "A token, a session or a time limit belongs to one job. One that stood here would be shared, or "
    "closed, by every job.",
)
PREFIXED_VARIABLE: Final = Rule(
    "QS409",
    _W,
    "the resource's name stands in front already",
    "`<name>_` is put in front when a job starts; with it QRMI would have to look for `<name>_<name>_...`.",
)
UNUSABLE_VALUE: Final = Rule(
    "QS410",
    _E,
    "QRMI cannot use the value",
    "QRMI would refuse the value when a job starts, or take its default without a word.",
)
OUTER_BLANKS: Final = Rule(
    "QS411",
    _W,
    "blanks around the value",
    "Slurm takes the blanks in front of an exported value away, so that tasks and hooks would differ.",
)

STORED_TWICE: Final = Rule(
    "QS412",
    _W,
    "the variable stands in the environment too",
    "The value that is kept elsewhere is used; the one in the file may be an old key that nobody misses.",
)
UNREADABLE_SECRET: Final = Rule(
    "QS413",
    _W,
    "the secret cannot be read from where it is kept",
    "The hooks read it as root each time that a job starts, and refuse a file that others can read.",
)

# 5xx: addresses
NOT_A_URL: Final = Rule(
    "QS501",
    _E,
    "the value is not a URL",
    "Endpoints are written whole: scheme, host, and port and path where they are needed.",
)
PLAIN_HTTP: Final = Rule(
    "QS502",
    _W,
    "requests go over the network unencrypted",
    "Credentials go with every request. Plain http is for services on the same machine.",
)
SECRET_IN_URL: Final = Rule(
    "QS503",
    _W,
    "the URL holds a password",
    "URLs stand in logs and in error messages. Credentials have variables of their own.",
)

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
