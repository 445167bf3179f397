"""Access rules, as Prolog applies them."""

import grp
import os
import pwd

import pytest

from qrmi_slurm.config import access
from qrmi_slurm.config.access import Person
from qrmi_slurm.config.slurm_section import Access

ALICE = Person("alice", frozenset({"quantum", "users"}), "Physics", "main", "High")


@pytest.mark.parametrize(
    "rules",
    [
        Access(),
        Access(users=("bob", "alice")),
        Access(users=(), groups=("quantum",)),
        Access(users=("alice",), groups=()),
        Access(accounts=("physics",), partitions=("main",), qos=("high",)),
    ],
)
def test_the_rules_let_these_jobs_in(rules):
    assert access.refusal("q", rules, ALICE) == ""


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (Access(users=("bob",)), "user alice may not use q: it is for user bob"),
        (Access(users=("bob", "carol")), "user alice may not use q: it is for users bob, carol"),
        (Access(groups=("optics",)), "user alice may not use q: it is for group optics"),
        (Access(("bob",), ("a", "b")), "user alice may not use q: it is for user bob or groups a, b"),
        (Access(users=(), groups=()), "user alice may not use q: nobody may"),
        (Access(partitions=("quantum",)), "partition main may not use q: it is for partition quantum"),
        (Access(accounts=("a", "b")), "account physics may not use q: it is for accounts a, b"),
        (Access(accounts=()), "account physics may not use q: nobody may"),
        (Access(qos=("low", "normal")), "QOS high may not use q: it is for QOS low, normal"),
        (Access(users=("alice",), partitions=("x",)), "partition main may not use q: it is for partition x"),
    ],
)
def test_the_rules_keep_these_jobs_out(rules, sentence):
    assert access.refusal("q", rules, ALICE) == sentence


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (Access(partitions=("main",)), "a job without a partition may not use q: it is for partition main"),
        (Access(accounts=("physics",)), "a job without an account may not use q: it is for account physics"),
        (Access(qos=("high",)), "a job without a QOS may not use q: it is for QOS high"),
        (Access(qos=()), "a job without a QOS may not use q: nobody may"),
    ],
)
def test_a_rule_keeps_out_jobs_without_its_value(rules, sentence):
    assert access.refusal("q", rules, Person("alice", frozenset())) == sentence


def test_a_long_list_of_names_is_cut_short():
    """A rule may name thousands, and slurmctld puts them into a message for each QPU."""
    rules = Access(users=tuple(f"u{number}" for number in range(25)))
    sentence = access.refusal("q", rules, ALICE)
    assert sentence.startswith("user alice may not use q: it is for users u0, u1, ")
    assert sentence.endswith(", u19, ... and 5 more")


def test_names_are_escaped_in_the_sentence():
    sentence = access.refusal("q\n", Access(users=("b\n",)), Person("al\x1bice", frozenset()))
    assert sentence == "user al\\x1bice may not use q\\n: it is for user b\\n"


def test_a_user_is_looked_up_with_all_of_their_groups():
    entry = pwd.getpwuid(os.getuid())
    person = access.person_of(entry.pw_uid)
    assert person.user == entry.pw_name
    assert len(person.groups) == len(os.getgrouplist(entry.pw_name, entry.pw_gid))
    assert (person.account, person.partition, person.qos) == (None, None, None)


def test_a_user_without_a_name_on_this_node_is_known_by_uid():
    assert access.person_of(2**31 - 7) == Person(str(2**31 - 7), frozenset())


def test_where_the_node_does_not_know_a_user_slurms_name_and_group_count():
    """It may still list the name as a member of groups."""
    group = next((one for one in grp.getgrall() if one.gr_mem and one.gr_name != "root"), None)
    member = group.gr_mem[0] if group else "alice"
    person = access.person_of(2**31 - 7, member, 0)
    assert person.user == member
    assert person.groups == {"root"} | ({one.gr_name for one in grp.getgrall() if member in one.gr_mem})
    assert access.person_of(2**31 - 7, "alice").groups == frozenset()
