"""Sharing: how many jobs may hold a resource at a time, and whose, by the `slurm` key of its entry in the config.

A resource is counted by a Slurm license, so that jobs wait for it in the queue. Whether licenses are in force is the
site's to say, in slurm.conf and job_submit.lua; access rules hold in Prolog all the same.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from qrmi_slurm.text import is_one_line

_LICENSE: Final = re.compile(r"[A-Za-z0-9_.@-]+")
_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9_]")

LICENSE_PREFIX: Final = "qpu_"

RULES: Final = ("users", "groups", "accounts", "partitions", "qos")


class Access(NamedTuple):
    """Who may hold a resource; None where a rule says nothing, an empty one lets nobody in.

    A person has to be in `users` or `groups` where one of them is given; each of the others has to fit as well.

    Args:
        users: login names.
        groups: names of Unix groups, supplementary ones too.
        accounts: Slurm accounts, which Slurm keeps in lower case.
        partitions: Slurm partitions.
        qos: Slurm qualities of service, in lower case as well.
    """

    users: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None
    partitions: tuple[str, ...] | None = None
    qos: tuple[str, ...] | None = None

    @property
    def is_open(self) -> bool:
        """Whether everybody may hold it."""
        return self == Access()


class Sharing(NamedTuple):
    """How jobs share a resource.

    Args:
        license: the Slurm license that counts its jobs; None where none does.
        capacity: how many jobs may hold it at a time; 1 is exclusive use.
        access: whose jobs.
        broker: whether jobs reach it through a credential broker on their node, which keeps the site's key from them.
    """

    license: str | None
    capacity: int
    access: Access
    broker: bool = False


def of(name: str, slurm: Mapping[str, Any]) -> Sharing:
    """Return how a resource is shared: by `qpu_<name>`, one job at a time, with everybody, unless it says otherwise.

    Args:
        name: the resource's.
        slurm: its `slurm` key, which has no `fault`.
    """
    allow = slurm.get("allow", {})
    rules = {rule: tuple(allow[rule]) for rule in RULES if rule in allow}
    for rule in ("accounts", "qos"):
        if rule in rules:
            rules[rule] = tuple(text.lower() for text in rules[rule])
    return Sharing(
        slurm.get("license", default_license(name)),
        int(slurm.get("capacity", 1)),
        Access(**rules),
        slurm.get("broker", False),
    )


def default_license(name: str) -> str:
    """Return the license of a resource that names none: what Slurm cannot have in a license's name becomes `_`."""
    return LICENSE_PREFIX + _NOT_PLAIN.sub("_", name)


def fault(slurm: Mapping[str, Any]) -> str:
    """Say what is wrong with a `slurm` key, beginning with the place in it; empty where nothing is."""
    license = slurm.get("license")
    if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
        return ".license is not the name of a Slurm license"
    capacity = slurm.get("capacity", 1)
    # JSON Schema counts 2.0 as an integer; Python counts true as one.
    is_whole = isinstance(capacity, int | float) and not isinstance(capacity, bool) and capacity == capacity // 1
    if not is_whole or capacity < 1:
        return ".capacity is not a whole number from 1 on"
    if not isinstance(slurm.get("broker", False), bool):
        return ".broker is neither true nor false"
    allow = slurm.get("allow", {})
    if not isinstance(allow, dict):
        return ".allow is not an object"
    # A misspelt rule is refused, not left out: it would let everybody in.
    if not allow.keys() <= set(RULES):
        return f".allow has another key than {', '.join(RULES)}"
    for rule, texts in allow.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) and _is_plain(text) for text in texts):
            return f".allow.{rule} is not a list of names"
    return _fault_of_secrets(slurm.get("secrets", {}))


def _fault_of_secrets(secrets: Any) -> str:
    if not isinstance(secrets, dict):
        return ".secrets is not an object"
    for variable, source in secrets.items():
        if not _is_plain(variable) or "=" in variable or variable.endswith(" "):
            return ".secrets has a key that is not a variable's name"
        if not isinstance(source, dict) or source.keys() not in ({"file"}, {"command"}):
            return f'.secrets.{variable} is not {{"file": PATH}} or {{"command": [PATH, ...]}}'
        words = source["command"] if "command" in source else [source["file"]]
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and _is_plain(w) for w in words):
            return f".secrets.{variable} holds something that is not a text of one line"
        if not words[0].startswith("/"):
            return f".secrets.{variable} does not begin with an absolute path"
    return ""


def _is_plain(text: str) -> bool:
    return bool(text) and is_one_line(text) and not any("\ud800" <= char <= "\udfff" for char in text)
