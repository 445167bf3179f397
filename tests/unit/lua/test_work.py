"""How much work the Lua module makes for slurmctld, which does nothing else meanwhile.

Counted in instructions of Lua's virtual machine and in bytes that its string functions search, so that a busy machine
changes nothing. `pytest -s` prints the figures, with the time that each case took.
"""

import functools

import pytest

from lua import INTERPRETERS, Lua, spank
from qrmi_slurm.config import slurm_section
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.scheduling import catalogue
from qrmi_slurm.scheduling.catalogue import Group

QCS = "ibm-quantum-compute-service"
QPUS = 5000

# Some 10 ns for an instruction and 1 ns for a searched byte, which no selection has most of: below 2 ms with --qpu, and
# below 0.2 ms without, also on a slow machine.
MAX_INSTRUCTIONS = 75_000
MAX_SEARCHED = 1_300_000
MAX_INSTRUCTIONS_WITHOUT_QPU = 8_000
MAX_SEARCHED_WITHOUT_QPU = 20_000


def names(count=QPUS):
    return [f"ibm_{('quebec', 'kyiv', 'eagle', 'heron')[number % 4]}_{number:04}" for number in range(count)]


def resources(make_slurm=lambda number: {}, count=QPUS):
    return [
        Resource(name, (QCS, "iqm-server")[number % 2], {}, False, slurm_section.parse(name, make_slurm(number)))
        for number, name in enumerate(names(count))
    ]


LONG = (
    "ü" * 2048,
    "q" * 4096,
    *(f"ibm_{'x' * 200}{number}" for number in range(50)),
    *(f"q{number}" for number in range(99)),
)
SITES = {
    "open": resources,
    "one license": lambda: resources(lambda _: {"license": "qpus", "capacity": 9}),
    "no license": lambda: resources(lambda _: {"license": None}),
    "closed": lambda: resources(lambda _: {"allow": {"users": [f"user{number}" for number in range(500)]}}),
    "a group": lambda: resources(lambda _: {"allow": {"groups": ["everyone"], "accounts": ["a"], "partitions": ["p"]}}),
    "a rule each": lambda: resources(
        lambda number: {"allow": {"users": [f"user{number}", "alice"][: 1 + (number == 4999)]}}
    ),
    "long names": lambda: [Resource(name, QCS, {}, False, slurm_section.parse(name, {})) for name in LONG],
}
NOTICES = {name: f"offline {number % 3}" for number, name in enumerate(names()) if number % 100}
GROUPS = {"everyone": Group(7, tuple(f"user{number:05}" for number in range(10_000)))}

QPU_NAMES = names()
SELECTIONS = {
    "a name": QPU_NAMES[-1],
    "64 names": ",".join(QPU_NAMES[-64:]),
    "a typo": "ibm_qeubec_0001",
    "64 typos": ",".join(name.replace("ibm", "imb") for name in QPU_NAMES[:64]),
    "240 typos": ",".join(f"ibm_qeu_{number}" for number in range(240)),
    "one name 2048 times": "a," * 2047 + "a",
    "2048 names": ",".join(chr(32 + number % 95) for number in range(2048) if chr(32 + number % 95) not in " ,=*?["),
    "1000 names": ",".join(f"{number:03}" for number in range(1000)),
    "control characters": ",".join(
        "\x01" * 62 + chr(97 + number % 26) + chr(97 + number // 26) for number in range(60)
    ),
    "other scripts": ",".join("ü" * 28 + chr(97 + number % 26) + chr(97 + number // 26) for number in range(60)),
    "stars": ",".join("*" * 2048),
    "8 stars": "*,*,*,*,*,*,*,*",
    "9 stars": "*,*,*,*,*,*,*,*,*",
    "8 stars and 56 names": ",".join([*QPU_NAMES[:56], *"********"]),
    "any:*": "any:*",
    "8 any:*": ",".join(["any:*"] * 8),
    "8 types": ",".join([f"any:{QCS}", "least-busy:iqm-server"] * 4),
    "8 types and 56 names": ",".join([*QPU_NAMES[:56], *[f"any:{QCS}", "least-busy:iqm-server"] * 4]),
    "8 unknown types": ",".join(f"any:no-such-type-{number}" for number in range(8)),
    "8 prefixes": ",".join(["ibm_q*", "ibm_k*", "ibm_e*", "ibm_h*"] * 2),
    "8 late prefixes": ",".join(f"{name[:-1]}*" for name in QPU_NAMES[-80::10]),
    "8 endings": ",".join(f"*{number}9" for number in range(8)),
    "8 middles": ",".join(f"*_{number}*" for number in range(8)),
    "8 beginnings and endings": ",".join(f"ibm_*{number}99" for number in range(8)),
    "8 digits": ",".join(f"*?{number}" for number in range(8)),
    "8 classes": ",".join(f"[hi]*[{number}x]" for number in range(8)),
    "8 impossible": ",".join(f"*{number}*z" for number in range(8)),
    "8 scattered": ",".join(f"*{number}*i*b*m" for number in range(8)),
    "8 almost": ",".join(f"*_*e*{number}*[!0-9]" for number in range(8)),
    "8 with many stars": ",".join("*" + "*".join("eeeeeeeeee") + f"{number}[a-z]" for number in range(8)),
    "8 long patterns": ",".join("?" * 500 + str(number) for number in range(8)),
    "8 open classes": ",".join("[" * 500 + str(number) for number in range(8)),
    "8 long classes": ",".join(f"[{'qwertz' * 80}]*{number}[x]" for number in range(8)),
    "one character": "q?,any:q?,[q],?,??,[!q],[a-z]?,*[a-z]",
    "a long pattern": "*" + "[a-z]?" * 680,
    "other scripts in patterns": ",".join(f"*[ü-ÿ]{'ö' * 200}{number}*" for number in range(8)),
    "an empty name": "a," * 2000 + ",a",
    "too long": "a" * 1_000_000,
}
JOBS = {
    "no licenses": {},
    "licenses": {"licenses": "a:1," * 250 + "matlab"},
    "short licenses": {"licenses": "a," * 511 + "a"},
    "a license of a QPU": {"licenses": "matlab,qpu_ibm_quebec_0000"},
    "a megabyte of licenses": {"licenses": "a," * 500_000},
    "a long environment": {"spank_job_env": spank(*(f"X{number}=y" for number in range(100)))},
}
ALICE = {"account": "a", "partition": "p", "spank_job_env_size": 2}
HOSTILE = {
    "account": "x" * 1000,
    "qos": "y" * 1000,
    "partition": ",".join(f"{number:03}" for number in range(256)),
    "licenses": "a," * 511 + "a",
}


@pytest.fixture(params=INTERPRETERS)
def lua(request, tmp_path):
    return Lua(request.param, tmp_path)


@functools.cache
def rendered(site):
    return catalogue.render(SITES[site](), NOTICES, GROUPS.__getitem__)


def write(lua, site):
    lua.catalogue.write_text(rendered(site))


def costs(lua, submit_all):
    """Return each call's outcome, once counting instructions and once counting searched bytes; the first call reads."""
    found = []
    for counts_searches in (False, True):
        lua.submit("nothing")
        if counts_searches:
            lua.do("count_searches()")
        submit_all()
        found.append(lua.run()[1:])
    return zip(*found, strict=True)


def check(lua, what, counted, searched, max_instructions, max_searched):
    print(
        f"  {lua.interpreter} {what:45} {counted.instructions:>9,} instructions {searched.searched:>9,} bytes"
        f" {counted.microseconds:>8,} us {(counted.user or ['taken'])[0][:60]!r}"
    )
    assert not any("internal error" in line for line in counted.log), counted.log
    assert counted.instructions <= max_instructions, what
    assert searched.searched <= max_searched, what


@pytest.mark.parametrize("site", SITES)
def test_a_selection_costs_slurmctld_a_bounded_amount_of_work(lua, site):
    write(lua, site)
    cases = {f"{name}, {who}": (text, job) for name, text in SELECTIONS.items() for who, job in PEOPLE.items()}

    def submit_all():
        for text, job in cases.values():
            lua.submit(text, **job)

    for what, (counted, searched) in zip(cases, costs(lua, submit_all), strict=True):
        check(lua, f"{site}: {what}", counted, searched, MAX_INSTRUCTIONS, MAX_SEARCHED)


PEOPLE = {"alice": ALICE, "hostile": HOSTILE}


def test_a_job_without_qpu_costs_next_to_nothing(lua):
    write(lua, "open")

    def submit_all():
        for job in JOBS.values():
            lua.submit(**job)

    for what, (counted, searched) in zip(JOBS, costs(lua, submit_all), strict=True):
        check(lua, what, counted, searched, MAX_INSTRUCTIONS_WITHOUT_QPU, MAX_SEARCHED_WITHOUT_QPU)
