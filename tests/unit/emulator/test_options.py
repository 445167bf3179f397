"""The emulator's options."""

import pytest

from qrmi_emulator.command import main, options_from_arguments, write_port
from qrmi_emulator.options import BackendSpec, EmulatorOptions, OptionsError, parse_backend_spec

PLANTED = "planted-key-9f2c"


def test_a_backend_has_a_name_and_a_device():
    """Without a name, a device is served under its IBM name."""
    assert parse_backend_spec("ibm_demo=FakeSherbrooke") == BackendSpec("ibm_demo", "FakeSherbrooke")
    assert parse_backend_spec("FakeManilaV2") == BackendSpec("ibm_manila", "FakeManilaV2")


@pytest.mark.parametrize("text", ["", "=", "a=", "=FakeManilaV2", "a b=FakeManilaV2", "a=../../etc", "a=b=c", "a\n=x"])
def test_an_invalid_backend_is_refused(text):
    """Names are checked against a pattern."""
    with pytest.raises(OptionsError):
        parse_backend_spec(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])  # noqa: S104
def test_an_address_other_than_loopback_is_refused(host, capsys):
    """The error says that the emulator listens on loopback only."""
    assert main(["--host", host]) == 2
    assert "loopback only" in capsys.readouterr().err


def test_the_api_key_is_never_shown(tmp_path):
    """It comes from a file or the environment and is not in the options' repr."""
    options = options_from_arguments([], {"QRMI_EMULATOR_APIKEY": PLANTED})
    assert options.api_key.reveal() == PLANTED
    assert PLANTED not in repr(options) + str(options)
    file = tmp_path / "key"
    file.write_text("from-a-file\n")
    from_file = options_from_arguments(["--api-key-file", str(file)], {"QRMI_EMULATOR_APIKEY": PLANTED})
    assert from_file.api_key.reveal() == "from-a-file"
    with pytest.raises(OptionsError):
        options_from_arguments(["--api-key-file", str(tmp_path / "none")], {})
    with pytest.raises(OptionsError):
        options_from_arguments([], {"QRMI_EMULATOR_APIKEY": ""})


def test_defaults_match():
    """Without arguments, the options are `EmulatorOptions()`."""
    assert options_from_arguments([], {}) == EmulatorOptions()


@pytest.mark.parametrize(
    "arguments", [["--workers", "0"], ["--backend", "a=FakeManilaV2", "--backend", "a=FakeFez"], ["--fault", "x"]]
)
def test_invalid_options_are_refused(arguments, capsys):
    """The emulator prints an error and exits 2."""
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_unknown_device_is_refused(capsys):
    """The error lists the known devices."""
    assert main(["--port", "0", "--backend", "a=FakeNothing"]) == 2
    assert "sherbrooke" in capsys.readouterr().err


def test_the_port_file_is_written_atomically(tmp_path):
    """Its temporary file is gone."""
    write_port(tmp_path / "port", 8290)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("port", "8290\n")]
