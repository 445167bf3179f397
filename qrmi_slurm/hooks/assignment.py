"""The assignment: which QPU each slot of a job tries next, in rounds, with the license that counts it."""

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING

from qrmi_slurm.deadline import MIN_CALL_S, Deadline
from qrmi_slurm.failure import Failure, Kind
from qrmi_slurm.hooks.choice import Candidate, Slot
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.hooks.job_licenses import JobLicenses, QpuSlots


class Assignment:
    """Gives slots their candidates: no QPU to two slots, and none twice.

    Args:
        slots: of the job, each with its candidates in the order in which to try them.
        licenses: the job's; None where Slurm counts none of these QPUs.
        ask_timeout_s: returns how long slurmctld may take for an answer now, in seconds.
        deadline: after it nothing more is tried: a choice may have hundreds of candidates.
        ask_holder: returns the job that still holds a QPU although its license is free; None where none does.
        ask_qpu_slots: returns how many slots the job has, by the license that counts them.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        licenses: "JobLicenses | None",
        ask_timeout_s: Callable[[], float],
        deadline: Deadline,
        ask_holder: Callable[[str, int], int | None],
        ask_qpu_slots: Callable[[str], "QpuSlots"],
    ) -> None:
        self._slots = slots
        self._ask_holder = ask_holder
        self._ask_qpu_slots = ask_qpu_slots
        self._qpu_slots: dict[str, int] = {}
        self._licenses = licenses
        self._ask_timeout_s = ask_timeout_s
        self._deadline = deadline
        # A QPU that the job asks for by name is not given to a choice.
        self._named = {item.name for slot in slots for item in slot.candidates if not slot.is_choice_of(item)}
        self._tried: set[str] = set()
        self._license_of: dict[Slot, str | None] = {}
        left = dict(licenses.held) if licenses is not None else {}
        for slot in sorted(slots, key=lambda slot: slot.is_open):
            license = next((item.license for item in slot.candidates if item.license and left.get(item.license)), None)
            self._license_of[slot] = license
            if license is not None:
                left[license] -= 1

    def next_round(self, acquired: Container[str]) -> list[tuple[Slot, Candidate]]:
        """Return what to acquire next: the next candidate of each slot that has no QPU yet.

        Args:
            acquired: the names of the QPUs that the job has.
        """
        chosen = []
        for slot in self._slots:
            if slot.chosen is None or slot.chosen.name not in acquired:
                slot.chosen = self._next(slot)
                if slot.chosen is not None:
                    chosen.append((slot, slot.chosen))
        return chosen

    def _next(self, slot: Slot) -> Candidate | None:
        while slot.candidates:
            item = slot.candidates.pop(0)
            if item.name in self._tried or (slot.is_choice_of(item) and item.name in self._named):
                continue
            if self._deadline.left_s < MIN_CALL_S:
                sentence = f"{printable(item.name)}: no time was left to try it"
                # The next start would get no further, unless one that was tried may be there by then.
                slot.failures.insert(0, item.failed(Kind.PERMANENT, sentence, was_called=False))
                return None
            self._tried.add(item.name)
            refusal = self._refusal_of_qpu_slots(item) or self._refusal(slot, item)
            if refusal is None:
                return item
            slot.failures.append(refusal)
        return None

    def _refusal_of_qpu_slots(self, item: Candidate) -> Failure | None:
        """Return why the job has no slots of a QPU; None where it has some, or the QPU has no slots."""
        license = item.resource.slurm.slots_license
        if license is None:
            return None
        from qrmi_slurm.hooks.job_licenses import JobLicenses

        told = self._ask_qpu_slots(license)
        if told.refusal:
            kind = Kind.LICENSE if JobLicenses.may_pass(told.refusal) else Kind.PERMANENT
            return item.failed(kind, told.refusal.format(printable(item.name)), was_called=False)
        self._qpu_slots[item.name] = told.number
        return None

    def _refusal(self, slot: Slot, item: Candidate) -> Failure | None:
        """Return why the job cannot have the license of a QPU; None where it has it now, or Slurm counts none."""
        if self._licenses is None:
            return None
        wanted = self._licenses.counted(item.license)
        name = printable(item.name)
        refusal = self._licenses.swap(self._license_of[slot], wanted, self._ask_timeout_s())
        if refusal:
            kind = Kind.LICENSE if self._licenses.may_pass(refusal) else Kind.PERMANENT
            return item.failed(kind, refusal.format(name), was_called=False)
        self._license_of[slot] = wanted
        holder = self._ask_holder(wanted, item.resource.slurm.capacity) if wanted is not None else None
        if holder is None:
            return None
        sentence = f"{name} is still held: the session of job {holder} is not proven closed"
        return item.failed(Kind.LICENSE, sentence, was_called=False)

    def qpu_slots_of(self, item: Candidate) -> int | None:
        """Return how many slots of a QPU the job has; None where the QPU has no slots."""
        return self._qpu_slots.get(item.name)

    def license_of(self, slot: Slot) -> str:
        """Return the license that the job has for a slot's QPU; empty where Slurm counts none."""
        return self._license_of[slot] or "" if self._licenses is not None else ""
