"""The pages say what the code says."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
SOURCES = [
    *sorted((CHECKOUT / "qrmi_slurm").rglob("*.py")),
    CHECKOUT / "scripts" / "task_prolog.py",
    *sorted((CHECKOUT / "cli_filter").glob("*.[ch]")),
    CHECKOUT / "cli_filter" / "qrmi_slurm.lua",
]
SLURMS_OWN = "unrecognized option"
# What stands for something in a message of the page (a QPU, a term, an address, a number, the rest), and where the code
# puts sentences together.
BETWEEN_PARTS = r"NAME\w*|TERM|ADDRESS|\bN\b|\b\d+\b|\.\.\.|offline|--qpu|[:;,]|\bby\b"


def messages():
    """Return the messages in the tables of docs/user.md."""
    page = (CHECKOUT / "docs" / "user.md").read_text()
    chapter = page.partition("\n## What messages mean\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in chapter.splitlines() if line.startswith("| `")]
    return [message for row in rows for message in re.findall("`([^`]+)`", row) if SLURMS_OWN not in message]


@pytest.mark.parametrize("message", messages())
def test_a_message_of_the_users_page_is_one_of_ours(message):
    """Each part of it that is no placeholder stands in the code; a message that was changed there changes here."""
    code = "\n".join(path.read_text() for path in SOURCES)
    # One sentence may be written in several strings, in Python and in C.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    parts = [part.strip(" _=") for part in re.split(BETWEEN_PARTS, message)]
    assert any(len(part) > 8 for part in parts)
    for part in parts:
        assert part in code
