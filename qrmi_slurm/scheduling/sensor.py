"""The sensor: a run that brings Slurm's licenses in line with what QRMI says of the QPUs, so that jobs wait, not fail.

A QPU whose service says that it is offline or paused is out of service at once; one that gives no answer, when it did
not the time before either. It is back as soon as it says online. What an admin has drained is left alone.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import RecordError, SchedulerError
from qrmi_slurm.outages import reservations
from qrmi_slurm.outages.reservations import Outage
from qrmi_slurm.scheduling import catalogue, moves, qpus
from qrmi_slurm.scheduling.moves import Move
from qrmi_slurm.scheduling.qpus import Listing, Qpu
from qrmi_slurm.slurm import licenses
from qrmi_slurm.slurm.licenses import License
from qrmi_slurm.slurm.plugstack import SiteOptions

MEMORY_FILE: Final = "sensor.json"
_MEMORY_VERSION: Final = 1
_MAX_MEMORY_BYTES: Final = 1024 * 1024

_RUN_LOCK: Final = "sensor.lock"
_CHANGE_LOCK: Final = "outages.lock"

# What was seen longer ago says nothing of now; the timer comes once a minute.
FRESH_S: Final = 600.0

# How often in a row a QPU may give no answer and stay in service.
_ANSWERS_MAY_BE_MISSING: Final = 1

# slurmctld answers within milliseconds; where it does not, a run must not go on for ever.
_SLURM_MAY_TAKE_S: Final = 60.0
_LOCK_WAIT_S: Final = 30.0
_LOCK_INTERVAL_S: Final = 0.05
_MAX_MOVES: Final = 200


class _Word(Enum):
    UP = "up"
    DOWN = "down"
    NOT_KNOWN = "not known"
    NOT_OURS = "not ours"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a run leaves to the next one.

    Args:
        ran_s: when it ran; seconds since the epoch.
        unanswered: how often in a row a QPU gave no answer, by name.
        offline: the state of each license whose QPUs are all down.
    """

    ran_s: float = 0.0
    unanswered: Mapping[str, int] = field(default_factory=dict)
    offline: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """A license that was taken out of service or put back.

    Args:
        license: its name.
        qpus: the QPUs behind it.
        notice: why it is out of service; empty where it is back.
    """

    license: str
    qpus: tuple[str, ...]
    notice: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found and did.

    Args:
        is_skipped: another run had not ended, so this one did nothing.
        changes: what has changed.
        out: why QPUs are out of service now, by name.
        uncounted: QPUs with a license that Slurm does not know.
        moves: the jobs that got another license.
        faults: what could not be done.
    """

    is_skipped: bool = False
    changes: tuple[Change, ...] = ()
    out: Mapping[str, str] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run works.

    Args:
        options: the site's.
        slurm_conf: Slurm's configuration file.
    """

    options: SiteOptions
    slurm_conf: Path

    @property
    def state_dir(self) -> Path:
        """The site's state directory."""
        return self.options.state_dir


def run(resources: Sequence[Resource], place: Place, timeout_s: float) -> Report:
    """Ask QRMI for all QPUs, change what has to change in Slurm, and tell users.

    Args:
        resources: of the config.
        place: where.
        timeout_s: how long QRMI may take for all of them, in seconds.

    Raises:
        BackendError: QRMI cannot be imported; nothing was changed.
        SchedulerError: Slurm cannot be asked; users have the list all the same.
        RecordError: the state directory cannot be used.
    """
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(_locked(place.state_dir, _RUN_LOCK, 0.0)):
            return Report(is_skipped=True)
        listing = qpus.ask(resources, place.options, timeout_s)
        try:
            return _Run(resources, place, listing).go()
        except SchedulerError:
            qpus.publish(listing, place.state_dir)
            raise


class _Run:
    """One run, after QRMI has answered."""

    def __init__(self, resources: Sequence[Resource], place: Place, listing: Listing) -> None:
        self._resources = resources
        self._place = place
        self._listing = listing
        self._ends_s = time.monotonic() + _SLURM_MAY_TAKE_S
        self._faults: list[str] = []
        self._changes: list[Change] = []

    def go(self) -> Report:
        known = licenses.read(self._place.slurm_conf)
        behind = by_license(self._resources, known)
        before = recall(self._place.state_dir, time.time())
        unanswered = {
            qpu.name: before.unanswered.get(qpu.name, 0) + 1
            for qpu in self._listing.qpus
            if qpu.state == qpus.UNREACHABLE
        }
        states = {qpu.name: _word(qpu, unanswered) for qpu in self._listing.qpus}
        offline: dict[str, str] = {}
        with changing(self._place.state_dir):
            found = reservations.read(self._place.slurm_conf)
            for license, names in behind.items():
                word, state = _of_all([states[name] for name in names if name in states])
                if word is _Word.DOWN or (word is _Word.NOT_KNOWN and license in before.offline):
                    offline[license] = state or before.offline[license]
                self._attempt(partial(self._settle, known[license], word, state, found), f"license {license}: ")
            outages = reservations.read(self._place.slurm_conf).outages
        notices = reservations.notices(self._resources, outages)
        announce(self._resources, self._place, self._listing, notices)
        moved = self._move(list(behind))
        memory = Memory(time.time(), unanswered, offline)
        _remember(memory, self._place.state_dir)
        return Report(
            changes=tuple(self._changes),
            out=notices,
            uncounted=tuple(
                resource.name
                for resource in self._resources
                if resource.slurm.license is not None and resource.slurm.license not in known
            ),
            moves=tuple(moved),
            faults=tuple(self._faults),
        )

    def _settle(self, license: License, word: _Word, state: str, found: reservations.Reservations) -> None:
        """Bring one license in line."""
        slurm_conf = self._place.slurm_conf
        before = found.outages.get(license.name)
        names = tuple(resource.name for resource in self._resources if resource.slurm.license == license.name)
        if before is not None and before.is_drained:
            # slurm.conf may have another number by now.
            reservations.put(reservations.with_count(before, license.total), found, slurm_conf, time.time())
        elif word is _Word.UP and before is not None:
            reservations.remove(license.name, slurm_conf)
            self._changes.append(Change(license.name, names, ""))
        elif word is _Word.DOWN or (word is _Word.NOT_KNOWN and before is not None):
            reason = state if word is _Word.DOWN or before is None else before.reason
            wanted = Outage(license.name, license.total, is_drained=False, reason=reason)
            is_done = reservations.put(wanted, found, slurm_conf, time.time())
            if is_done and (before is None or not before.says_as(wanted)):
                self._changes.append(Change(license.name, names, wanted.notice))

    def _move(self, of: Sequence[str]) -> list[Move]:
        """Move the jobs that could begin with another license."""
        slurm_conf = self._place.slurm_conf
        done: list[Move] = []
        if not of:
            return done
        try:
            jobs = moves.waiting(of, slurm_conf)
            free = {name: license.free for name, license in licenses.read(slurm_conf).items()} if jobs else {}
        except SchedulerError as error:
            self._faults.append(str(error))
            return done
        for move in moves.plan(jobs, free)[:_MAX_MOVES]:
            if self._attempt(partial(moves.carry_out, move, slurm_conf), f"job {move.job}: "):
                done.append(move)
        return done

    def _attempt(self, work: Callable[[], object], what: str = "") -> bool:
        """Do one thing of many; what goes wrong with it is told at the end."""
        if time.monotonic() > self._ends_s:
            if _OUT_OF_TIME not in self._faults:
                self._faults.append(_OUT_OF_TIME)
            return False
        try:
            work()
        except SchedulerError as error:
            self._faults.append(f"{what}{reservations.in_words(error)}")
            return False
        return True


_OUT_OF_TIME: Final = f"Slurm took longer than {_SLURM_MAY_TAKE_S:.0f} s: the next run goes on"


def _word(qpu: Qpu, unanswered: Mapping[str, int]) -> tuple[_Word, str]:
    """Return what a QPU's state means for its license."""
    match qpu.state:
        case "online" | "unknown":  # QRMI has an answer for the second, and it is none that says no
            return _Word.UP, ""
        case qpus.USERS_OWN:
            return _Word.NOT_OURS, ""
        case qpus.UNREACHABLE:
            is_down = unanswered[qpu.name] > _ANSWERS_MAY_BE_MISSING
            return (_Word.DOWN, qpu.state) if is_down else (_Word.NOT_KNOWN, "")
        case _:
            return _Word.DOWN, qpu.state


def _of_all(states: Sequence[tuple[_Word, str]]) -> tuple[_Word, str]:
    """Return what the QPUs that share a license mean for it: jobs have something to wait for where one is up."""
    words = {word for word, _ in states}
    if not words or _Word.NOT_OURS in words:
        return _Word.NOT_OURS, ""
    if _Word.UP in words:
        return _Word.UP, ""
    return states[0] if words == {_Word.DOWN} else (_Word.NOT_KNOWN, "")


def by_license(resources: Sequence[Resource], known: Mapping[str, License]) -> dict[str, list[str]]:
    """Return the resources' names by their license, of those that Slurm knows."""
    found: dict[str, list[str]] = {}
    for resource in resources:
        license = resource.slurm.license
        if license is not None and license in known:
            found.setdefault(license, []).append(resource.name)
    return found


def announce(resources: Sequence[Resource], place: Place, listing: Listing | None, notices: Mapping[str, str]) -> None:
    """Tell users which QPUs are out of service: in their list, and at submission.

    Args:
        resources: of the config.
        place: where.
        listing: the list; None where it is the last one, as far as there is one.
        notices: why QPUs are out of service, by name.

    Raises:
        RecordError: the list cannot be written.
        CatalogueError: the catalogue cannot be written.
    """
    if listing is None:
        with contextlib.suppress(RecordError):
            listing = qpus.read_published(place.state_dir)
    if listing is not None:
        qpus.publish(qpus.with_notices(listing, notices), place.state_dir)
    catalogue_path = catalogue.path_beside(place.slurm_conf)
    if catalogue_path.exists() and not catalogue.is_current(catalogue_path, resources, notices):
        catalogue.write(catalogue_path, resources, notices)


# --- what runs share -----------------------------------------------------------------------------------------


def recall(state_dir: Path, now_s: float) -> Memory:
    """Return what the last run has left; nothing where that is too long ago to say anything, or cannot be read."""
    memory = last_run(state_dir)
    return memory if memory is not None and abs(now_s - memory.ran_s) <= FRESH_S else Memory()


def last_run(state_dir: Path) -> Memory | None:
    """Return what the last run has left, however long ago; None where there was none here."""
    try:
        with (state_dir / MEMORY_FILE).open("rb") as file:
            document: Any = json.loads(file.read(_MAX_MEMORY_BYTES))
        if document["version"] != _MEMORY_VERSION:
            return None
        unanswered = {str(name): int(count) for name, count in document["unanswered"].items()}
        offline = {str(name): str(state) for name, state in document["offline"].items()}
        return Memory(float(document["ran_s"]), unanswered, offline)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remember(memory: Memory, state_dir: Path) -> None:
    document = {
        "version": _MEMORY_VERSION,
        "ran_s": memory.ran_s,
        "unanswered": dict(memory.unanswered),
        "offline": dict(memory.offline),
    }
    qpus.leave(state_dir, MEMORY_FILE, document, 0o644)


@contextlib.contextmanager
def changing(state_dir: Path) -> Iterator[None]:
    """Let nobody else change what is out of service until the block ends.

    Raises:
        RecordError: somebody else does, for 30 s; or the state directory cannot be used.
    """
    with _locked(state_dir, _CHANGE_LOCK, _LOCK_WAIT_S) as is_mine:
        if not is_mine:
            raise RecordError("another qrmi-slurm is changing what is out of service", "try again")
        yield


@contextlib.contextmanager
def _locked(state_dir: Path, name: str, wait_s: float) -> Iterator[bool]:
    """Hold a lock until the block ends; says whether it could be had."""
    path = state_dir / name
    try:
        qpus.make_state_dir(state_dir)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RecordError(
            f"cannot open {path}: {error.strerror}", "run this as root; see: qrmi-slurm doctor"
        ) from error
    try:
        end_s = time.monotonic() + wait_s
        while not (is_mine := _lock(fd, path)) and time.monotonic() < end_s:
            time.sleep(_LOCK_INTERVAL_S)
        yield is_mine
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RecordError(f"cannot lock {path}: {error.strerror}", "see: qrmi-slurm doctor") from error
    return True
