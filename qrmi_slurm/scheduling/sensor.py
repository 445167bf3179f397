"""The sensor: one run brings Slurm's licenses in line with what QRMI says about the QPUs, so that jobs wait, not fail.

A QPU whose service says that it is offline or paused goes out of service at once; one that gives no answer, when two
runs in a row got none. It comes back as soon as it is online. What a job's Prolog has taken out of service, since it
could not acquire the QPU, is treated the same: it comes back when the QPU is online, and stays out until then. What an
admin has drained is left alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.outages import outage, reservations
from qrmi_slurm.outages.outage import Outage
from qrmi_slurm.outages.reservations import Reservations
from qrmi_slurm.scheduling import memory, moves, qpus, state_files
from qrmi_slurm.scheduling.memory import Memory
from qrmi_slurm.scheduling.moves import Move
from qrmi_slurm.scheduling.qpus import Listing, Qpu
from qrmi_slurm.scheduling.site import Site, announce, by_license, changing
from qrmi_slurm.slurm import licenses
from qrmi_slurm.slurm.licenses import License

_LOCK_FILE: Final = "sensor.lock"

# How many times in a row a QPU may give no answer and stay in service.
_MAX_UNANSWERED: Final = 1

# slurmctld answers within milliseconds; if it does not, a run must not go on forever.
_SLURM_LIMIT_S: Final = 60.0
_OUT_OF_TIME: Final = f"Slurm's part took longer than {_SLURM_LIMIT_S:.0f} s; the next run continues"

# QRMI's words for a QPU that jobs can try. With "unknown" it did answer, but the type cannot tell the state.
_USABLE_STATES: Final = ("online", "unknown")

_MAX_MOVES: Final = 200


@dataclass(frozen=True, slots=True)
class Change:
    """A license that was taken out of service or put back.

    Args:
        license: its name.
        qpus: the QPUs behind it.
        notice: why it is out of service; empty if it is back.
    """

    license: str
    qpus: tuple[str, ...]
    notice: str


@dataclass(frozen=True, slots=True)
class CapacityChange:
    """A license of which another number can be had now.

    Args:
        license: its name.
        capacity: how many jobs may have one at a time.
    """

    license: str
    capacity: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found and did.

    Args:
        is_skipped: this run did nothing because another was still going on.
        changes: the licenses that went out of service or came back.
        out: why QPUs are out of service now, by name.
        uncounted: QPUs whose license Slurm does not know.
        moves: the jobs that got another license.
        faults: what could not be done.
        capacities: the licenses whose number follows the service, where that has changed.
    """

    is_skipped: bool = False
    changes: tuple[Change, ...] = ()
    out: Mapping[str, str] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    faults: tuple[str, ...] = ()
    capacities: tuple[CapacityChange, ...] = ()


def run(resources: Sequence[Resource], site: Site, timeout_s: float) -> Report:
    """Ask QRMI about all QPUs, bring Slurm in line with the answers, and tell users.

    Args:
        resources: those of the config.
        site: where.
        timeout_s: how long QRMI may take for all of them, in seconds.

    Raises:
        BackendError: QRMI cannot be imported; nothing was changed.
        SchedulerError: Slurm cannot be asked; users have the new list all the same.
        RecordError: the state directory cannot be used.
    """
    with state_files.locked(site.state_dir, _LOCK_FILE, 0.0) as is_held:
        if not is_held:
            return Report(is_skipped=True)
        asked_s = time.time()
        listing = qpus.ask(resources, site.options, timeout_s)
        try:
            return _Run(resources, site, listing, asked_s).go()
        except SchedulerError:
            qpus.publish(listing, site.state_dir)
            raise


class _Health(Enum):
    UP = auto()
    DOWN = auto()
    UNCLEAR = auto()  # not asked, or no answer, but not yet too often
    NOT_OURS = auto()  # nothing was asked, because each job brings its own credentials


class _Finding(NamedTuple):
    """What QRMI's answers mean for a QPU or for a license.

    Args:
        health: the meaning.
        state: QRMI's word for it, where it is down.
    """

    health: _Health
    state: str = ""


class _Run:
    """One run, once QRMI has answered.

    Args:
        resources: those of the config.
        site: where.
        listing: what QRMI has answered.
        asked_s: since when it was asked, in seconds since the epoch.
    """

    def __init__(self, resources: Sequence[Resource], site: Site, listing: Listing, asked_s: float) -> None:
        self._resources = resources
        self._site = site
        self._listing = listing
        self._asked_s = asked_s
        self._deadline = Deadline.after(_SLURM_LIMIT_S)
        self._faults: list[str] = []
        self._changes: list[Change] = []
        self._capacities: list[CapacityChange] = []

    def go(self) -> Report:
        known = licenses.read(self._site.slurm_conf)
        before = memory.recall(self._site.state_dir, time.time())
        unanswered = _unanswered(self._listing.qpus, before)
        findings = self._findings(known, unanswered)
        with changing(self._site):
            found = reservations.read(self._site.slurm_conf)
            for name, finding in findings.items():
                self._attempt(partial(self._settle, known[name], finding, found), f"license {name}: ")
            found = reservations.read(self._site.slurm_conf)
            if self._follow_services(known, found):
                found = reservations.read(self._site.slurm_conf)
        notices = outage.notices(self._resources, found.outages)
        known = licenses.read(self._site.slurm_conf)
        listing = qpus.with_counts(self._listing, self._resources, known, found.less)
        announce(self._resources, self._site, listing, notices)
        moved = self._move(list(findings))
        memory.remember(Memory(time.time(), unanswered, _offline(findings, before)), self._site.state_dir)
        return Report(
            changes=tuple(self._changes),
            out=notices,
            uncounted=self._uncounted(known),
            moves=tuple(moved),
            faults=tuple(self._faults),
            capacities=tuple(self._capacities),
        )

    def _findings(self, known: Mapping[str, License], unanswered: Mapping[str, int]) -> dict[str, _Finding]:
        """Return the finding for each license that Slurm knows."""
        of_qpus = {qpu.name: _of_qpu(qpu, unanswered) for qpu in self._listing.qpus}
        return {
            license: _of_license([of_qpus[name] for name in names if name in of_qpus])
            for license, names in by_license(self._resources, known).items()
        }

    def _settle(self, license: License, finding: _Finding, found: Reservations) -> None:
        """Bring one license in line with its finding."""
        slurm_conf = self._site.slurm_conf
        before = found.outages.get(license.name)
        health = finding.health
        if before is not None and before.is_drained:
            # slurm.conf may have another count by now.
            reservations.put(replace(before, count=license.total), found, slurm_conf, time.time())
        elif health is _Health.UP and before is not None:
            if before.is_of_job and before.began_s >= int(self._asked_s):
                return  # the answer may be older than the failure; the next run asks again
            reservations.remove(license.name, slurm_conf)
            self._note(license.name, "")
        elif health is _Health.DOWN or (health is _Health.UNCLEAR and before is not None):
            reason = finding.state if health is _Health.DOWN or before is None else before.reason
            wanted = Outage(license.name, license.total, is_drained=False, reason=reason)
            is_changed = reservations.put(wanted, found, slurm_conf, time.time())
            if is_changed and (before is None or not before.matches(wanted)):
                self._note(license.name, wanted.notice)

    def _follow_services(self, known: Mapping[str, License], found: Reservations) -> bool:
        """Keep from jobs what the services do not have; what a service does not tell stays as it is.

        Returns:
            Whether anything has changed.
        """
        following: dict[str, list[str]] = {}
        for resource in self._resources:
            license = resource.slurm.following_license
            if license is not None and license in known:
                following.setdefault(license, []).append(resource.name)
        of_qpus = {qpu.name: qpu for qpu in self._listing.qpus}
        for license, names in following.items():
            wanted = _capacity_of([of_qpus[name] for name in names if name in of_qpus], known[license])
            if isinstance(wanted, str):
                self._faults.append(f"license {license}: {wanted}; it stays as it is")
            elif wanted is not None:
                self._attempt(partial(self._set_capacity, known[license], wanted, found), f"license {license}: ")
        for license in found.less.keys() - following.keys():  # the config has changed
            self._attempt(partial(self._keep_back, license, 0, found, ""), f"license {license}: ")
        return bool(self._capacities or found.less.keys() - following.keys())

    def _set_capacity(self, license: License, capacity: int, found: Reservations) -> None:
        count = max(0, license.total - capacity)
        text = f"the service has {capacity} of {license.total}"
        if self._keep_back(license.name, count, found, text):
            self._capacities.append(CapacityChange(license.name, min(capacity, license.total)))

    def _keep_back(self, license: str, count: int, found: Reservations, text: str) -> bool:
        return reservations.keep_back(license, count, found, text, self._site.slurm_conf, time.time())

    def _note(self, license: str, notice: str) -> None:
        names = tuple(resource.name for resource in self._resources if resource.slurm.license == license)
        self._changes.append(Change(license, names, notice))

    def _move(self, of: Sequence[str]) -> list[Move]:
        """Move waiting jobs to licenses of these with which they could start."""
        slurm_conf = self._site.slurm_conf
        done: list[Move] = []
        if not of:
            return done
        try:
            jobs = moves.waiting(of, slurm_conf)
            free = {name: license.free for name, license in licenses.read(slurm_conf).items()} if jobs else {}
        except SchedulerError as error:
            self._faults.append(str(error))
            return done
        for move in islice(moves.plan(jobs, free, self._deadline), _MAX_MOVES):
            if self._attempt(partial(moves.carry_out, move, slurm_conf), f"job {move.job}: "):
                done.append(move)
        self._is_late()
        return done

    def _attempt(self, work: Callable[[], object], what: str) -> bool:
        """Do one thing of many, and keep its fault for the report; tell whether it was done."""
        if self._is_late():
            return False
        try:
            work()
        except SchedulerError as error:
            self._faults.append(f"{what}{reservations.explain(error)}")
            return False
        return True

    def _is_late(self) -> bool:
        """Tell whether this run's time is over, and note it for the report."""
        if self._deadline.left_s > 0:
            return False
        if _OUT_OF_TIME not in self._faults:
            self._faults.append(_OUT_OF_TIME)
        return True

    def _uncounted(self, known: Mapping[str, License]) -> tuple[str, ...]:
        """Return the QPUs whose license Slurm does not know."""
        counted = [(resource.name, resource.slurm.license) for resource in self._resources]
        return tuple(name for name, license in counted if license is not None and license not in known)


def _unanswered(found: Sequence[Qpu], before: Memory) -> dict[str, int]:
    """Return how many times in a row QPUs have given no answer, this time included where they were asked."""
    silent = {qpu.name: before.unanswered.get(qpu.name, 0) + 1 for qpu in found if qpu.state == qpus.UNREACHABLE}
    not_asked = [qpu.name for qpu in found if qpu.state == qpus.NOT_ASKED]
    return silent | {name: before.unanswered[name] for name in not_asked if name in before.unanswered}


def _offline(findings: Mapping[str, _Finding], before: Memory) -> dict[str, str]:
    """Return the state of each license that is down, or was when its QPUs last answered."""
    found: dict[str, str] = {}
    for license, (health, state) in findings.items():
        if health is _Health.DOWN or (health is _Health.UNCLEAR and license in before.offline):
            found[license] = state or before.offline[license]
    return found


def _capacity_of(found: Sequence[Qpu], license: License) -> int | str | None:
    """Return how many of a license jobs may have; a sentence where that cannot be told, None where nobody was asked."""
    if len(found) != 1:
        return "several QPUs share it, and none of them can have its own capacity" if found else None
    [qpu] = found
    if qpu.state not in _USABLE_STATES:
        return None  # it is out of service, or did not answer
    if qpu.slots is None:
        return f"the service of {qpu.name} does not tell how many slots it has"
    capacity = qpu.slots.for_jobs(license.used)
    return capacity if capacity is not None else f"the service of {qpu.name} reports nonsense: {qpu.slots.fault}"


def _of_qpu(qpu: Qpu, unanswered: Mapping[str, int]) -> _Finding:
    """Return what a QPU's state means."""
    if qpu.state in _USABLE_STATES:
        return _Finding(_Health.UP)
    if qpu.state == qpus.USERS_OWN:
        return _Finding(_Health.NOT_OURS)
    is_silent = qpu.state == qpus.UNREACHABLE and unanswered[qpu.name] <= _MAX_UNANSWERED
    if is_silent or qpu.state == qpus.NOT_ASKED:
        return _Finding(_Health.UNCLEAR)
    return _Finding(_Health.DOWN, qpu.state)


def _of_license(findings: Sequence[_Finding]) -> _Finding:
    """Return what the findings for a license's QPUs mean for the license, which is down only if all of them are."""
    healths = {finding.health for finding in findings}
    if not healths or _Health.NOT_OURS in healths:
        return _Finding(_Health.NOT_OURS)
    if _Health.UP in healths:
        return _Finding(_Health.UP)
    return findings[0] if healths == {_Health.DOWN} else _Finding(_Health.UNCLEAR)
