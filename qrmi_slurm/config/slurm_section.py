"""The `slurm` key of a resource: our extensions of the config, parsed once when the config is loaded.

A resource is counted by a Slurm license, so that jobs wait for it in the queue. Whether licenses are enforced is up to
the site, in slurm.conf and job_submit.lua; access rules hold in Prolog in any case.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from qrmi_slurm.text import is_plain, near_match, printable

_LICENSE: Final = r"[A-Za-z0-9_.@-]+"

KEYS: Final = ("license", "capacity", "allow", "secrets", "broker")

# `"capacity": "auto"`: as many jobs as the service reports slots. Slurm counts, and the sensor sets the number, so for
# everything else there is no limit; no service has that many, and one that reports more is not believed.
AUTO: Final = "auto"
AUTO_CAPACITY: Final = 1_000_000

# Prefixes that mark a key as a comment, which JSON does not have.
COMMENT_PREFIXES: Final = ("_", "//", "$", "x-")

LICENSE_PREFIX: Final = "qpu_"

RULES: Final = ("users", "groups", "accounts", "partitions", "qos")


class Access(NamedTuple):
    """Who may use a resource. A rule that is None allows everybody, an empty one nobody.

    A person has to be in `users` or `groups` where one of them is given; each of the other rules has to fit as well.

    Args:
        users: login names.
        groups: names of Unix groups, supplementary ones too.
        accounts: Slurm accounts, which Slurm keeps in lower case.
        partitions: Slurm partitions.
        qos: Slurm qualities of service, in lower case as well.
        is_faulty: whether the section that the rules are in has a fault; then nobody may use the resource.
    """

    users: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None
    partitions: tuple[str, ...] | None = None
    qos: tuple[str, ...] | None = None
    is_faulty: bool = False

    @property
    def is_open(self) -> bool:
        """Whether everybody may use it."""
        return self == Access()


class SecretSource(NamedTuple):
    """Where a variable's value is stored: in a file, or what a command prints.

    Args:
        file: absolute path of the file; empty where a command is given.
        command: the command and its arguments, an absolute path first; empty where a file is given.
    """

    file: str = ""
    command: tuple[str, ...] = ()


class SlurmSection(NamedTuple):
    """What a resource's `slurm` key says.

    Args:
        license: the Slurm license that counts its jobs; None where nothing counts them.
        capacity: how many jobs may hold it at a time; 1 is exclusive use. AUTO_CAPACITY where it follows the service.
        access: whose jobs may use it.
        broker: whether jobs reach it through a credential broker on their node, which keeps the site's key from them.
        secrets: by variable, where a value is stored that the config does not hold itself.
        fault: why the section cannot be used, beginning with the place in the config; empty where it can. It says who
            may use the resource, so then nobody may.
        slots_license: the license whose number in a job is how many slots of it the job has; None where it has no
            slots. It is an option of the plugin's line, not a key of the config (`config_file.with_slots`).
        follows_service: whether the capacity is what the service reports.
    """

    license: str | None = None
    capacity: int = 1
    access: Access = Access()
    broker: bool = False
    secrets: Mapping[str, SecretSource] = MappingProxyType({})
    fault: str = ""
    slots_license: str | None = None
    follows_service: bool = False

    @property
    def following_license(self) -> str | None:
        """The license whose number follows the service's capacity; None where none does."""
        return (self.slots_license or self.license) if self.follows_service else None


def parse(name: str, slurm: Mapping[str, Any]) -> SlurmSection:
    """Return a resource's section; by default it has license `qpu_<name>`, one job at a time, and is open to everybody.

    Args:
        name: the resource's.
        slurm: its `slurm` key, which has no `fault`.
    """
    allow = slurm.get("allow", {})
    rules = {rule: tuple(allow[rule]) for rule in RULES if rule in allow}
    for rule in ("accounts", "qos"):
        if rule in rules:
            rules[rule] = tuple(text.lower() for text in rules[rule])
    users, groups, accounts, partitions, qos = (rules.get(rule) for rule in RULES)
    capacity = slurm.get("capacity", 1)
    return SlurmSection(
        license=slurm.get("license", default_license(name)),
        capacity=AUTO_CAPACITY if capacity == AUTO else int(capacity),
        follows_service=capacity == AUTO,
        access=Access(users, groups, accounts, partitions, qos),
        broker=slurm.get("broker", False),
        secrets={
            variable: SecretSource(source.get("file", ""), tuple(source.get("command", ())))
            for variable, source in slurm.get("secrets", {}).items()
        },
    )


def closed(name: str, slurm: Any, fault: str) -> SlurmSection:
    """Return the section of a resource that nobody may use, because what decides that has a fault.

    Args:
        name: the resource's.
        slurm: its `slurm` key, whatever that is; its license counts, so that waiting jobs go on waiting.
        fault: what is wrong, beginning with the place in the config.
    """
    license = slurm.get("license", "") if isinstance(slurm, dict) else ""
    is_sound = license is None or (isinstance(license, str) and re.fullmatch(_LICENSE, license))
    return SlurmSection(
        license=license if is_sound else default_license(name),
        access=Access(users=(), is_faulty=True),
        fault=fault,
    )


def is_known(key: str) -> bool:
    """Tell whether a `slurm` section may have this key: it is one of ours, or a comment."""
    return key in KEYS or key.startswith(COMMENT_PREFIXES)


def meant_by(key: str) -> str | None:
    """Return which key an unknown one outside of a `slurm` section was probably meant to be; None if none of ours.

    `"slrum": {"allow": ...}` and an `allow` beside `name` would both let everybody in.
    """
    return near_match(key, ("slurm", *KEYS))


def default_license(name: str) -> str:
    """Return the license of a resource that names none; characters that Slurm forbids in a license become `_`."""
    return LICENSE_PREFIX + "".join(char if char.isascii() and char.isalnum() else "_" for char in name)


def fault(slurm: Mapping[str, Any]) -> str:
    """Say what is wrong with a `slurm` key, beginning with the place in it; empty where nothing is."""
    # A key that is misspelled, or that a newer version knows, may be what keeps others out.
    unknown = next((key for key in slurm if not is_known(key)), None)
    if unknown is not None:
        return f" has a key that this version does not know: {printable(unknown)}"
    return fault_of_values(slurm)


def fault_of_values(slurm: Mapping[str, Any]) -> str:
    """Say what is wrong with the values of the keys that are known; as `fault`."""
    license = slurm.get("license")
    if license is not None and not (isinstance(license, str) and re.fullmatch(_LICENSE, license)):
        return ".license is not the name of a Slurm license"
    capacity = slurm.get("capacity", 1)
    # JSON Schema accepts 2.0 as an integer; Python accepts true as one.
    is_whole = isinstance(capacity, int | float) and not isinstance(capacity, bool) and capacity == capacity // 1
    if capacity != AUTO and (not is_whole or capacity < 1):
        return '.capacity is neither a whole number of at least 1 nor "auto"'
    if not isinstance(slurm.get("broker", False), bool):
        return ".broker is neither true nor false"
    allow = slurm.get("allow", {})
    if not isinstance(allow, dict):
        return ".allow is not an object"
    # A misspelled rule is refused: ignoring it would let everybody in.
    if not allow.keys() <= set(RULES):
        return f".allow has a key other than {', '.join(RULES)}"
    for rule, texts in allow.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) and text and is_plain(text) for text in texts):
            return f".allow.{rule} is not a list of names"
    return _fault_of_secrets(slurm.get("secrets", {}))


def _fault_of_secrets(secrets: Any) -> str:
    if not isinstance(secrets, dict):
        return ".secrets is not an object"
    for variable, source in secrets.items():
        if not variable or not is_plain(variable) or "=" in variable or variable.endswith(" "):
            return ".secrets has a key that is not a valid variable name"
        if not isinstance(source, dict) or source.keys() not in ({"file"}, {"command"}):
            return f'.secrets.{variable} is not {{"file": PATH}} or {{"command": [PATH, ...]}}'
        words = source["command"] if "command" in source else [source["file"]]
        if not isinstance(words, list) or not words:
            return f".secrets.{variable} is not a list with a command"
        if not all(isinstance(word, str) and word and is_plain(word) for word in words):
            return f".secrets.{variable} has an item that is not one line of text"
        if not words[0].startswith("/"):
            return f".secrets.{variable} does not begin with an absolute path"
    return ""
