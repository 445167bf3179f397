"""The config as the hooks load it."""

import json

import pytest
from doubles import SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.config import access, config_file, slurm_section
from qrmi_slurm.config.slurm_section import SlurmSection
from qrmi_slurm.errors import ConfigError
from qrmi_slurm.text import is_one_line

GOOD = {"name": "a", "type": "t", "environment": {"QRMI_KEY": SECRET}}


def text_of(*resources):
    return json.dumps({"resources": list(resources)})


def test_resources_are_found_by_name():
    loaded = config_file.parse(text_of(GOOD, {**GOOD, "name": "b", "slurm": {"license": "l"}, "is_dynamic": True}))
    assert list(loaded.resources) == ["a", "b"]
    assert loaded.resources["a"].environment == {"QRMI_KEY": SECRET}
    assert loaded.resources["b"].slurm.license == "l"
    assert loaded.resources["b"].is_dynamic


# What may be meant to keep others out.
CLOSED = {
    "a misspelled key": text_of({**GOOD, "slurm": {"alow": {"users": ["alice"]}}}),
    "a newer version's key": text_of({**GOOD, "slurm": {"hours": "8-17"}}),
    "a misspelled rule": text_of({**GOOD, "slurm": {"allow": {"user": ["alice"]}}}),
    "a text for a list": text_of({**GOOD, "slurm": {"allow": {"users": "alice"}}}),
    "a list for an object": text_of({**GOOD, "slurm": {"allow": ["alice"]}}),
    "no object": text_of({**GOOD, "slurm": [SECRET]}),
    "nothing": text_of({**GOOD, "slurm": None}),
    "slurm misspelled": text_of({**GOOD, "slrum": {"allow": {"users": ["alice"]}}}),
    "slurm in capitals": text_of({**GOOD, "Slurm": {"allow": {"users": ["alice"]}}}),
    "outside of slurm": text_of({**GOOD, "allow": {"users": ["alice"]}}),
    "slurm twice": text_of(GOOD)[:-3] + ', "slurm": {"allow": {"users": []}}, "slurm": {}}]}',
    "allow twice": text_of(GOOD)[:-3] + ', "slurm": {"allow": {"users": []}, "allow": {}}}]}',
    "users twice": text_of(GOOD)[:-3] + ', "slurm": {"allow": {"users": [], "users": ["x"]}}}]}',
    "a resource twice": text_of({**GOOD, "slurm": {"allow": {"users": []}}}, GOOD),
}


@pytest.mark.parametrize("text", CLOSED.values(), ids=CLOSED.keys())
def test_nobody_may_use_a_resource_whose_rules_have_a_fault(text):
    """The others are not affected, and neither is its license: waiting jobs go on waiting."""
    text = text[:-2] + "," + json.dumps({**GOOD, "name": "other"}) + "]}"
    resources = config_file.parse(text).resources
    assert resources["other"].slurm == SlurmSection("qpu_other")
    section = resources["a"].slurm
    assert section.fault.startswith("resources[")
    assert SECRET not in section.fault
    assert access.refusal("a", section.access, access.Person("alice", frozenset({"alice"})))
    assert section.license == "qpu_a"


def test_keys_outside_of_a_resource_that_may_be_meant_to_keep_others_out_are_an_error():
    for key in ("allow", "slurm", "Slurm"):
        with pytest.raises(ConfigError, match=key):
            config_file.parse(json.dumps({"resources": [GOOD], key: {"users": ["alice"]}}))
    with pytest.raises(ConfigError, match="the same key twice"):
        config_file.parse('{"resources": [], "resources": []}')


def test_a_faulty_section_keeps_its_own_license():
    loaded = config_file.parse(text_of({**GOOD, "slurm": {"alow": {}, "license": "l"}}))
    assert loaded.resources["a"].slurm.license == "l"


def test_unknown_keys_are_ignored():
    assert config_file.parse(json.dumps({"resources": [{**GOOD, "comment": 1}], "$schema": "x"})).resources["a"]


FAULTS = [
    "",
    "{",
    "[]",
    "null",
    "{}",
    '{"resources": {}}',
    '{"resources": [1]}',
    "\ufeff" + text_of(GOOD),
    '{"resources": [' + "[" * 100_000,
    *(
        text_of({**GOOD, **fault})
        for fault in (
            {"name": ""},
            {"name": 1},
            {"name": "a=b"},
            {"name": "a\nb"},
            {"type": ""},
            {"type": None},
            {"environment": None},
            {"environment": [SECRET]},
            {"environment": {"A": 1}},
            {"environment": {"A": {"x": SECRET}}},
            {"environment": {"": SECRET}},
            {"environment": {"A=B": SECRET}},
            {"environment": {"A\n": SECRET}},
            {"environment": {"A": f"{SECRET}\nexport LD_PRELOAD=x"}},
            {"environment": {"A": f"{SECRET}\r"}},
            {"is_dynamic": "yes"},
        )
    ),
]


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_an_invalid_config_is_an_error_that_shows_no_value(text):
    with pytest.raises(ConfigError) as caught:
        config_file.parse(text)
    assert SECRET not in str(caught.value)
    assert is_one_line(str(caught.value))


def test_a_number_of_too_many_digits_is_an_error():
    """Python refuses it with an error that is not a JSON error."""
    with pytest.raises(ConfigError):
        config_file.parse(text_of(GOOD)[:-1] + ', "n": ' + "9" * 5000 + "}")


@pytest.mark.parametrize(
    "fault", [{"environment": {"A": "\ud800"}}, {"name": "\ud800"}, {"environment": {"\ud800": "a"}}]
)
def test_a_lone_surrogate_is_an_error_since_no_environment_can_hold_it(fault):
    with pytest.raises(ConfigError):
        config_file.parse(text_of({**GOOD, **fault}))


def test_a_variable_name_that_ends_with_a_blank_is_an_error():
    """slurmstepd strips it, so the task and QRMI in the hooks would see different names."""
    with pytest.raises(ConfigError):
        config_file.parse(text_of({**GOOD, "environment": {"QRMI_KEY ": "x"}}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "type", "environment", "A"]), inner)
    ),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=3))
def test_any_json_is_a_config_or_a_config_error(resources):
    try:
        loaded = config_file.parse(text_of(*resources))
    except ConfigError:
        return
    for resource in loaded.resources.values():
        assert all(is_one_line(name) and is_one_line(value) for name, value in resource.environment.items())


def test_load_names_the_file(tmp_path):
    path = tmp_path / "qrmi_config.json"
    with pytest.raises(ConfigError, match=r"cannot read .*qrmi_config\.json"):
        config_file.load(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match=r"qrmi_config\.json is not UTF-8 \(byte 7\)"):
        config_file.load(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"qrmi_config\.json: not valid JSON at line 1 column 2"):
        config_file.load(path)
    path.write_text(text_of(GOOD))
    assert config_file.load(path).resources["a"].name == "a"


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(config_file, "MAX_CONFIG_BYTES", 20)
    (tmp_path / "c").write_text(text_of(GOOD))
    with pytest.raises(ConfigError, match="larger than 20 bytes"):
        config_file.load(tmp_path / "c")


def test_a_resources_repr_shows_no_value():
    assert SECRET not in repr(config_file.parse(text_of(GOOD)))


def test_only_what_is_asked_for_is_made(monkeypatch):
    """A Prolog needs one of a site's thousand resources; all are checked, and one is made."""
    made = []
    parse = slurm_section.parse
    monkeypatch.setattr(slurm_section, "parse", lambda name, slurm: made.append(name) or parse(name, slurm))
    text = text_of(*({**GOOD, "name": f"q{number}", "slurm": {"capacity": 2}} for number in range(1000)))
    resources = config_file.parse(text).resources
    assert (len(resources), "q7" in resources, "no" in resources, resources.get("no")) == (1000, True, False, None)
    assert resources["q7"].slurm.capacity == resources["q7"].slurm.capacity == 2
    assert made == ["q7"]
    assert [resource.name for resource in resources.values()] == list(resources)


@pytest.mark.parametrize("before", [0, 1, 40])
@pytest.mark.parametrize("text", FAULTS[8:], ids=range(8, len(FAULTS)))
def test_a_fault_is_found_wherever_it_is(text, before):
    """The quick look at a resource that is like the ones before it misses nothing."""
    good = [json.dumps({**GOOD, "name": f"q{number}", "environment": {"A": "x"}}) for number in range(before)]
    resources = ", ".join([*good, text.removeprefix('{"resources": [').removesuffix("]}")])
    with pytest.raises(ConfigError, match=rf"resources\[{before}\]|nested too deeply"):
        config_file.parse(f'{{"resources": [{resources}]}}')
