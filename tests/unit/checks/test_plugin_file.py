import struct
from pathlib import Path

import pytest

from qrmi_slurm.checks import plugin_file
from qrmi_slurm.errors import PlugstackError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no shared object"),
        (b"#!/bin/sh\n", "no shared object"),
        (b"\x7fELF\x02\x01" + bytes(58), "another machine|no plugin"),
        (Path("/bin/true").read_bytes(), "no plugin of Slurm's"),
        (Path("/bin/true").read_bytes()[:5000], "no plugin of Slurm's"),
    ],
)
def test_what_is_no_plugin(tmp_path, content, words):
    """A script, another machine's file, a program and a truncated one are told, and never crash the reader."""
    path = tmp_path / "spank_qrmi.so"
    path.write_bytes(content)
    with pytest.raises(PlugstackError, match=words):
        plugin_file.read(path)


def test_a_damaged_plugin_is_no_plugin(tmp_path):
    """Whatever a file's tables point to, it is an answer or a sentence."""
    whole = bytearray(Path("/bin/true").read_bytes())
    path = tmp_path / "spank_qrmi.so"
    for at in range(24, 64, 2):
        damaged = bytearray(whole)
        struct.pack_into("<H", damaged, at, 0xFFFF)
        path.write_bytes(damaged)
        with pytest.raises(PlugstackError):
            plugin_file.read(path)
