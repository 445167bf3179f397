"""The word in a job's AdminComment that says how often it was put back into the queue, and why.

    qrmi-slurm:requeued=3,unreachable,ibm_quebec,1795863459,3

Only operators can change an AdminComment, and it survives requeues. The site's text in it stays, and so do the words
that job_submit.lua leaves for the sensor (`qrmi-slurm:any=...`).
"""

import re
from typing import Final, NamedTuple

_MARK: Final = "qrmi-slurm:requeued="
_WORD: Final = re.compile(
    r"(?<!\S)qrmi-slurm:requeued=([0-9]{1,6}),([a-z-]{1,20}),([!-+\--~]{1,100}),([0-9]{1,12})(?:,([0-9]{1,10}))?(?!\S)"
)

# Whatever begins like our word is replaced by it.
_ANY_WORD: Final = re.compile(r"(?:^|(?<=\s))qrmi-slurm:requeued=\S*\s?")

# Not in a QPU's name here: what Slurm's commands, its accounting or a shell might read as something else.
_UNSAFE: Final = re.compile(r"""[^!-~]|["'`|=\\,;$]""")
_MAX_NAME_CHARS: Final = 100
_MAX_TIMES: Final = 999_999
_NO_NAME: Final = "?"


class Requeued(NamedTuple):
    """What the word says.

    Args:
        times: how often the job was put back into the queue because a QPU was not there; at least 1.
        kind: the last failure's, a word of `failure.Kind`.
        qpu: the QPU that was not there the last time, with `?` for characters that are not safe here.
        since_s: when the first of these starts failed, in seconds since the epoch.
        restarts: Slurm's count of all the job's restarts at its next start, if nothing else restarts it; None if
            unknown.
    """

    times: int
    kind: str
    qpu: str
    since_s: int
    restarts: int | None = None

    @property
    def word(self) -> str:
        """The word: printable ASCII without blanks, quotes and backslashes, of less than 200 bytes."""
        name = _UNSAFE.sub("?", self.qpu)[:_MAX_NAME_CHARS] or _NO_NAME
        restarts = "" if self.restarts is None else f",{self.restarts}"
        return f"{_MARK}{min(self.times, _MAX_TIMES)},{self.kind},{name},{self.since_s}{restarts}"


def read(comment: str) -> Requeued | None:
    """Return what our word in an AdminComment says; None where there is none.

    Args:
        comment: the AdminComment, as squeue or scontrol prints it.
    """
    match = _WORD.search(comment)
    if match is None:
        return None
    return Requeued(int(match[1]), match[2], match[3], int(match[4]), int(match[5]) if match[5] else None)


def with_word(comment: str, requeued: Requeued) -> str:
    """Return an AdminComment with our word at its end, in place of an earlier one; the rest stays as it is.

    Args:
        comment: the AdminComment; empty where the job has none.
        requeued: what the word is to say.
    """
    rest = _ANY_WORD.sub("", comment).rstrip()
    return f"{rest} {requeued.word}" if rest else requeued.word
