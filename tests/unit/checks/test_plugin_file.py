"""The plugin's file: whether it is ours, and which releases of Slurm it is for."""

from pathlib import Path

import pytest

from qrmi_slurm.checks import plugin_file
from qrmi_slurm.errors import PlugstackError

ELF = b"\x7fELF\x02\x01" + bytes(10) + b"\x03\0"
X86_64 = (62).to_bytes(2, "little")  # the code of x86_64 in elf(5)
MARKER = b"qrmi-slurm stub for Slurm\0"


@pytest.fixture
def x86_64(monkeypatch):
    """The tests' files are for this machine."""
    monkeypatch.setattr(plugin_file.platform, "machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a shared object"),
        (b"#!/bin/sh\n", "not a shared object"),
        (b"\x7fELF\x01\x01" + bytes(10) + b"\x03\0" + X86_64 + MARKER + b"22.05 23.02\0", "not a shared object"),
        (ELF, "a machine other than x86_64"),
        (ELF + X86_64[:1], "not the plugin of qrmi-slurm"),
        (ELF + (183).to_bytes(2, "little") + MARKER + b"22.05 23.02\0", "a machine other than x86_64"),
        (ELF + X86_64, "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + b"\0spank_qrmi\0spank\0", "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + MARKER, "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + MARKER + b"22.05 23.02", "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + MARKER + b"22.5\0", "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + MARKER + b"22.05.8\0", "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + bytes(1 << 20) + MARKER + b"22.05 23.02\0", "not the plugin of qrmi-slurm"),
    ],
)
@pytest.mark.usefixtures("x86_64")
def test_what_is_not_our_plugin(tmp_path, content, words):
    """A script, another machine's file, a plugin without our marker and a damaged one are reported."""
    path = tmp_path / "spank_qrmi.so"
    path.write_bytes(content)
    with pytest.raises(PlugstackError, match=words) as caught:
        plugin_file.releases(path)
    assert "make -C cli_filter install" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "found"), [(b"22.05", {(22, 5)}), (b"23.11 24.05 26.05", {(23, 11), (24, 5), (26, 5)})]
)
@pytest.mark.usefixtures("x86_64")
def test_the_releases_in_our_plugin(tmp_path, names, found):
    """The marker may be anywhere in the file's first MiB."""
    path = tmp_path / "spank_qrmi.so"
    path.write_bytes(ELF + X86_64 + bytes(10_000) + MARKER + names + b"\0" + bytes(10_000))
    assert plugin_file.releases(path) == found


def test_a_program_of_this_machine_is_not_our_plugin():
    with pytest.raises(PlugstackError, match="/bin/true is not the plugin of qrmi-slurm"):
        plugin_file.releases(Path("/bin/true"))
