"""Access: whether a job's owner may use a QPU, by the rules of its entry in the config.

At submission, cli_filter/qrmi_slurm.lua refuses what it can with the same sentences. Prolog has the last word, since it
knows what Slurm and the node say.
"""

import grp
import os
import pwd
from collections.abc import Sequence
from typing import Final, NamedTuple

from qrmi_slurm.config.slurm_section import Access
from qrmi_slurm.text import listing, printable


class _Words(NamedTuple):
    """The words for one value of a rule, for several, and for a job without one."""

    one: str
    many: str
    none: str = ""


_USERS: Final = _Words("user", "users")
_GROUPS: Final = _Words("group", "groups")
_PARTITIONS: Final = _Words("partition", "partitions", "a job without a partition")
_ACCOUNTS: Final = _Words("account", "accounts", "a job without an account")
_QOS: Final = _Words("QOS", "QOS", "a job without a QOS")

_NOBODY_YET: Final = "nobody until an admin has fixed its configuration"


class Person(NamedTuple):
    """A job's owner, with what access rules look at.

    Args:
        user: the login name.
        groups: the names of all groups.
        account: the job's Slurm account; None if Slurm does not tell.
        partition: the job's partition; None if Slurm does not tell.
        qos: the job's quality of service; None if Slurm does not tell.
    """

    user: str
    groups: frozenset[str]
    account: str | None = None
    partition: str | None = None
    qos: str | None = None


def person_of(uid: int, user: str = "", gid: int | None = None) -> Person:
    """Return a user with their groups, as this node knows them; account, partition and QOS are left open.

    A user or a group without a name on this node goes by its number.

    Args:
        uid: user id.
        user: the login name according to Slurm, for a node that does not know the user; empty if unknown.
        gid: the job's group according to Slurm, for the same; None if unknown.
    """
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        # Such a node may still list the name as a member of groups.
        gids = os.getgrouplist(user, gid) if user and gid is not None else []
        return Person(user or str(uid), frozenset(map(_group_name, gids)))
    return Person(entry.pw_name, frozenset(map(_group_name, os.getgrouplist(entry.pw_name, entry.pw_gid))))


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def refusal(name: str, access: Access, person: Person) -> str:
    """Return why a person may not use a QPU, or an empty string if they may.

    Args:
        name: the QPU's name.
        access: its rules.
        person: who asks.
    """
    if access.users is not None or access.groups is not None:
        is_named = person.user in (access.users or ()) or not person.groups.isdisjoint(access.groups or ())
        if not is_named:
            return _denial(f"user {printable(person.user)}", name, whom(access, "users"))
    for rule, words, value in (
        ("partitions", _PARTITIONS, person.partition),
        ("accounts", _ACCOUNTS, person.account and person.account.lower()),
        ("qos", _QOS, person.qos and person.qos.lower()),
    ):
        allowed_names = getattr(access, rule)
        if allowed_names is not None and value not in allowed_names:
            subject = f"{words.one} {printable(value)}" if value else words.none
            return _denial(subject, name, whom(access, rule))
    return ""


def whom(access: Access, rule: str) -> str:
    """Return whom a rule lets in, as in `user bob or group quantum`; empty if nobody.

    Args:
        access: the rules.
        rule: its name; `users` stands for `groups` as well, since either lets in.
    """
    if access.is_faulty:
        return _NOBODY_YET
    if rule == "users":
        return " or ".join(filter(None, (_listed(_USERS, access.users), _listed(_GROUPS, access.groups))))
    words = {"partitions": _PARTITIONS, "accounts": _ACCOUNTS, "qos": _QOS}[rule]
    return _listed(words, getattr(access, rule))


def _denial(subject: str, name: str, allowed: str) -> str:
    ending = f"it is for {allowed}" if allowed else "nobody may"
    return f"{subject} may not use {printable(name)}: {ending}"


def _listed(words: _Words, names: Sequence[str] | None) -> str:
    if not names:
        return ""
    return f"{words.one if len(names) == 1 else words.many} {listing(names)}"
