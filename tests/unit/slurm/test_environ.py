"""The environment that a hook was started with, as the kernel keeps it."""

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.slurm import environ

names = st.binary(min_size=1, max_size=8).filter(lambda name: not set(name) & {0, ord("=")})
values = st.binary(max_size=8).filter(lambda value: 0 not in value)


@given(st.dictionaries(names, values, max_size=5))
def test_any_names_and_values_are_parsed(wanted):
    content = b"".join(name + b"=" + value + b"\0" for name, value in wanted.items())
    assert environ.parse(content) == {os.fsdecode(name): os.fsdecode(value) for name, value in wanted.items()}


def test_the_first_of_duplicate_names_counts():
    assert environ.parse(b"A=1\0A=2\0") == {"A": "1"}


def test_the_environment_of_another_process_is_read():
    """Including a variable that a shell would drop for its name."""
    given_environment = {"ibm-x_QRMI_A": "1", "B": "a=b\nc"}
    program = [sys.executable, "-c", "print('ready', flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(program, env=given_environment, **pipes) as process:
        process.stdout.readline()
        found = environ.of_process(process.pid)
        process.communicate(b"\n")
    assert found == given_environment


def test_if_the_kernel_does_not_show_it_our_own_environment_is_returned():
    assert environ.of_process(2**22 + 1) == dict(os.environ)
