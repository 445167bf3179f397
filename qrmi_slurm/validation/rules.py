"""The rules a config is checked against, and what a check reports: findings, and the diagnosis of a whole config.

A finding never contains the value of a variable. docs/validate-config.md is generated from `RULES`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qrmi_slurm.validation.json_text import Position


class Severity(StrEnum):
    """How serious a finding is."""

    ERROR = "error"  # the config is refused, or the resource cannot work
    WARNING = "warning"  # it works, but probably not as intended
    NOTE = "note"  # for information


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that the check looks for.

    Args:
        code: `QS` and three digits; never reused for another rule, so scripts can rely on it.
        severity: how serious a violation is.
        title: the violation in a few words.
        why: why it matters; for the generated page.
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
    "the text is not valid JSON",
    "JSON has no comments and no trailing commas, and strings are in double quotes. QRMI and the hooks refuse the "
    "whole file. The check reads on after common mistakes, so one run reports all of them. It shows the line with "
    "everything masked that could be a secret.",
)
DUPLICATE_KEY: Final = Rule(
    "QS102",
    _E,
    "an object has the same key twice",
    "JSON parsers differ in which of the two they use. The hooks refuse a resource with such an object.",
)
ENCODING: Final = Rule(
    "QS103",
    _E,
    "invalid character encoding",
    "QRMI and the hooks read UTF-8. An escape such as `\\ud800` on its own is half of a surrogate pair, which no "
    "environment variable can hold.",
)
TOO_LARGE: Final = Rule(
    "QS104",
    _E,
    "the file is larger than the hooks accept",
    "The hooks read the file as root when a job with `--qpu` starts, and refuse more than 64 MiB.",
)
READABLE_BY_OTHERS: Final = Rule(
    "QS110",
    _W,
    "other users can read the secrets in the file",
    "Jobs receive the variables of their QPUs from the hooks, which run as root. No other user needs to read the file.",
)
WRITABLE_BY_OTHERS: Final = Rule(
    "QS111",
    _E,
    "other users can change the file",
    "The file decides where the site's credentials are sent and which commands run as root, so the hooks refuse it "
    "if it belongs to another user than root or others can write to it: every job with `--qpu` fails. A draft may "
    "belong to the user who checks it.",
)

# 2xx: the schema, and keys that are not in it
WRONG_TYPE: Final = Rule(
    "QS201",
    _E,
    "a value has the wrong JSON type",
    "Each key takes one type of value. Variables are strings: put numbers in quotes too.",
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
    "unknown key",
    "Neither QRMI nor the hooks read it, so it has no effect. Keys that begin with `_`, `//`, `$` or `x-` are "
    "comments and are ignored.",
)
BAD_NAME: Final = Rule(
    "QS204",
    _E,
    "invalid resource name",
    "The name becomes the prefix of environment variables, so it cannot contain `=` or control characters.",
)
BAD_VARIABLE_NAME: Final = Rule(
    "QS205",
    _E,
    "invalid variable name",
    "It becomes the name of an environment variable, so it cannot be empty, contain `=` or control characters, or end"
    " with a space.",
)
BAD_VALUE: Final = Rule(
    "QS206",
    _E,
    "a value contains a control character",
    "Tasks receive each value on one line. A line break often comes from pasting a whole file.",
)
BAD_TYPE_NAME: Final = Rule(
    "QS207",
    _E,
    "invalid type name",
    "A type is a name on one line.",
)
OUT_OF_RANGE: Final = Rule(
    "QS208",
    _E,
    "invalid capacity or license name",
    "A capacity is a whole number, 1 or more. A license is one name as in `Licenses=` of slurm.conf, without a count.",
)
BAD_ACCESS_RULE: Final = Rule(
    "QS209",
    _E,
    "invalid access rule",
    "`allow` takes lists of names under `users`, `groups`, `accounts`, `partitions` and `qos`. A misspelled rule "
    "would let everybody in, so the hooks refuse the resource.",
)
BAD_SOURCE: Final = Rule(
    "QS210",
    _E,
    "invalid source of a secret",
    'A source is `{"file": PATH}` or `{"command": [PATH, ARGUMENT, ...]}` with an absolute path. The command runs '
    "without a shell.",
)
UNKNOWN_ACCESS_KEY: Final = Rule(
    "QS211",
    _E,
    "unknown key where access is decided",
    "The `slurm` section says who may use a resource. A key in it that this version does not know, or one of its keys "
    "in the wrong place, may have been meant to keep others out, so the hooks refuse the resource: nobody may use it. "
    "A key that only a newer version knows is refused as well: upgrade all nodes before you use it. Keys that begin "
    "with `_`, `//`, `$` or `x-` are comments.",
)
SCHEMA: Final = Rule(
    "QS299",
    _E,
    "the schema rejects the value",
    "The schema, `qrmi_config.schema.json`, describes what is allowed there.",
)

# 3xx: resources
DUPLICATE_NAME: Final = Rule(
    "QS301",
    _E,
    "two resources have the same name",
    "Users select a resource by name in `--qpu`. QRMI uses the last of two with the same name. The hooks refuse both, "
    "since different users may be allowed to use them.",
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
    "QRMI spells the type differently",
    "The hooks accept this spelling. QRMI does not, and programs may give it the same file.",
)
DEPRECATED_TYPE: Final = Rule(
    "QS304",
    _N,
    "the type has a newer name",
    "Both names work. New versions of QRMI may drop the old one.",
)
UNSELECTABLE_NAME: Final = Rule(
    "QS305",
    _W,
    "--qpu cannot select this name",
    "`--qpu` is a comma-separated list of up to 4096 bytes; spaces around the names are dropped.",
)
AWKWARD_NAME: Final = Rule(
    "QS306",
    _W,
    "some shells drop variables that begin with this name",
    "dash, the `/bin/sh` of Debian and Ubuntu, keeps only variables whose names consist of letters, digits and "
    "underscores. TaskProlog restores the others for each step; a job script that begins with `#!/bin/sh` does not "
    "see them.",
)
NO_RESOURCES: Final = Rule(
    "QS307",
    _W,
    "the config has no resources",
    "Every job with `--qpu` fails.",
)
TYPE_NOT_INSTALLED: Final = Rule(
    "QS308",
    _W,
    "the installed QRMI does not know the type",
    "Jobs that ask for the resource fail until a QRMI that knows the type is installed in qrmi-slurm's venv.",
)

SHARED_LICENSE: Final = Rule(
    "QS309",
    _W,
    "two resources share a license inconsistently",
    "A license has one count, so two different capacities cannot both apply. Unless both resources name the license, "
    "the sharing is probably an accident, and jobs for one resource wait for the other.",
)
UNCOUNTED_CAPACITY: Final = Rule(
    "QS310",
    _W,
    "a capacity has no license to count it",
    'With `"license": null` jobs start whether the resource is free or not.',
)
NOBODY: Final = Rule(
    "QS311",
    _W,
    "an access rule lets nobody in",
    "An empty list matches nobody.",
)
BROKER_UNSUPPORTED: Final = Rule(
    "QS312",
    _E,
    "the resource cannot have a credential broker",
    "Only ibm-quantum-compute-service and ibm-quantum-system can have one. Prolog refuses the resource rather than "
    "give its key to a job.",
)
BROKER_WITHOUT_KEY: Final = Rule(
    "QS313",
    _E,
    "the credential broker has no key to protect",
    "A broker adds the site's key to the requests of jobs, which never see it. Where users bring their own key there "
    "is nothing to hide from them, and their jobs reach the service directly.",
)
UNFIT_SLOTS_LICENSE: Final = Rule(
    "QS314",
    _E,
    "a license for slots does not fit the config",
    "`--qpu-slots-license:RESOURCE=LICENSE` on the plugin's line names a resource of the config, and a license that "
    "users ask for. The license that counts the resource's jobs is another one: each job has one of it, however many "
    "slots it wants. This is checked for the config that the plugin's line names.",
)

# 4xx: variables
UNKNOWN_VARIABLE: Final = Rule(
    "QS401",
    _W,
    "QRMI does not read this variable",
    "A misspelled variable has no effect. For a proxy, add `--env:https_proxy=URL` to the plugin's line in "
    "plugstack.conf.",
)
FOREIGN_VARIABLE: Final = Rule(
    "QS402",
    _W,
    "the variable belongs to another type",
    "QRMI reads only the variables of the resource's own type.",
)
USERS_BRING: Final = Rule(
    "QS403",
    _N,
    "every job has to bring these variables",
    "This is right where users have their own credentials. Jobs without them fail.",
)
INCOMPLETE: Final = Rule(
    "QS404",
    _W,
    "the variables need others that are missing",
    "Some variables only work together. A secret without its endpoint is never used: a job that brings the endpoint "
    "has to bring the whole set.",
)
PLACEHOLDER: Final = Rule(
    "QS405",
    _E,
    "the value is still a placeholder",
    "QRMI would send the placeholder as it is.",
)
EMPTY_VALUE: Final = Rule(
    "QS406",
    _E,
    "the value is empty",
    "An empty value counts as set, so nothing reports the variable as missing.",
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
    "A token, a session or a time limit belongs to one job. One that is set here would be shared, or closed, by every "
    "job.",
)
PREFIXED_VARIABLE: Final = Rule(
    "QS409",
    _W,
    "the variable already begins with the resource's name",
    "The hooks add `<name>_` when a job starts, and QRMI does not read `<name>_<name>_...`.",
)
UNUSABLE_VALUE: Final = Rule(
    "QS410",
    _E,
    "QRMI cannot use the value",
    "QRMI would refuse the value when a job starts, or silently use its default.",
)
OUTER_SPACES: Final = Rule(
    "QS411",
    _W,
    "the value begins or ends with a space",
    "Slurm strips leading spaces from exported values, so tasks and hooks would see different values.",
)

STORED_TWICE: Final = Rule(
    "QS412",
    _W,
    "the stored secret is also in the environment",
    "The stored one is used. The one in the environment may be an old key that was forgotten there.",
)
UNREADABLE_SECRET: Final = Rule(
    "QS413",
    _W,
    "the stored secret cannot be read",
    "The hooks read it as root each time a job starts, and refuse a file that others can read.",
)

# 5xx: addresses
NOT_A_URL: Final = Rule(
    "QS501",
    _E,
    "the value is not a URL",
    "An endpoint needs a scheme and a host, and a port and path where the service has them.",
)
PLAIN_HTTP: Final = Rule(
    "QS502",
    _W,
    "requests cross the network unencrypted",
    "Every request carries credentials. Use plain http only for services on the same machine.",
)
SECRET_IN_URL: Final = Rule(
    "QS503",
    _W,
    "the URL contains credentials",
    "URLs appear in logs and error messages. There are separate variables for credentials.",
)

RULES: Final = tuple(rule for rule in globals().copy().values() if isinstance(rule, Rule))


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault in one place.

    Args:
        rule: the rule that is violated.
        position: where in the text; None for the file as a whole.
        path: where in the JSON, as in `resources[3].environment.NAME`; empty for the file as a whole.
        message: what is wrong, in one sentence; never contains a variable's value.
        hint: what to write or do instead.
        resource: the resource's name; empty where the fault is outside of resources.
        excerpt: the masked line, for syntax errors; otherwise empty.
        caret: the offset of the fault in `excerpt`, in characters.
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
    """All findings about one config.

    Args:
        file: the file's name as given.
        resources: how many resources it has; None if unknown.
        findings: in the order of the text.
    """

    file: str
    resources: int | None
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Return how many findings have `severity`."""
        return sum(finding.rule.severity is severity for finding in self.findings)

    def is_valid(self, *, strict: bool = False) -> bool:
        """Tell whether the config can be used; with `strict`, warnings count as errors."""
        return not self.count(Severity.ERROR) and not (strict and self.count(Severity.WARNING))
