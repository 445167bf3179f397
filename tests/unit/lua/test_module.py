"""cli_filter/qrmi_slurm.lua under each version of Lua that Slurm is built with."""

import random
import subprocess
from fnmatch import fnmatchcase

import pytest

from lua import INTERPRETERS, SOURCES, Lua, spank
from qrmi_slurm.config import access, resource_types, slurm_section
from qrmi_slurm.config.access import Person
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.hooks import choice, job_licenses
from qrmi_slurm.hooks.job_licenses import Held
from qrmi_slurm.scheduling import catalogue
from qrmi_slurm.scheduling.catalogue import Group
from qrmi_slurm.slurm import licenses as licenses_of_slurm
from qrmi_slurm.slurm import selection
from qrmi_slurm.text import near_match, unknown_names

QCS = "ibm-quantum-compute-service"
GROUPS = {
    "quantum": Group(2000, ("alice", "carol")),
    "physics": Group(2001, ("carol",)),
    "hidden": Group(2002, None),
    "missing": Group(None, None),
    "optics": Group(2003, ("carol",)),
}


def resource(name, type_name=QCS, **slurm):
    return Resource(
        name, type_name, {"QRMI_IBM_QCS_IAM_APIKEY": "secret-of-" + name}, False, slurm_section.parse(name, slurm)
    )


def allowed(name, **rules):
    return resource(name, allow=rules)


@pytest.fixture(params=INTERPRETERS)
def lua(request, tmp_path):
    return Lua(request.param, tmp_path)


def site(lua, *resources, notices=None):
    lua.catalogue.write_text(catalogue.render(resources, notices or {}, GROUPS.__getitem__))


def two_qpus(lua):
    site(lua, resource("ibm_demo"), resource("ibm_second"))


def refused(outcome):
    """Return the one sentence that a refused user reads."""
    assert outcome.code != 0
    (sentence,) = outcome.user
    prefix, _, rest = sentence.partition(": ")
    assert prefix == "qrmi-slurm"
    return rest


# --- licenses ----------------------------------------------------------------------------------------------


def test_a_job_without_qpu_is_left_alone_and_nothing_is_read(lua):
    """It keeps its own licenses, even if the catalogue is missing or broken."""
    before = {"licenses": "matlab:2", "admin_comment": "mine"}
    for content in (None, "return {", 'return { version = 1, qpus = "none" }'):
        if content is not None:
            lua.catalogue.write_text(content)
        lua.submit(spank_job_env=spank("OTHER=1"), **before)
        lua.submit()
        for outcome in lua.run():
            assert (outcome.code, outcome.user, outcome.log) == (0, [], [])
            assert outcome.job.get("licenses") in (None, "matlab:2")


def test_each_qpu_adds_its_license(lua):
    site(lua, resource("ibm_demo"), resource("garnet", license="iqm"), resource("free", license=None))
    lua.submit("ibm_demo")
    lua.submit(" garnet , ibm_demo,garnet", licenses="matlab:2;x")
    lua.submit("free", licenses="matlab")
    lua.submit("free")
    licenses = [outcome.job.get("licenses") for outcome in lua.run()]
    assert licenses == ["qpu_ibm_demo:1", "matlab:2;x,iqm:1,qpu_ibm_demo:1", "matlab", None]


def test_qpus_that_share_a_license_take_one_each(lua):
    site(lua, resource("a", license="l", capacity=2), resource("b", license="l", capacity=2))
    lua.submit("a,b")
    assert lua.run()[0].job["licenses"] == "l:2"
    site(lua, resource("a", license="l"), resource("b", license="l", capacity=2))
    lua.submit("a,b")
    assert refused(lua.run()[0]) == "--qpu needs 2 of the license l (for a, b), more than its capacity of 1"


# --- slots -------------------------------------------------------------------------------------------------

NO_SLOTS = "shared is shared by slots, and this job has none: ask for some with --licenses=lanes:NUMBER"


def with_slots(lua, license="lanes"):
    """Write a catalogue in which `shared` has slots and `other` has none."""
    found = [resource("shared", license=None), resource("other", license=None)]
    site(lua, found[0]._replace(slurm=found[0].slurm._replace(slots_license=license)), found[1])


@pytest.mark.parametrize("licenses", ["lanes:2", "lanes", "matlab:1, lanes=3", "matlab;lanes:4(n1)", "matlab|lanes:2"])
def test_a_job_that_asks_for_slots_may_have_the_qpu(lua, licenses):
    """Its list of licenses stays as it is."""
    with_slots(lua)
    lua.submit("shared,other", licenses=licenses)
    (outcome,) = lua.run()
    assert outcome.is_taken, outcome.user
    assert outcome.job["licenses"] == licenses


@pytest.mark.parametrize("licenses", [None, "", "lanes:0", "lane:2", "matlab:2", "xlanes:1,lanesx:1", "lanes@there:1"])
def test_a_job_without_slots_is_refused_in_prologs_words(lua, licenses):
    """Other QPUs of the site need none."""
    with_slots(lua)
    lua.submit("other,shared", licenses=licenses)
    lua.submit("other", licenses=licenses)
    one, other = lua.run()
    assert refused(one) == NO_SLOTS
    assert other.is_taken
    told = job_licenses.qpu_slots(Held(licenses_of_slurm.granted_counts(licenses or "")), "lanes")
    assert told.refusal.format("shared") == NO_SLOTS


def test_remote_licenses_count_slots(lua):
    with_slots(lua, "lanes@there")
    lua.submit("shared", licenses="lanes@there:2")
    lua.submit("shared", licenses="lanes:2")
    there, here = lua.run()
    assert there.is_taken
    assert refused(here) == NO_SLOTS.replace("=lanes", "=lanes@there")


def test_a_choice_leaves_out_what_the_job_has_no_slots_for(lua):
    with_slots(lua)
    for _ in range(3):
        lua.submit("any:*")
    lua.submit("any:sh*")
    lua.submit("any:*,any:*", licenses="lanes:1")
    lua.submit("any:*,any:*")
    *taken, refusal, both, one = lua.run()
    assert all(outcome.is_taken for outcome in [*taken, both])
    assert refused(refusal) == NO_SLOTS
    assert refused(one) == "any:*: no other QPU is left for it"


def test_a_job_keeps_its_slots_while_it_waits_and_while_it_runs(lua):
    """An operator may change a running job's licenses."""
    with_slots(lua)
    for licenses in ("", "matlab:1", "lanes:0"):
        lua.modify({"licenses": licenses}, {"licenses": "lanes:2"}, "shared", uid=1000)
    lua.modify({"licenses": "lanes:1"}, {"licenses": "lanes:2"}, "shared", uid=1000)
    lua.modify({"licenses": ""}, {"licenses": "lanes:2", "job_state": 1}, "shared", uid=1000)
    lua.modify({"licenses": ""}, {"licenses": "lanes:2", "job_state": 1}, "shared", uid=0)
    *waiting, fewer, running, by_root = lua.run()
    assert [refused(outcome) for outcome in waiting] == [NO_SLOTS] * 3
    assert fewer.is_taken
    assert refused(running) == "a running job keeps the licenses of its QPUs"
    assert by_root.is_taken


def test_a_malformed_catalogue_of_slots_refuses_jobs(lua):
    with_slots(lua)
    lua.catalogue.write_text(lua.catalogue.read_text().replace('slots = "lanes"', "slots = 1"))
    lua.submit("other")
    assert "cannot be used" in refused(lua.run()[0])


def test_the_selection_is_found_under_both_of_its_names(lua):
    """slurmd adds SPANK_ to names without it; of two different values, Prolog could see the other one."""
    two_qpus(lua)
    lua.submit(spank_job_env=spank("SPANK_QRMI_QPU=ibm_demo"))
    lua.submit(spank_job_env=spank("QRMI_QPU=ibm_demo", "SPANK_QRMI_QPU=ibm_second"))
    lua.submit(spank_job_env=spank("QRMI_QPU=ibm_demo", "QRMI_QPU="))
    lua.submit(spank_job_env=spank("QRMI_QPU=" + "ibm_demo," * 600))
    lua.submit(spank_job_env=spank("QRMI_QPU=", "qrmi_qpu=ibm_demo", "QRMI_QPU2=ibm_demo"))
    prefixed, twice, emptied, long, none = lua.run()
    assert prefixed.job["licenses"] == "qpu_ibm_demo:1"
    lua.submit(spank_job_env=spank("QRMI_QPU=ibm_demo"), spank_job_env_size=4096)
    lua.submit(spank_job_env=spank("QRMI_QPU=ibm_demo"), spank_job_env_size=4097)
    largest, larger = lua.run()
    assert largest.is_taken
    assert refused(larger) == "the job's SPANK environment has more than 4096 variables"
    assert refused(twice) == refused(emptied) == "the job's SPANK environment has two different values of --qpu"
    assert refused(long) == "--qpu has more than 4096 bytes; ask for fewer QPUs in one job"
    assert none.is_taken
    assert "licenses" not in none.job


def test_a_qpu_license_cannot_be_requested_by_hand(lua):
    """With its --qpu it is counted once; without it, the job is refused, however the request is written."""
    two_qpus(lua)
    lua.submit("ibm_demo", licenses="qpu_ibm_demo:3,matlab")
    lua.submit("ibm_demo", licenses="qpu_ibm_second")
    for text in ("qpu_ibm_demo", "matlab,qpu_ibm_demo:0", "matlab|qpu_ibm_demo", "qpu_ibm_demo=1(n1)"):
        lua.submit(licenses=text)
    once, other, *without = lua.run()
    assert once.job["licenses"] == "matlab,qpu_ibm_demo:1"
    assert refused(other).startswith("qpu_ibm_second is the license of ibm_second")
    for outcome in without:
        expected = "qpu_ibm_demo is the license of ibm_demo: ask for it with --qpu=ibm_demo, not with --licenses"
        assert refused(outcome) == expected


@pytest.mark.parametrize(
    ("offset", "is_newer", "is_refused"),
    [(0, True, False), (1, True, True), (127, True, True), (0xFFFFFFFE, True, False), (1, False, False)],
)
def test_from_23_02_only_the_first_component_may_have_a_license(lua, offset, is_newer, is_refused):
    """Slurm's own refusal would talk about a license that the user never asked for. NO_VAL: not a component."""
    two_qpus(lua)
    if is_newer:
        lua.do("slurm.ESLURM_NOT_HET_JOB = 2111")
    lua.submit("ibm_demo", het_job_offset=offset)
    lua.submit(het_job_offset=offset)
    asked, plain = lua.run()
    assert plain.is_taken
    assert asked.is_taken is not is_refused
    if is_refused:
        sentence = "Slurm accepts licenses only in a heterogeneous job's first component: put --qpu=%s there"
        assert refused(asked) == sentence % "ibm_demo"


def test_license_lists_that_slurm_would_not_take_are_refused_with_a_reason(lua):
    site(lua, *(resource(f"qpu_of_the_site_{number}") for number in range(100)))
    lua.submit("qpu_of_the_site_1", licenses="a|b")
    lua.submit(",".join(f"qpu_of_the_site_{number}" for number in range(60)))
    alternatives, many = lua.run()
    assert refused(alternatives).startswith("--licenses with | cannot be combined with --qpu: ")
    assert refused(many) == "--qpu needs more licenses than Slurm accepts in one job"


# --- the catalogue -----------------------------------------------------------------------------------------


SHELF = "{ type = 1, capacity = 1, names = '\\na\\t1\\n',"


def of_shelves(shelves, rules="", count=1):
    parts = f"types = {{}}, groups = {{}}, rules = {{{rules}}}, shared = {{}}, shelves = {{{shelves}}}"
    return f"return {{ version = 2, count = {count}, known = '', {parts} }}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read the catalogue: "),
        ("return {", "is not Lua"),
        ("\x1bLua", "is compiled Lua"),
        ("os.exit(3)", "cannot be evaluated"),
        ("return {}", "is not a catalogue of qrmi-slurm"),
        ("return 7", "is not a catalogue of qrmi-slurm"),
        ("return { version = 2 }", "is not a catalogue of qrmi-slurm"),
        ("return { version = 1, qpus = { { name = 'a' } } }", "was written by an older version of qrmi-slurm"),
        ("return { version = 3 }", "was written by a newer version of qrmi-slurm, and needs its Lua files"),
        (of_shelves("{ names = 'a' }"), "shelf no. 1 is malformed"),
        (of_shelves("{ type = 1, capacity = 1, names = '' }"), "shelf no. 1 is malformed"),
        (of_shelves(SHELF + " rule = 1 }", "{ who = { names = '', whom = '' } }"), "shelf no. 1 is malformed"),
        (of_shelves(SHELF + " rule = 1 }"), "shelf no. 1 is malformed"),
        (of_shelves(SHELF + " licenses = '\\nl\\nm\\n' }"), "shelf no. 1 is malformed"),
        (of_shelves(SHELF + " }", count=2), "is truncated"),
    ],
)
def test_without_a_valid_catalogue_only_jobs_with_qpu_are_refused(lua, content, reason):
    if content is not None:
        lua.catalogue.write_text(content)
    lua.submit("ibm_demo")
    lua.submit(licenses="matlab")
    lua.cli("ibm_demo")
    asking, other, login = lua.run()
    assert refused(asking) == "the site's list of QPUs cannot be used; please tell an admin"
    assert reason in asking.log[0]
    assert asking.log[0].endswith("; run: qrmi-slurm catalogue")
    assert (other.code, other.user, other.log) == (0, [], [])
    assert (login.code, login.user, login.log) == (0, [], [])


def test_a_catalogue_that_has_not_changed_is_read_once(lua):
    """Its first line has a checksum of the rest, and only that line is read. A broken one is not read again either."""
    site(lua, *(resource(f"q{number}") for number in range(500)))
    broken = lua.catalogue.with_name("broken")
    broken.write_text("-- another line\n" + lua.catalogue.read_text().replace("count = 500", "count = 501"))
    for name in (None, broken):
        if name:
            lua.do(f"assert(os.rename({str(name)!r}, {str(lua.catalogue)!r}))")
        lua.submit("q1")
        lua.submit("q1")
    first, second, broken_first, broken_second = lua.run()
    assert first.is_taken
    assert second.is_taken
    assert first.instructions > 10 * second.instructions
    assert refused(broken_first) == refused(broken_second)
    assert broken_first.instructions > 10 * broken_second.instructions


def test_an_internal_error_refuses_only_jobs_with_qpu(lua):
    """If it reached Slurm, the job would run without its licenses."""
    two_qpus(lua)
    lua.do("io.open = function() error('broken') end")
    lua.submit("ibm_demo")
    lua.submit(licenses="matlab")
    asking, other = lua.run()
    assert asking.code == -1
    assert "internal error: " in asking.log[0]
    assert "broken" in asking.log[0]
    assert other.is_taken


def test_a_changed_catalogue_is_read_again(lua, tmp_path):
    two_qpus(lua)
    new = catalogue.render([resource("ibm_new", license="n")], {})
    lua.submit("ibm_demo")
    lua.do(f"local file = io.open({str(lua.catalogue)!r}, 'w'); file:write([==[{new}]==]); file:close()")
    lua.submit("ibm_new")
    lua.submit("ibm_demo")
    old, changed, gone = lua.run()
    assert (old.code, changed.job["licenses"]) == (0, "n:1")
    assert refused(gone).startswith("unknown QPU: ibm_demo")


def test_the_catalogue_is_found_beside_the_script_that_slurm_loaded(lua, tmp_path):
    """Even if a site's own job_submit.lua ends with a tail call, which leaves no trace of it on the stack."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "job_submit.lua").write_text(
        'local qrmi = require("qrmi_slurm")\nfunction slurm_job_submit(a, b, c)\n'
        "    return qrmi.job_submit(a, b, c)\nend\nreturn slurm.SUCCESS\n"
    )
    (etc / "qrmi_catalogue.lua").write_text(catalogue.render([resource("ibm_here")], {}))
    lua.do('package.loaded["qrmi_slurm"] = nil')
    lua.do(f"dofile({str(etc / 'job_submit.lua')!r})")
    lua.do("qrmi = { job_submit = slurm_job_submit }")
    lua.submit("ibm_here")
    (outcome,) = lua.run()
    assert outcome.job["licenses"] == "qpu_ibm_here:1"


# --- unknown QPUs ------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused(lua):
    """In Prolog's words. Only the login node looks for a similar name, since slurmctld has no time for that."""
    two_qpus(lua)
    lua.submit("ibm_dmeo,ibm_second,xyz")
    lua.submit("any:ibm-quantum-systm")
    lua.submit("x\x1b[31m\ny\u0085")
    lua.submit("a,,b")
    meant, no_type, hostile, empty = lua.run()
    known = "; known QPUs: ibm_demo, ibm_second"
    assert refused(meant) == f"unknown QPUs: ibm_dmeo, xyz{known}"
    assert refused(hostile) == unknown_names(["x\x1b[31m\ny\u0085"], ["ibm_demo", "ibm_second"])
    assert refused(no_type) == f"unknown QPU: any:ibm-quantum-systm{known}"
    assert refused(hostile) == f"unknown QPU: x\\x1b[31m\\ny\\x85{known}"
    assert refused(empty) == "--qpu=a,,b: a name is empty; write --qpu=NAME or --qpu=NAME,NAME"
    lua.cli("ibm_dmeo,ibm_second,imb_second")
    lua.cli("xyz,y*,ibm_dmeo")
    near, none = lua.run()
    assert near.log == [f"qrmi-slurm: unknown QPUs: ibm_dmeo (did you mean ibm_demo?), imb_second{known}"]
    assert none.log == [f"qrmi-slurm: unknown QPUs: xyz, y*, ibm_dmeo{known}"]
    names = ["ibm_demo", "ibm_second"]
    assert near.log == [f"qrmi-slurm: {unknown_names(['ibm_dmeo', 'imb_second'], names)}"], "as Prolog says it"
    assert none.log == [f"qrmi-slurm: {unknown_names(['xyz', 'y*', 'ibm_dmeo'], names)}"]


def test_a_long_list_of_known_names_is_cut_short(lua):
    site(lua, *(resource(f"q{number}") for number in range(32)))
    lua.submit("nothing")
    names = ", ".join(f"q{number}" for number in range(20))
    lua.submit(",".join(f"x{number}" for number in range(60)))
    known = f"; known QPUs: {names}, ... and 12 more (list all: qrmi-slurm qpus)"
    one, many = lua.run()
    all_names = [f"q{number}" for number in range(32)]
    assert refused(one) == f"unknown QPU: nothing{known}" == unknown_names(["nothing"], all_names)
    unknown = ", ".join(f"x{number}" for number in range(21))
    assert refused(many) == f"unknown QPUs: {unknown}, ... and 39 more{known}"
    assert refused(many) == unknown_names([f"x{number}" for number in range(60)], all_names)


def test_lua_and_python_suggest_the_same_name(lua):
    """For all kinds of typing errors."""
    dice = random.Random(7)  # noqa: S311
    names = ["ibm_quebec", "ibm_sherbrooke", "IQM-Garnet", "iqm_garnet2", "pasqal", "fresnel", "a", "ab_ba", "b-a_ab"]
    site(lua, *map(resource, names))
    words = []
    for _ in range(150):
        letters = list(dice.choice(names))
        for _ in range(dice.randrange(1, 4)):
            place = dice.randrange(len(letters) + 1)
            letters[place : place + dice.randrange(2)] = dice.choice("abqmIe_-2")
        word = "".join(letters)
        if word and word not in names:
            words.append(word)
            lua.cli(word)
    for word, outcome in zip(words, lua.run(), strict=True):
        near = near_match(word, names)
        meant = f" (did you mean {near}?)" if near else ""
        assert outcome.log[0].startswith(f"qrmi-slurm: unknown QPU: {word}{meant}; known QPUs: ")


# --- patterns and choices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_patterns_match_as_in_python(lua, seed):
    dice = random.Random(seed)  # noqa: S311
    letters = "ab]-!^\\é[*?"
    cases = [("a[!", "a[!"), ("a", "[]a]"), ("-", "[a-]"), ("b", "[c-a]"), ("é", "?"), ("x", "[!c-a]"), ("é", "[a-ü]")]
    for _ in range(150):
        pattern = "".join(dice.choice(letters + "[]*?") for _ in range(dice.randrange(1, 7)))
        cases.append(("".join(dice.choice("ab]-!^\\é") for _ in range(dice.randrange(1, 5))), pattern))
    # One QPU per name, so that one run answers for all: the marker lists what a pattern fits.
    cases = [case for case in cases if any(char in case[1] for char in "*?[")]
    names = sorted({name for name, _ in cases})
    site(lua, *(resource(name, license=f"l{place}") for place, name in enumerate(names)))
    patterns = [pattern for _, pattern in cases if pattern not in names]
    for pattern in patterns:
        lua.submit(pattern)
    for pattern, outcome in zip(patterns, lua.run(), strict=True):
        fitting = [f"l{place}" for place, name in enumerate(names) if fnmatchcase(name, pattern)]
        if not fitting:
            assert refused(outcome).startswith("unknown QPU: ")
            continue
        assert outcome.is_taken
        assert outcome.job["licenses"].removesuffix(":1") in fitting
        marked = outcome.job.get("admin_comment", f"qrmi-slurm:any={fitting[0]}").removeprefix("qrmi-slurm:any=")
        if len(fitting) <= 64:
            assert marked.split("|") == fitting, pattern
        else:
            assert len(set(marked.split("|"))) == 64, pattern
            assert set(marked.split("|")) < set(fitting), pattern


def test_patterns_find_the_same_qpus_as_in_python_at_a_large_site(lua):
    """Whichever way the catalogue is searched: its QPUs differ in type and state, and digits are behind each name."""
    dice = random.Random(5)  # noqa: S311
    names = [f"{dice.choice(('ibm', 'iqm'))}_{dice.choice(('kyiv', 'quito'))}_{number}" for number in range(250)]
    names += ["12", "1", "ibm", "größe_12", "größe_1"]
    types = {name: dice.choice((QCS, "iqm-server", "pasqal-cloud")) for name in names}
    notices = {name: "offline" for name in names if dice.random() < 0.2}
    site(lua, *(resource(name, types[name], license=f"l_{place}") for place, name in enumerate(names)), notices=notices)
    pieces = ("*", "*", "?", "ibm", "i", "_", "kyiv", "q", "1", "2", "12", "[0-4]", "[!0-9]", "[ö-ü]", "[iq]", "9", "ü")
    patterns = {"".join(dice.choices(pieces, k=dice.randrange(1, 7))) for _ in range(600)}
    patterns = sorted(pattern for pattern in patterns if any(char in pattern for char in "*?["))
    for pattern in patterns:
        lua.submit(pattern)
    too_long = 0
    for pattern, outcome in zip(patterns, lua.run(), strict=True):
        fitting = {f"l_{place}" for place, name in enumerate(names) if fnmatchcase(name, pattern)}
        if not outcome.is_taken and "takes too long to look up" in refused(outcome):
            too_long += 1
            continue
        if not fitting:
            assert refused(outcome).startswith("unknown QPU: "), pattern
            continue
        assert outcome.is_taken, (pattern, outcome.user)
        found = outcome.job.get("admin_comment", f"qrmi-slurm:any={min(fitting)}").removeprefix("qrmi-slurm:any=")
        assert set(found.split("|")) <= fitting, pattern
        assert len(found.split("|")) == min(len(fitting), 64), pattern
        assert outcome.job["licenses"].removesuffix(":1") in found.split("|")
    assert too_long < len(patterns) / 10


def test_jobs_take_turns_among_more_qpus_than_a_choice_lists(lua):
    """Each job's marker has 64 of them, from another one on."""
    site(lua, *(resource(f"q{number}") for number in range(100)))
    for _ in range(400):
        lua.submit("any:*")
    for _ in range(100):
        lua.submit("q?*")
    outcomes = lua.run()
    markers = [outcome.job["admin_comment"].partition("=")[2].split("|") for outcome in outcomes]
    assert {len(set(marker)) for marker in markers} == {64}
    all_licenses = {f"qpu_q{number}:1" for number in range(100)}
    assert {outcome.job["licenses"] for outcome in outcomes[:400]} == all_licenses
    assert len({outcome.job["licenses"] for outcome in outcomes[400:]}) > 30


def test_eight_choices_share_the_candidates(lua):
    """However many QPUs fit, a job's comment stays short, and nobody is refused who could have their QPUs."""
    site(lua, *(resource(f"q{number}") for number in range(300)))
    lua.submit(",".join(["any:*"] * 8))
    lua.submit(",".join([*(f"q{number}" for number in range(56)), *["q*"] * 8]))
    lua.submit(",".join([*(f"q{number}" for number in range(1, 50)), *["q[1-4]?"] * 8]))
    lua.submit(",".join([*(f"q{number}" for number in range(10, 50) if number != 25), "q[1-4]?"]))
    many, full, none, last = lua.run()
    assert len(set(many.job["licenses"].split(","))) == 8
    assert len(many.job["admin_comment"].split("|")) == 57, "eight lists of eight"
    assert len(set(full.job["licenses"].split(","))) == 64
    assert "q[1-4]?: no other QPU is left for it" in refused(none)
    assert last.job["licenses"].endswith(",qpu_q25:1")


def test_a_pattern_that_takes_too_long_is_refused(lua):
    """slurmctld would stop for everybody. Only large sites get there, and patterns that fit next to nothing."""
    site(lua, *(resource(f"ibm_{number:04}") for number in range(2000)))
    for text in ("*[0-9]*[0-9]*x", "[a-z]*[!0-9]", "*i*b*m*0*x*", "ibm_*7", "*_[0-4]*", "*9?", "any:ibm_????"):
        lua.submit(text)
    *refused_ones, ending, middle, digit, fixed = lua.run()
    for outcome, text in zip(refused_ones, ("*[0-9]*[0-9]*x", "[a-z]*[!0-9]", "*i*b*m*0*x*"), strict=True):
        if text == "*[0-9]*[0-9]*x":
            assert refused(outcome).startswith("unknown QPU: "), "no name ends with x"
            continue
        sentence = f"--qpu: {text} takes too long to look up; name QPUs, or write out more of their names"
        assert refused(outcome) == sentence
    assert all(outcome.is_taken for outcome in (ending, middle, digit, fixed))


def three(lua, **slurm):
    site(
        lua,
        resource("ibm_a", **slurm),
        resource("ibm_b", "qiskit-runtime-service"),
        resource("garnet", "iqm-server"),
    )


@pytest.mark.parametrize(
    "term", ["ibm_*", f"any:{QCS}", "any:qiskit-runtime-service", "least-busy:IBMQiskitRuntimeService", "any: ibm_?"]
)
def test_a_choice_takes_one_license_and_lists_the_others_in_the_marker(lua, term):
    three(lua)
    for _ in range(4):
        lua.submit(term, admin_comment="seen by  bob")
    outcomes = lua.run()
    licenses = [outcome.job["licenses"] for outcome in outcomes]
    assert licenses[:2] == licenses[2:]
    assert set(licenses) == {"qpu_ibm_a:1", "qpu_ibm_b:1"}, "jobs take turns"
    for outcome in outcomes:
        assert outcome.job["admin_comment"] == "seen by  bob qrmi-slurm:any=qpu_ibm_a|qpu_ibm_b"


def test_a_type_fits_the_same_qpus_as_in_prolog(lua):
    """By its current or former name, QRMI's class name, or another spelling."""
    resources = [resource(f"q{place}", name) for place, name in enumerate((*resource_types.KNOWN, "Some-New_Type"))]
    site(lua, *resources)
    words = [f"{front}{name}" for name in resource_types.KNOWN for front in ("", "IBM", "x-")]
    words += ["SomeNewType", "some-new-types"]
    words += [word.title().replace("-", "") for word in words]
    for word in words:
        lua.submit(f"any:{word}")
    known = {item.name: item for item in resources}
    for word, outcome in zip(words, lua.run(), strict=True):
        found = choice.find(selection.parse(f"any:{word}"), known, None, prepared)
        fitting = [item.license for slot in found.slots for item in slot.candidates]
        if not fitting:
            assert refused(outcome).startswith("unknown QPU: "), word
            continue
        assert outcome.job.get("admin_comment", "").removeprefix("qrmi-slurm:any=") in ("|".join(fitting), ""), word
        assert outcome.job["licenses"].removesuffix(":1") in fitting, word


def prepared(items):
    return {item.name: choice.Candidate(item, None, item.type) for item in items}


def test_a_dynamic_entry_serves_several_choices(lua):
    """It stands for several QPUs, so its license is the only limit."""
    dynamic = Resource("ibm", QCS, {}, True, slurm_section.parse("ibm", {"capacity": 2}))
    site(lua, dynamic)
    for term in ("any:ibm,any:ibm", "ibm,any:*", "any:ibm,ibm,any:ibm"):
        lua.submit(term)
    two, named, three = lua.run()
    assert two.job["licenses"] == named.job["licenses"] == "qpu_ibm:2"
    assert refused(three) == "--qpu needs 3 of the license qpu_ibm (for ibm), more than its capacity of 2"


def test_choices_and_names_take_different_qpus(lua):
    three(lua)
    lua.submit("ibm_a,any:*")
    lua.submit("ibm_*,ibm_*,garnet")
    lua.submit("any:*,any:ibm_a")
    named, two, matched = lua.run()
    assert named.job["licenses"] in ("qpu_ibm_a:1,qpu_ibm_b:1", "qpu_ibm_a:1,qpu_garnet:1")
    assert named.job["admin_comment"] == "qrmi-slurm:any=qpu_ibm_b|qpu_garnet"
    assert sorted(two.job["licenses"].split(",")) == ["qpu_garnet:1", "qpu_ibm_a:1", "qpu_ibm_b:1"]
    assert two.job["admin_comment"] == " ".join(["qrmi-slurm:any=qpu_ibm_a|qpu_ibm_b"] * 2)
    assert matched.job["licenses"].endswith(",qpu_ibm_a:1"), "the second choice fits only ibm_a, so the first avoids it"


def test_a_choice_without_a_qpu_left_is_refused(lua):
    three(lua)
    for terms in ("ibm_*,ibm_*,ibm_*", "ibm_a,any:ibm_a", "any:*,any:*,any:*,any:*"):
        lua.submit(terms)
    sentences = [refused(outcome) for outcome in lua.run()]
    assert sentences == [f"{term}: no other QPU is left for it" for term in ("ibm_*", "any:ibm_a", "any:*")]


def test_an_exact_name_wins_over_a_pattern(lua):
    site(lua, resource("any:x"), resource("q*"), resource("q1"), resource("any:"))
    lua.submit("any:x,q*,any:")
    (outcome,) = lua.run()
    assert outcome.job["licenses"] == "qpu_any_x:1,qpu_q_:1,qpu_any_:1"
    assert "admin_comment" not in outcome.job


def test_a_choice_needs_no_license_if_one_of_its_qpus_has_none(lua):
    three(lua, license=None)
    lua.submit("ibm_*")
    (outcome,) = lua.run()
    assert outcome.is_taken
    assert {"licenses", "admin_comment"}.isdisjoint(outcome.job)


def test_a_marker_from_elsewhere_is_removed(lua):
    three(lua)
    lua.submit("ibm_a", admin_comment="qrmi-slurm:any=x|y text qrmi-slurm:any=z")
    assert lua.run()[0].job["admin_comment"] == "text"


def test_a_user_is_told_of_a_qpu_out_of_service_and_choices_avoid_it(lua):
    notices = {"ibm_a": "drained: 100% maintenance", "garnet": "offline"}
    site(lua, resource("ibm_a"), resource("ibm_b"), resource("garnet"), notices=notices)
    lua.submit("ibm_a")
    for _ in range(3):
        lua.submit("ibm_*")
    lua.submit("any:garnet")
    named, *chosen, waiting = lua.run()
    told = "qrmi-slurm: ibm_a is out of service (drained: 100% maintenance); the job waits until it is back"
    assert (named.code, named.user) == (0, [told])
    assert [(outcome.job["licenses"], outcome.user) for outcome in chosen] == [("qpu_ibm_b:1", [])] * 3
    assert waiting.user == ["qrmi-slurm: garnet is out of service (offline); the job waits until it is back"]


# --- access rules ------------------------------------------------------------------------------------------


MANY = list("bcdefghijklmnopqrstuvwxyz")
FIRST = ", ".join(MANY[:20])


@pytest.mark.parametrize(
    ("rules", "job", "sentence"),
    [
        ({"users": ["alice"]}, {}, None),
        ({"users": ["bob"]}, {}, "user alice may not use q: it is for user bob"),
        ({"users": ["bob", "carol"]}, {}, "user alice may not use q: it is for users bob, carol"),
        ({"users": ["bob"], "groups": ["optics"]}, {}, "user alice may not use q: it is for user bob or group optics"),
        ({"users": MANY}, {}, f"user alice may not use q: it is for users {FIRST}, ... and 5 more"),
        ({"users": []}, {}, "user alice may not use q: nobody may"),
        ({"users": [], "groups": []}, {}, "user alice may not use q: nobody may"),
        ({"users": ["bob"]}, {"user_name": None, "user_id": 77}, "user 77 may not use q: it is for user bob"),
        ({"groups": ["quantum"]}, {}, None),
        ({"groups": ["physics"]}, {}, "user alice may not use q: it is for group physics"),
        ({"groups": ["physics"]}, {"group_id": 2001}, None),
        ({"groups": ["physics", "hidden"]}, {}, None),
        ({"groups": ["missing"]}, {}, None),
        ({"users": ["bob"], "groups": ["quantum"]}, {}, None),
        ({"accounts": ["Physics"]}, {"account": "PHYSICS"}, None),
        ({"accounts": ["a", "b"]}, {"account": "x"}, "account x may not use q: it is for accounts a, b"),
        ({"accounts": ["physics"]}, {"default_account": "physics"}, None),
        ({"accounts": ["physics"]}, {}, "a job without an account may not use q: it is for account physics"),
        ({"accounts": ["a"]}, {"account": "x", "default_account": "a"}, "account x may not use q: it is for account a"),
        ({"accounts": []}, {}, "a job without an account may not use q: nobody may"),
        ({"partitions": ["quantum"]}, {"partition": "quantum"}, None),
        ({"partitions": ["q"]}, {"partition": "q,debug"}, "partition debug may not use q: it is for partition q"),
        ({"partitions": ["quantum", "main"]}, {}, None),
        ({"partitions": ["quantum"]}, {}, "partition main may not use q: it is for partition quantum"),
        ({"partitions": ["quantum"]}, {"reservation": "r"}, None),
        ({"qos": ["High"]}, {"qos": "high"}, None),
        ({"qos": ["high", "low"]}, {"default_qos": "normal"}, "QOS normal may not use q: it is for QOS high, low"),
        ({"qos": ["high"]}, {}, "a job without a QOS may not use q: it is for QOS high"),
        ({"qos": ["high"]}, {"default_account": "x"}, None),
        ({"users": ["alice"], "qos": ["high"]}, {"qos": "low"}, "QOS low may not use q: it is for QOS high"),
    ],
)  # fmt: skip
def test_each_access_rule_lets_in_only_those_it_names(lua, rules, job, sentence):
    """A job passes if only Prolog can tell."""
    site(lua, allowed("q", **rules), resource("open"))
    parts = {"debug": {"flag_default": 0}, "main": {"flag_default": 1}}
    lua.submit("q", parts=parts, **job)
    lua.submit("open", parts=parts, **job)
    guarded, open_ = lua.run()
    assert open_.is_taken
    if sentence is None:
        assert (guarded.user, guarded.job["licenses"]) == ([], "qpu_q:1")
    else:
        assert refused(guarded) == sentence == as_prolog_says(rules, job)


def as_prolog_says(rules, job):
    """Return Prolog's sentence for alice, a member of the group quantum."""
    person = Person(
        job.get("user_name", "alice") or str(job["user_id"]),
        frozenset({"quantum"}),
        job.get("account") or job.get("default_account"),
        job.get("partition", "main").rpartition(",")[2],
        job.get("qos") or job.get("default_qos"),
    )
    return access.refusal("q", allowed("q", **rules).slurm.access, person)


def test_a_choice_skips_qpus_that_its_user_may_not_use(lua):
    site(lua, allowed("a", users=["bob"]), resource("b"), allowed("c", users=["bob"]))
    for _ in range(3):
        lua.submit("any:*")
    lua.submit("any:[ac]")
    lua.submit("a,c")
    *chosen, none, both = lua.run()
    assert {outcome.job["licenses"] for outcome in chosen} == {"qpu_b:1"}
    assert not any("admin_comment" in outcome.job for outcome in chosen)
    reasons = "; ".join(f"user alice may not use {name}: it is for user bob" for name in "ac")
    assert refused(none) == refused(both) == reasons


# --- changes -----------------------------------------------------------------------------------------------


RUNNING = 1


def test_an_unrelated_change_is_left_alone(lua):
    """The catalogue is not even read."""
    lua.modify({"time_limit": 5, "admin_comment": "x"}, {"licenses": "qpu_ibm_demo:1"}, "ibm_demo")
    lua.modify({"licenses": "matlab"}, {})
    for outcome in lua.run():
        assert (outcome.code, outcome.user, outcome.log) == (0, [], [])


def test_a_waiting_job_keeps_the_licenses_of_its_qpus(lua):
    two_qpus(lua)
    had = {"licenses": "qpu_ibm_demo:1"}
    for asked in ("matlab:2", "", "qpu_ibm_demo:5", "qpu_ibm_second", "matlab,qpu_ibm_second:1"):
        lua.modify({"licenses": asked}, had, "ibm_demo")
    licenses = [outcome.job["licenses"] for outcome in lua.run()]
    own = "qpu_ibm_demo:1"
    assert licenses == [f"matlab:2,{own}", own, own, own, f"matlab,{own}"]


def test_a_choice_can_be_moved_to_another_of_its_licenses(lua):
    three(lua)
    had = {"licenses": "m:1,qpu_ibm_a:1", "admin_comment": "x qrmi-slurm:any=qpu_ibm_a|qpu_ibm_b"}
    for asked in ("qpu_ibm_b:1", "m:1,qpu_ibm_b:1", "k", "qpu_garnet"):
        lua.modify({"licenses": asked}, had, "any:ibm_*", uid=0)
    licenses = [outcome.job["licenses"] for outcome in lua.run()]
    assert licenses == ["qpu_ibm_b:1", "m:1,qpu_ibm_b:1", "k,qpu_ibm_a:1", "qpu_ibm_a:1"]


def test_a_choice_with_only_one_license_keeps_it(lua):
    """It has no marker, and other QPUs that fit were not open to its owner."""
    site(lua, allowed("a", users=["bob"]), resource("b"), resource("c", license="m"))
    lua.submit("any:[ab]")
    lua.modify({"licenses": "matlab"}, {"licenses": "qpu_b:1"}, "any:[ab]")
    lua.modify({"licenses": "matlab"}, {"licenses": "qpu_b:1,m:1"}, "any:[ab],c")
    submitted, one, with_name = lua.run()
    assert (submitted.job["licenses"], submitted.job.get("admin_comment")) == ("qpu_b:1", None)
    assert one.job["licenses"] == "matlab,qpu_b:1"
    assert sorted(with_name.job["licenses"].split(",")) == ["m:1", "matlab", "qpu_b:1"]


def test_two_choices_keep_a_license_each(lua):
    three(lua)
    marker = "qrmi-slurm:any=qpu_ibm_a|qpu_ibm_b|qpu_garnet"
    had = {"licenses": "qpu_ibm_a:1,qpu_ibm_b:1", "admin_comment": f"{marker} {marker}"}
    lua.modify({"licenses": "qpu_garnet,qpu_ibm_b"}, had, "any:*,any:*", uid=0)
    lua.modify({"licenses": "k"}, had, "any:*,any:*")
    moved, kept = (sorted(outcome.job["licenses"].split(",")) for outcome in lua.run())
    assert (moved, kept) == (["qpu_garnet:1", "qpu_ibm_b:1"], ["k", "qpu_ibm_a:1", "qpu_ibm_b:1"])


def test_an_admins_comment_keeps_the_marker_and_adds_none(lua):
    three(lua)
    had = {"admin_comment": "old qrmi-slurm:any=qpu_ibm_a|qpu_ibm_b"}
    lua.modify({"admin_comment": "new"}, had, "ibm_*", uid=0)
    lua.modify({"admin_comment": "new qrmi-slurm:any=qpu_ibm_a|qpu_ibm_b"}, {}, uid=0)
    lua.modify({"admin_comment": "new"}, {}, uid=0)
    comments = [outcome.job["admin_comment"] for outcome in lua.run()]
    assert comments == ["new qrmi-slurm:any=qpu_ibm_a|qpu_ibm_b", "new", "new"]


def test_a_change_must_fit_the_access_rules(lua):
    site(lua, allowed("a", partitions=["quantum"], accounts=["x"]), resource("b"))
    had = {"partition": "quantum", "account": "x", "licenses": "qpu_a:1"}
    marked = {**had, "admin_comment": "qrmi-slurm:any=qpu_a|qpu_b"}
    lua.modify({"partition": "debug"}, had, "a")
    lua.modify({"account": "y"}, had, "a")
    lua.modify({"account": "", "default_account": "x"}, had, "a")
    lua.modify({"account": "", "default_account": "z"}, had, "a", uid=0)
    lua.modify({"partition": "debug"}, had, "b")
    lua.modify({"partition": "debug"}, marked, "any:*")
    partition, account, same, other, open_, moved = lua.run()
    assert refused(partition) == "partition debug may not use a: it is for partition quantum"
    assert refused(account) == "account y may not use a: it is for account x"
    assert partition.code == 2002, "22.05 drops our sentence, so scontrol prints Slurm's words for the code"
    assert same.is_taken
    assert refused(other) == "account z may not use a: it is for account x"
    assert open_.is_taken
    assert (moved.code, moved.job["licenses"]) == (0, "qpu_b:1"), "moved to a QPU that they may use there"


def test_only_an_operator_changes_a_running_jobs_licenses(lua):
    two_qpus(lua)
    had = {"licenses": "qpu_ibm_demo:1", "job_state": RUNNING + 256}
    lua.modify({"licenses": ""}, had, "ibm_demo")
    lua.modify({"licenses": ""}, {**had, "licenses": "m"}, "ibm_demo")
    lua.modify({"licenses": "qpu_ibm_second:1"}, had, "ibm_demo", uid=0)
    lua.modify({"licenses": "qpu_ibm_second:1"}, had, "ibm_demo", uid=1234)
    dropped, others, by_root, by_operator = lua.run()
    assert refused(dropped) == "a running job keeps the licenses of its QPUs"
    assert dropped.code == 2048
    assert others.is_taken
    assert by_root.job["licenses"] == by_operator.job["licenses"] == "qpu_ibm_second:1"


def test_a_change_gives_no_qpu_license_to_a_job_without_qpu(lua):
    two_qpus(lua)
    lua.modify({"licenses": "qpu_ibm_demo"}, {})
    lua.modify({"licenses": "m,qpu_ibm_demo"}, {}, uid=0)
    lua.modify({"licenses": "qpu_ibm_demo:1"}, {"het_job_id": 7})
    alone, with_others, component = lua.run()
    assert refused(alone).startswith("qpu_ibm_demo is the license of ibm_demo")
    assert alone.code == 2048
    assert with_others.job["licenses"] == "m"
    assert component.is_taken, "the license was added for the component before it"
    assert "licenses" not in component.job


def test_a_change_is_refused_without_a_catalogue(lua):
    """Otherwise the job would lose its licenses."""
    lua.modify({"licenses": "m"}, {"licenses": "qpu_ibm_demo:1"}, "ibm_demo")
    (outcome,) = lua.run()
    assert outcome.code == -1
    assert "cannot read the catalogue: " in outcome.log[0]


# --- login node --------------------------------------------------------------------------------------------


def test_the_login_node_refuses_in_the_controllers_words(lua):
    site(lua, allowed("a", partitions=["quantum"]), allowed("b", users=["bob"]), resource("c"))
    for term, options in (("d", {}), ("a", {"partition": "debug"}), ("any:c,any:c", {})):
        lua.cli(term, **options)
    unknown, partition, none = lua.run()
    assert unknown.log == ["qrmi-slurm: unknown QPU: d; known QPUs: a, b, c"]
    assert partition.log == ["qrmi-slurm: partition debug may not use a: it is for partition quantum"]
    assert none.log == ["qrmi-slurm: any:c: no other QPU is left for it"]
    assert [unknown.code, partition.code, none.code] == [-1, -1, -1]


def test_the_login_node_passes_what_only_the_controller_can_judge(lua):
    site(lua, allowed("a", partitions=["quantum"], accounts=["x"], qos=["y"]), allowed("b", users=["bob"]))
    lua.cli("a")
    lua.cli("b,any:*")
    lua.cli()
    lua.cli(spank={})
    lua.cli("nothing", type="srun", jobid="7")
    for outcome in lua.run():
        assert (outcome.code, outcome.user, outcome.log) == (0, [], [])
    lua.cli("nothing", type="srun")
    assert lua.run(env={"SLURM_JOB_ID": "7"})[0].code == 0, "TaskProlog judges steps"
    lua.cli("nothing", type="srun", jobid="unset")
    lua.cli("nothing", type="sbatch")
    assert [outcome.code for outcome in lua.run()] == [-1, -1]


# --- job_submit.lua and cli_filter.lua ---------------------------------------------------------------------


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_without_the_module_the_scripts_refuse_only_jobs_with_qpu(interpreter, tmp_path):
    """slurmctld still starts, and no job runs without its licenses."""
    lua = Lua(interpreter, tmp_path)
    lua.do('package.path, package.loaded["qrmi_slurm"], slurm.log_error = "", nil, function() end')
    lua.do("package.preload.qrmi_slurm = function() error('gone') end")
    lua.do(f"assert(dofile({str(SOURCES / 'job_submit.lua')!r}) == 0)")
    lua.do("qrmi = { job_submit = slurm_job_submit, job_modify = slurm_job_modify }")
    lua.submit("ibm_demo")
    lua.submit(licenses="m")
    lua.modify({"licenses": "m"}, {})
    lua.do(f"assert(dofile({str(SOURCES / 'cli_filter.lua')!r}) == 0)")
    lua.do("qrmi = { cli_pre_submit = slurm_cli_pre_submit }")
    lua.cli("ibm_demo")
    asking, other, change, login = lua.run()
    assert asking.user == ["qrmi-slurm: jobs with --qpu are not accepted at the moment; please tell an admin"]
    assert (asking.code, other.code, change.code, login.code) == (-1, 0, 0, 0)
    assert other.job["licenses"] == "m"


def test_make_installs_the_scripts_with_the_path_of_the_module(tmp_path):
    """Below a package's root, for a controller with no other part of the suite."""
    folder = "/srv/slurm/lib/lua"
    command = ["make", "-C", SOURCES, "install-lua", f"DESTDIR={tmp_path}", "SLURM_PLUGIN_DIR=/srv/slurm/lib"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    installed = tmp_path / folder.lstrip("/")
    assert sorted(path.name for path in installed.iterdir()) == ["cli_filter.lua", "job_submit.lua", "qrmi_slurm.lua"]
    for path in installed.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644
        line = f'package.path = "{folder}/?.lua;" .. package.path\n'
        assert (line in path.read_text()) is (path.name != "qrmi_slurm.lua")
