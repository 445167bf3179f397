"""How jobs share a resource, as configured under its `slurm` key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.config import slurm_section
from qrmi_slurm.config.slurm_section import Access, SlurmSection


def test_by_default_a_resource_is_for_one_job_at_a_time_of_any_user():
    shared = slurm_section.parse("ibm_quebec", {})
    assert shared == SlurmSection("qpu_ibm_quebec", 1, Access())
    assert shared.access.is_open


def test_configured_values_are_used():
    slurm = {"license": "l", "capacity": 2.0, "allow": {"users": ["Alice"], "accounts": ["Physics"], "qos": []}}
    assert slurm_section.fault(slurm) == ""
    assert slurm_section.parse("a", slurm) == SlurmSection(
        "l", 2, Access(users=("Alice",), accounts=("physics",), qos=())
    )


def test_a_capacity_may_follow_the_service():
    section = slurm_section.parse("a", {"capacity": "auto"})
    assert (section.follows_service, section.capacity) == (True, slurm_section.AUTO_CAPACITY)
    assert section.following_license == "qpu_a"
    assert section._replace(slots_license="lanes").following_license == "lanes"
    assert slurm_section.parse("a", {"capacity": 2}).following_license is None


def test_null_means_no_license():
    assert slurm_section.parse("a", {"license": None}).license is None


@given(st.text(min_size=1))
def test_each_name_has_a_default_license_that_slurm_takes(name):
    assert slurm_section.fault({"license": slurm_section.default_license(name)}) == ""


@pytest.mark.parametrize(
    ("slurm", "place"),
    [
        ({"license": "a:2"}, ".license"),
        ({"license": ""}, ".license"),
        ({"license": 1}, ".license"),
        ({"capacity": 0}, ".capacity"),
        ({"capacity": True}, ".capacity"),
        ({"capacity": 1.5}, ".capacity"),
        ({"capacity": "1"}, ".capacity"),
        ({"capacity": "Auto"}, ".capacity"),
        ({"capacity": ["auto"]}, ".capacity"),
        ({"capacity": float("nan")}, ".capacity"),
        ({"allow": ["alice"]}, ".allow"),
        ({"allow": {"user": ["alice"]}}, ".allow"),
        ({"allow": {"users": "alice"}}, ".allow.users"),
        ({"allow": {"users": [1]}}, ".allow.users"),
        ({"allow": {"groups": ["a\nb"]}}, ".allow.groups"),
        ({"allow": {"groups": [""]}}, ".allow.groups"),
    ],
)
def test_a_fault_names_its_place(slurm, place):
    assert slurm_section.fault(slurm).startswith(f"{place} ")
