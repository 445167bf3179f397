"""The places: how many calls to QRMI run at a time, of one hook, one user and one node; and how many hooks work.

A selection of one character may come to hundreds of QPUs, and a job array to hundreds of Prologs; each call is a
process of root's and some requests to a service. Calls that release need no place on the node, so that they never wait
for others; nor does an Epilog, though it takes one if there is one, so that Prologs begin later.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm import files
from qrmi_slurm.config.resource_types import is_endpoint
from qrmi_slurm.errors import RecordError
from qrmi_slurm.names import of_resource

# The calls of one hook, or of one release, at a time. 17 processes take 63 MB. With 16, 64 QPUs took 1.4 times as long.
AT_ONCE: Final = 32

# The calls of the Prologs of one user, and of all users, on one node at a time. One user never has all of them.
USERS: Final = 32
NODES: Final = 64

# The same for calls that have had no answer in time and go on without their Prolog (hooks/late.py). They are killed
# where there is no place, so that services that hang do not pile up processes.
LATE_USERS: Final = 8
LATE_NODES: Final = 16

# Hooks at work at a time, for each processor of the node: those that compute, or have waited for a service for no more
# than SLOW_S. A Prolog with one QPU takes 50 ms of a processor, and is three processes. One user leaves a quarter of
# the places to others, at least one.
AT_WORK_PER_CPU: Final = 3
_MAX_AT_WORK: Final = 1024
SLOW_S: Final = 1.0

# The same where the node has more to do than its processors can: there a call is slow because of the node, and more
# hooks would make all of them slower.
BUSY_S: Final = 5.0
_BUSY_PER_CPU: Final = 2
_LOAD: Final = Path("/proc/loadavg")

# How soon to look whether it still has, in seconds.
_LOOK_AGAIN_S: Final = 0.25

# In the state directory; no cluster's name begins with a dot. A node's places are bytes of a file that are locked,
# first the node's and then each user's: the kernel unlocks them when their process ends, however it ends.
_FOLDER: Final = ".places"

# The descriptor of the file that a hook's shell has waited for and locked, with whose lock Python goes on.
LANE_FD: Final = 9

# All Epilogs of a node count as one user, whose uid nobody has.
_EPILOGS: Final = 1 << 32

Service = tuple[str, ...]


class Node(NamedTuple):
    """Where a user's Prolog takes places.

    Args:
        state_dir: the site's `--state-dir`.
        name: the node, as Slurm calls it; nodes may share the state directory.
        uid: the job's owner.
    """

    state_dir: Path
    name: str
    uid: int


class Kind(NamedTuple):
    """What places are for.

    Args:
        file: the first part of their file's name.
        of_user: how many one user has at a time.
        of_node: how many all users have; no fewer.
        what: those that have them, for messages.
    """

    file: str
    of_user: int
    of_node: int
    what: str


_WAITING: Final = "still waiting for an answer"
CALLS: Final = Kind("node", USERS, NODES, f"calls of {{whose}} jobs on node {{node}} were {_WAITING}")
LATE: Final = Kind("late", LATE_USERS, LATE_NODES, f"calls of {{whose}} jobs on node {{node}} were {_WAITING}")


def at_work(cpus: int) -> Kind:
    """Return the places of hooks at work, on a node with so many processors."""
    of_node = min(AT_WORK_PER_CPU * cpus, _MAX_AT_WORK)
    return Kind(
        "work", of_node - max(1, of_node // 4), of_node, "of {whose} jobs were starting on node {node} at that time"
    )


class Places:
    """The places that this process has on its node.

    Args:
        node: where; of one node there may be only one of these in a process, for each kind.
        kind: what they are for.
    """

    def __init__(self, node: Node, kind: Kind = CALLS) -> None:
        self._node = node
        self._kind = kind
        self._fd: int | None = None
        self._users: list[int] = []  # one more than `_nodes` while waiting for the node
        self._nodes: list[int] = []
        self.lack = ""

    def take(self) -> bool:
        """Take a place for one more call; where there is none, `lack` says why.

        Raises:
            RecordError: the file of the places cannot be used.
        """
        kind = self._kind
        if len(self._users) == len(self._nodes):
            place = self._lock_one((self._node.uid + 1) * _MAX_AT_WORK, kind.of_user)
            if place is None:
                self.lack = f"{kind.of_user} {kind.what.format(whose='your', node=self._node.name)}"
                return False
            self._users.append(place)
        place = self._lock_one(0, kind.of_node)
        if place is None:
            self.lack = f"{kind.of_node} {kind.what.format(whose='other', node=self._node.name)}"
            return False
        self._nodes.append(place)
        return True

    def give_back(self) -> None:
        """Give one place back."""
        for taken in (self._nodes, self._users):
            place = taken.pop()
            if self._fd is not None:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, place)

    def close(self) -> None:
        """Give all places back."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self._users, self._nodes = [], []

    def _lock_one(self, first: int, count: int) -> int | None:
        """Lock one of so many bytes; return which, None where other processes have all of them."""
        fd = self._open()
        begin = os.getpid()  # so that hooks do not all try the same ones
        for number in range(count):
            place = first + (begin + number) % count
            if place in self._users or place in self._nodes:
                continue  # locking it again would succeed
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise RecordError(f"cannot lock {self._path}: {error.strerror}") from error
            else:
                return place
        return None

    def _open(self) -> int:
        if self._fd is None:
            try:
                files.make_folder(self._path.parent, 0o700)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise RecordError(f"cannot open {self._path}: {error.strerror}") from error
        return self._fd

    @property
    def _path(self) -> Path:
        return self._node.state_dir / _FOLDER / f"{self._kind.file}-{self._node.name}"


class Work:
    """The place at work of this process, a hook. It is given back when the hook begins to wait for others for long."""

    def __init__(self) -> None:
        self._places: Places | None = None
        self._is_in_lane = False

    @property
    def is_at_work(self) -> bool:
        """Whether it has a place, or keeps others in their shells."""
        return self._places is not None or self._is_in_lane

    def begin(self, node: Node, kind: Kind) -> str:
        """Take a place; return what there is a lack of, empty where there was one.

        Raises:
            RecordError: the file of the places cannot be used.
        """
        places = Places(node, kind)
        if not places.take():
            places.close()
            return places.lack
        self._places = places
        return ""

    def begin_epilog(self, node: Node, kind: Kind) -> None:
        """Take a place if there is one: half of them at most are for Epilogs.

        Raises:
            RecordError: the file of the places cannot be used.
        """
        self.begin(node._replace(uid=_EPILOGS), kind._replace(of_user=max(1, kind.of_node // 2)))

    def stay_in_lane(self) -> None:
        """Keep those that wait behind this hook's shell waiting until it ends, or waits for others for long itself."""
        self._is_in_lane = True

    def make_room(self, since_s: float) -> float:
        """Give the place back where calls are slow; return how soon to look again, in seconds.

        Args:
            since_s: when the first of the calls began, by the monotonic clock.
        """
        waited_s = time.monotonic() - since_s
        if waited_s < SLOW_S:
            return SLOW_S - waited_s
        if waited_s >= BUSY_S or not _is_node_busy():
            self.end()
        return _LOOK_AGAIN_S

    def end(self) -> None:
        """Give the place back, if there is one, and let the next of the lane begin."""
        if self._places is not None:
            self._places.close()
        self._places = None
        if self._is_in_lane:
            leave_lane()
        self._is_in_lane = False


def _is_node_busy() -> bool:
    """Tell whether more processes want to run than the processors can, by proc_loadavg(5)."""
    try:
        running = int(_LOAD.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running > _BUSY_PER_CPU * len(os.sched_getaffinity(0))


def leave_lane() -> None:
    """Unlock the file that the shell has locked: the lock is of its descriptor, which this process shares."""
    with contextlib.suppress(OSError):
        fcntl.flock(LANE_FD, fcntl.LOCK_UN)
        os.close(LANE_FD)


# A process is one hook, or none: what begins to wait need not know whose work it does.
WORK: Final = Work()


class Turns:
    """Gives calls, or other work, their turns: not too much at a time, and each service its share of that.

    So one service that hangs leaves room for the others.

    Args:
        services: the service that each piece of work is for; a piece goes by its place in this list.
        at_once: how much may go on at a time.
        node: where each needs a place as well; None where none is needed.
    """

    def __init__(self, services: Sequence[Service], at_once: int, node: Node | None = None) -> None:
        self._services = services
        self._at_once = at_once
        self._places = Places(node) if node is not None else None
        self._waiting: dict[Service, deque[int]] = {}
        for number, service in enumerate(services):
            self._waiting.setdefault(service, deque()).append(number)
        self._running = dict.fromkeys(self._waiting, 0)
        self.needs_place = False

    def next(self) -> int | None:
        """Return which may begin now; None where none is left, or all have to wait.

        Raises:
            RecordError: the node's places cannot be used.
        """
        self.needs_place = False
        if sum(self._running.values()) >= self._at_once:
            return None
        # A service with nothing left to do leaves its share to the others.
        live = [service for service, waiting in self._waiting.items() if waiting or self._running[service]]
        are_many = len(self._services) > self._at_once
        share = max(1, self._at_once // max(1, len(live))) if are_many else self._at_once
        ready = [service for service in live if self._waiting[service] and self._running[service] < share]
        if not ready:
            return None
        if self._places is not None and not self._places.take():
            self.needs_place = True
            return None
        service = min(ready, key=lambda service: self._running[service])
        self._running[service] += 1
        return self._waiting[service].popleft()

    def end(self, number: int) -> None:
        """Note that one is over."""
        self._running[self._services[number]] -= 1
        if self._places is not None:
            self._places.give_back()

    def close(self) -> None:
        """Give all places back."""
        if self._places is not None:
            self._places.close()

    @property
    def waiting(self) -> list[int]:
        """Those that have had no turn yet."""
        return sorted(number for waiting in self._waiting.values() for number in waiting)

    @property
    def lack(self) -> str:
        """What the waiting ones have been waiting for."""
        if self._places is not None and self._places.lack:
            return self._places.lack
        return f"{self._at_once} other calls were still waiting for an answer"


def service_of(resource: str, environment: Mapping[str, str]) -> Service:
    """Return what stands for a QPU's service: the addresses that QRMI is called with.

    Args:
        resource: the resource's name.
        environment: of a call to it.
    """
    prefix = of_resource(resource, "")
    own = [(name.removeprefix(prefix), value) for name, value in environment.items() if name.startswith(prefix)]
    return tuple(sorted(value for name, value in own if is_endpoint(name)))
