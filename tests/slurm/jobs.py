"""What test jobs do, and how their output is read."""

import re

# The whole environment, in a form that keeps values with any character in one line each.
PRINT_ENVIRONMENT = "#!/bin/sh\nenv\n"

_VARIABLE = re.compile(r"([^=\s][^=]*)=(.*)")


def environment_of(output: str) -> dict[str, str]:
    """Return the variables that `env` has printed; lines before them that are none are passed over."""
    return {match[1]: match[2] for match in map(_VARIABLE.fullmatch, output.splitlines()) if match}


def print_token(qpu: str) -> str:
    """Return the shell command that prints the token of a QPU."""
    return f"echo ${qpu}_QRMI_JOB_ACQUISITION_TOKEN"
