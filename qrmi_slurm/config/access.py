"""Access: whether a job's owner may use a QPU, by the rules of its entry in the config.

job_submit.lua says the same at submission, where it can; here is the authority, by what Slurm and the node say.
"""

import grp
import os
import pwd
from collections.abc import Sequence
from typing import NamedTuple

from qrmi_slurm.config.slurm_section import Access
from qrmi_slurm.text import printable

_SINGULAR = {"users": "user", "groups": "group", "accounts": "account", "partitions": "partition", "qos": "QOS"}


class Person(NamedTuple):
    """Who asks.

    Args:
        user: the login name.
        groups: the names of all groups.
        account: the job's Slurm account; None where Slurm says none.
        partition: the job's partition; None where Slurm does not say.
        qos: the job's quality of service; None where Slurm does not say.
    """

    user: str
    groups: frozenset[str]
    account: str | None = None
    partition: str | None = None
    qos: str | None = None


def person_of(uid: int) -> Person:
    """Return what this node knows of a user, his job's part left open.

    A user or a group that the node has no name for goes by its number.
    """
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Person(str(uid), frozenset())
    return Person(entry.pw_name, frozenset(map(_group_name, os.getgrouplist(entry.pw_name, entry.pw_gid))))


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def refusal(name: str, access: Access, person: Person) -> str:
    """Say why a person may not use a QPU; empty where he may.

    Args:
        name: the QPU's.
        access: its rules.
        person: who asks.
    """
    subject = f"{printable(name)} may not be used"
    if access.users is not None or access.groups is not None:
        is_named = person.user in (access.users or ()) or not person.groups.isdisjoint(access.groups or ())
        if not is_named:
            allowed = [_listed("users", access.users), _listed("groups", access.groups)]
            return f"{subject} by user {person.user}: it is for {' or '.join(filter(None, allowed)) or 'nobody'}"
    for rule, preposition, allowed_names, value in (
        ("partitions", "in", access.partitions, person.partition),
        ("accounts", "with", access.accounts, person.account and person.account.lower()),
        ("qos", "with", access.qos, person.qos and person.qos.lower()),
    ):
        if allowed_names is not None and value not in allowed_names:
            which = f"{_SINGULAR[rule]} {printable(value)}" if value else f"no {_SINGULAR[rule]}"
            return f"{subject} {preposition} {which}: it is for {_listed(rule, allowed_names) or 'nobody'}"
    return ""


def _listed(rule: str, names: Sequence[str] | None) -> str:
    if not names:
        return ""
    word = _SINGULAR[rule] if len(names) == 1 or rule == "qos" else rule
    return f"{word} {', '.join(map(printable, names))}"
