"""What test jobs do, and how to read their output."""

import re

# The whole environment, one variable per line, whatever its value contains.
PRINT_ENVIRONMENT = "#!/bin/sh\nenv\n"

_VARIABLE = re.compile(r"([^=\s][^=]*)=(.*)")


def environment_of(output: str) -> dict[str, str]:
    """Return the variables that `env` printed, skipping earlier lines that are not variables."""
    return {match[1]: match[2] for match in map(_VARIABLE.fullmatch, output.splitlines()) if match}


def print_token(qpu: str) -> str:
    """Return the shell command that prints a QPU's token."""
    return f"echo ${qpu}_QRMI_JOB_ACQUISITION_TOKEN"
