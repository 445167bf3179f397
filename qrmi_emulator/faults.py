"""Faults: how the emulator misbehaves on demand, and which requests it is holding."""

import random
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qrmi_slurm.errors import QrmiSlurmError

KINDS = frozenset({"error", "delay", "hang", "hold", "reset", "close", "garbage", "drop_after"})
WHENS = frozenset({"before", "after"})
ANY_CALL = "*"

_CALL = re.compile(r"\*|[a-z][a-z_]{0,63}")
# The field that `KIND=VALUE` sets.
_VALUE_OF_KIND = {"error": "status", "delay": "delay_s", "drop_after": "bytes"}


class FaultError(QrmiSlurmError):
    """A fault's description is invalid."""


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """One way of misbehaving.

    Args:
        call: the call's name, or `*` for every call.
        kind: `error` answers with `status` and `body`; `delay` continues after `delay_s`; `hang` never answers;
            `hold` continues once released; `reset` resets the connection; `close` closes it without an answer;
            `garbage` answers 200 with text that is not JSON; `drop_after` closes the connection after `bytes`
            bytes of the answer's body.
        status: HTTP status of `error`.
        body: JSON body of `error`; None uses the service's error format.
        delay_s: seconds that `delay` waits.
        bytes: bytes of the body that `drop_after` sends.
        times: how many requests it hits; None hits all of them.
        probability: 0 to 1; whether it hits is drawn for each request.
        when: `before` the call takes effect, or `after`: the call is carried out and its answer is lost.
    """

    call: str
    kind: str
    status: int = 500
    body: Any = None
    delay_s: float = 0.0
    bytes: int = 1
    times: int | None = None
    probability: float = 1.0
    when: str = "before"


@dataclass(slots=True)
class Fault:
    """A fault that is set.

    Args:
        id: its name in the control interface.
        spec: what it does.
        hits: number of requests that it has hit.
        holding: number of requests that are waiting in it.
        released: set once they may continue.
    """

    id: str
    spec: FaultSpec
    hits: int = 0
    holding: int = 0
    released: threading.Event = field(default_factory=threading.Event)


def fault_from_json(data: object) -> FaultSpec:
    """Read a fault from the control interface's JSON.

    Raises:
        FaultError: a name is unknown, or a value is out of range.
    """
    if not isinstance(data, Mapping):
        raise FaultError("a fault must be a JSON object")
    fields = {"call", "kind", "status", "body", "delay_s", "bytes", "times", "probability", "when"}
    if unknown := sorted(str(key) for key in data if key not in fields):
        raise FaultError(f"a fault has no field {', '.join(unknown)}", f"fields: {', '.join(sorted(fields))}")
    call, kind, when = data.get("call", ANY_CALL), data.get("kind"), data.get("when", "before")
    if not isinstance(call, str) or not _CALL.fullmatch(call):
        raise FaultError(f"{call!r} is not the name of a call", "see GET /_emulator/calls, or *")
    if not isinstance(kind, str) or kind not in KINDS:
        raise FaultError(f"{kind!r} is not a kind of fault", f"kinds: {', '.join(sorted(KINDS))}")
    if not isinstance(when, str) or when not in WHENS:
        raise FaultError(f"{when!r} is not a value of when", "values: before, after")
    times = data.get("times")
    return FaultSpec(
        call=call,
        kind=kind,
        status=int(_number(data, "status", 500, 100, 599)),
        body=data.get("body"),
        delay_s=_number(data, "delay_s", 0.0, 0.0, 86400.0),
        bytes=int(_number(data, "bytes", 1, 0, 1 << 30)),
        times=None if times is None else int(_number(data, "times", 1, 1, 1 << 30)),
        probability=_number(data, "probability", 1.0, 0.0, 1.0),
        when=when,
    )


def parse_fault_spec(text: str) -> FaultSpec:
    """Read `CALL:KIND[=VALUE][,FIELD=VALUE...]`, for example `create_session:error=500,times=2`.

    Raises:
        FaultError: it has another form.
    """
    call, colon, rest = text.partition(":")
    words = rest.split(",")
    kind, has_value, value = words[0].partition("=")
    if not colon or (has_value and kind not in _VALUE_OF_KIND):
        raise FaultError(f"{text!r} is not a fault", "write CALL:KIND, for example create_session:error=500,times=2")
    data: dict[str, object] = {"call": call, "kind": kind}
    if has_value:
        data[_VALUE_OF_KIND[kind]] = _scalar(value)
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or name in data:
            raise FaultError(f"{word!r} in {text!r} is not FIELD=VALUE, or a duplicate")
        data[name] = value if name in {"body", "when"} else _scalar(value)
    return fault_from_json(data)


class FaultBook:
    """The faults that are set.

    Args:
        specs: those that are set from the start.
        draw: returns a random number in [0, 1), for `probability`.
    """

    def __init__(self, specs: Iterable[FaultSpec] = (), draw: Callable[[], float] = random.random) -> None:
        self._lock = threading.Lock()
        self._faults: dict[str, Fault] = {}
        self._draw = draw
        self._count = 0
        for spec in specs:
            self.add(spec)

    def add(self, spec: FaultSpec) -> Fault:
        """Set a fault and return it."""
        with self._lock:
            self._count += 1
            fault = Fault(f"f{self._count}", spec)
            self._faults[fault.id] = fault
            return fault

    def take(self, call: str) -> tuple[Fault, ...]:
        """Return the faults that hit a request: every delay, and the first of the others."""
        hits: list[Fault] = []
        with self._lock:
            for fault in self._faults.values():
                spec = fault.spec
                if spec.call not in {call, ANY_CALL} or (spec.times is not None and fault.hits >= spec.times):
                    continue
                if spec.kind != "delay" and any(hit.spec.kind != "delay" for hit in hits):
                    continue
                if spec.probability < 1.0 and self._draw() >= spec.probability:
                    continue
                fault.hits += 1
                hits.append(fault)
        return tuple(hits)

    def count_holding(self, fault: Fault, change: int) -> None:
        """Record that a request starts (+1) or stops (-1) waiting in a fault."""
        with self._lock:
            fault.holding += change

    def release(self, fault_id: str) -> bool:
        """Let the requests that a fault holds continue, and hold no more; return False if there is no such fault."""
        with self._lock:
            fault = self._faults.get(fault_id)
            if fault is not None:
                fault.released.set()
            return fault is not None

    def remove(self, fault_id: str | None = None) -> bool:
        """Remove one fault, or all, and let held requests continue; return False if there is no such fault."""
        with self._lock:
            if fault_id is not None and fault_id not in self._faults:
                return False
            for name in list(self._faults) if fault_id is None else [fault_id]:
                self._faults.pop(name).released.set()
            return True

    def to_json(self) -> list[dict[str, Any]]:
        """Return the faults as the control interface shows them."""
        with self._lock:
            return [fault_to_json(fault) for fault in self._faults.values()]


def fault_to_json(fault: Fault) -> dict[str, Any]:
    """Return one fault as the control interface shows it."""
    spec = fault.spec
    return {
        "id": fault.id,
        "call": spec.call,
        "kind": spec.kind,
        "status": spec.status,
        "body": spec.body,
        "delay_s": spec.delay_s,
        "bytes": spec.bytes,
        "times": spec.times,
        "probability": spec.probability,
        "when": spec.when,
        "hits": fault.hits,
        "holding": fault.holding,
    }


def _number(data: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise FaultError(f"{name} of a fault must be a number from {low:g} to {high:g}, not {value!r}")
    return value


def _scalar(text: str) -> int | float | str:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
