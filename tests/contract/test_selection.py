"""The limits of --qpu are the same, in the same words, wherever it is checked.

By the plugin in sbatch, salloc and srun, by the Lua module in slurmctld and on login nodes, and by Prolog.
"""

import random

import pytest
from lua import INTERPRETERS, Lua
from stub.test_stub import OPTION_ENV, Stub, build, option, submit

from qrmi_slurm.config import slurm_section
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import SelectionError
from qrmi_slurm.scheduling import catalogue
from qrmi_slurm.slurm import selection

BYTES = "--qpu has more than 4096 bytes; ask for fewer QPUs in one job"
TERMS = "--qpu has more than 64 terms; ask for fewer QPUs in one job"
CHOICES = "--qpu has more than 8 choices (patterns, any: and least-busy:); ask for fewer QPUs in one job"


def names(count, first=0):
    return ",".join(f"q{number}" for number in range(first, first + count))


# For each selection its number of terms, or the sentence that refuses it.
CASES = {
    "q": 1,
    " q , q1 ": 2,
    "q,q": 1,
    "q, q,q ,  q  ": 1,
    names(64): 64,
    names(65): TERMS,
    f"{names(64)},{names(64)}": 64,
    f"{names(64)},{names(65)}": TERMS,
    f"{names(64)}, q63": 64,
    names(240): TERMS,
    "q," * 2047 + "q": 1,
    "*," * 7 + "*": 8,
    "*," * 8 + "*": CHOICES,
    "*," * 2047 + "*": CHOICES,
    "any:q," * 8 + "any:q": CHOICES,
    "least-busy:q," * 8 + "q": 9,
    "q?,q[0-9],[,*,any:t,any:q*,least-busy:t,least-busy:[": 8,
    "q?,q[0-9],[,*,any:t,any:q*,least-busy:t,least-busy:[, any:t ": CHOICES,
    "any:,least-busy:,Any:q,many:q," + names(60): 64,
    "any:,least-busy:,Any:q,many:q," + names(61): TERMS,
    f"{names(56)},*,*,*,*,*,*,*,*": 64,
    f"{names(57)},*,*,*,*,*,*,*,*": TERMS,
    f"{names(56)},*,*,*,*,*,*,*,*,*": TERMS,
    f"*,*,*,*,*,*,*,*,*,{names(65)}": CHOICES,
    f"{names(65)},*,*,*,*,*,*,*,*,*": TERMS,
    "q" * 4096: 1,
    "q" * 4097: BYTES,
    "ü" * 2048: 1,
    "ü" * 2048 + ",": BYTES,
    "*," * 2048 + "*": BYTES,
    names(1000): BYTES,
}


def drawn(count):
    """Return random selections with their outcomes in Prolog."""
    dice = random.Random(3)  # noqa: S311
    found = {}
    while len(found) < count:
        kinds = [lambda: f"q{dice.randrange(90)}", lambda: dice.choice(("*", "q?", "any:q", "least-busy:q*", "[q]"))]
        weights = (dice.choice((30, 10, 1)), 1)
        terms = [dice.choices(kinds, weights)[0]() for _ in range(dice.randrange(1, 140))]
        text = ",".join(" " * dice.randrange(2) + term + " " * dice.randrange(3) for term in terms)
        found[text] = by_prolog(text)
    return found


def by_prolog(text):
    try:
        return len(selection.parse(text))
    except SelectionError as error:
        assert error.message == str(error), "what users read is the message alone"
        return error.message


ALL = CASES | drawn(150)


@pytest.fixture(scope="module")
def stub(tmp_path_factory) -> Stub:
    return build(tmp_path_factory.mktemp("stub"))


@pytest.mark.parametrize("text", CASES)
def test_prolog(text):
    assert by_prolog(text) == CASES[text]


@pytest.mark.parametrize("context", ["allocator", "local"])
def test_the_plugin(stub, context):
    """On the command line, and in the environment that an outer job leaves."""
    for text, expected in ALL.items():
        for done in (
            submit(stub, option(text), context=context),
            submit(stub, context=context, env={OPTION_ENV: text}),
        ):
            if isinstance(expected, int):
                assert done.errors == [], text
                assert len(selection.parse(done.control["QRMI_QPU"])) == expected
            else:
                assert done.errors == [f"spank_qrmi: {expected}."]
                assert done.rc("option") != [0]
                assert "QRMI_QPU" not in done.control


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_the_lua_module(interpreter, tmp_path):
    """At submission, when a waiting job is changed, and on a login node.

    Each QPU stands for several, so there is one for each term.
    """
    lua = Lua(interpreter, tmp_path)
    known = [f"q{number}" for number in range(100)]
    known += ["q", "[", "any:", "least-busy:", "Any:q", "many:q", "ü" * 2048, "q" * 4096]
    resources = [
        Resource(name, "t", {}, True, slurm_section.parse(name, {"license": "l", "capacity": 99})) for name in known
    ]
    lua.catalogue.write_text(catalogue.render(resources, {}))
    for text in ALL:
        lua.submit(text)
        lua.modify({"licenses": "m"}, {"licenses": "l:1"}, text)
        lua.cli(text)
    outcomes = lua.run()
    for place, (text, expected) in enumerate(ALL.items()):
        submitted, changed, login = outcomes[3 * place : 3 * place + 3]
        if isinstance(expected, int):
            assert submitted.is_taken, (text, submitted.user)
            assert submitted.job["licenses"] == f"l:{expected}", text
            assert (changed.is_taken, login.is_taken) == (True, True), text
        else:
            assert submitted.user == changed.user == login.log == [f"qrmi-slurm: {expected}"]
            assert not (submitted.is_taken or changed.is_taken or login.is_taken)
