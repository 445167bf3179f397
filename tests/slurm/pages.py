"""What the pages tell people to type: the commands in code blocks and in the text."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# An inline span that starts with one of these and has arguments is a command; others are names, options, values.
PROGRAMS = frozenset(
    {"apt-get", "dnf", "env", "export", "install", "journalctl", "ln", "make", "man", "pip", "qrmi-slurm", "rm"}
    | {"sacct", "sacctmgr", "salloc", "sbatch", "scontrol", "sed", "sinfo", "sprio", "squeue", "sreport", "srun", "ssh"}
    | {"systemctl", "systemd-analyze", "touch"}
)
# These need slurmdbd; tests/slurm/test_accounting.py covers one.
OF_SLURMDBD = ("sacct ", "sacctmgr ", "sreport ")
_LAUNCHERS = frozenset({"salloc", "sbatch", "srun"})
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Args:
        page: the page's path below the checkout.
        section: the heading above it.
        language: the language after the fence; may be empty.
        text: its lines.
    """

    page: str
    section: str
    language: str
    text: str

    @property
    def is_typed(self) -> bool:
        """Whether it contains commands rather than a script."""
        return self.language in ("sh", "console") and not self.text.startswith("#!")

    @property
    def commands(self) -> list[str]:
        """The commands in it without comments: those of `sh`, and each line with a prompt of `console`."""
        if self.language == "sh":
            return _commands_of_script(self.text)
        return [command for command, _ in self.session]

    @property
    def session(self) -> list[tuple[str, list[str]]]:
        """The commands of a console, each with its output below; root's have the prompt `# `."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            # Prompts in make's output are part of the output, as are comments in a printed file.
            is_prompt = line.startswith("$ ") or (line.startswith("# ") and line.split()[1] in PROGRAMS)
            if is_prompt and not (found and found[0][0].startswith("make ")):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        return found


def _commands_of_script(text: str) -> list[str]:
    """Return each command of a script; lines continued with a backslash are one command."""
    commands: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        command = line.partition(" # ")[0].strip()
        while command.endswith("\\"):
            command = f"{command[:-1].rstrip()} {next(lines).strip()}"
        if command.startswith("for "):
            while not command.endswith("\ndone"):
                command += f"\n{next(lines).strip()}"
        if command:
            commands.append(command)
    return commands


def pages() -> list[str]:
    """Return the paths of all documentation pages, below the checkout."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    found = []
    for match in _FENCE.finditer(text):
        headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text[: match.start()]), re.MULTILINE)
        found.append(Block(page, headings[-1], match[1], match[2]))
    return found


def block(page: str, section: str, language: str, number: int = 0) -> Block:
    """Return one block: the n-th of its language below a heading."""
    return [one for one in blocks(page) if (one.section, one.language) == (section, language)][number]


def inline_commands(page: str) -> Iterator[str]:
    """Yield the commands within a page's sentences and tables."""
    text = _FENCE.sub("", (ROOT / page).read_text())
    for span in re.findall(r"`([^`]+)`", text):
        command = " ".join(span.split())
        if _is_command(command):
            yield command


def _is_command(span: str) -> bool:
    """Tell a command from a mention: `srun -n4` starts nothing."""
    try:
        words = shlex.split(span)
    except ValueError:
        return False
    if len(words) < 2 or words[0].rpartition("/")[2] not in PROGRAMS:
        return False
    return words[0] not in _LAUNCHERS or words[1] == "--help" or not all(word.startswith("-") for word in words[1:])


def commands(page: str) -> list[str]:
    """Return each command of a page once: first those in blocks, then those in the text."""
    in_blocks = [command for one in blocks(page) if one.is_typed for command in one.commands]
    return list(dict.fromkeys([*in_blocks, *inline_commands(page)]))
