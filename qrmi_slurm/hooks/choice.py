"""The choice: which QPUs each term of `--qpu` may come to, and in which order they are tried."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from qrmi_slurm.calls.protocol import Availability
from qrmi_slurm.config import resource_types
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.credentials import Credentials
from qrmi_slurm.failure import Failure, Kind
from qrmi_slurm.slurm.selection import LEAST_BUSY, Term
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.config.access import Person

# How many of its failures a slot's problem tells: a pattern may fit all of a site's QPUs.
_MAX_TOLD: Final = 10

# Users cannot see the config.
FAULT: Final = "the site's configuration of it cannot be used; please tell an admin"

_NOTHING_BEHIND: Final = "QRMI found no online QPU behind it"


class Candidate(NamedTuple):
    """One QPU that a job may get.

    Args:
        resource: its entry in the config, under the name that QRMI acquires: a QPU that QRMI discovered behind a
            dynamic resource has its own.
        credentials: the variables to call QRMI with.
        installed_type: the type under which the installed QRMI serves it.
    """

    resource: Resource
    credentials: Credentials
    installed_type: str

    @property
    def name(self) -> str:
        """The name that QRMI acquires, and that tasks read."""
        return self.resource.name

    @property
    def license(self) -> str | None:
        """The license that counts its jobs; None where nothing counts them."""
        return self.resource.slurm.license

    def failed(self, kind: Kind, sentence: str, *, was_called: bool = True) -> Failure:
        """Return why the job cannot have it.

        Args:
            kind: of the failure.
            sentence: for the user.
            was_called: whether QRMI was called for it; a lack of time or of a license says nothing about the QPU.
        """
        is_users = self.credentials.are_users or bool(self.credentials.tuned)
        return Failure(kind, self.name, sentence, self.license or "", is_sites=was_called and not is_users)


class Slot:
    """A term of a job's `--qpu`, and the QPUs it may come to.

    Args:
        term: the term.
        candidates: the QPUs, the best first.
        failures: why others cannot be had.
    """

    def __init__(self, term: Term, candidates: list[Candidate], failures: list[Failure]) -> None:
        self.term = term
        self.candidates = candidates
        self.failures = failures
        self.chosen: Candidate | None = None
        # Whether QRMI has to be asked before it is known which QPU it gets.
        self.is_open = False

    def is_choice_of(self, item: Candidate) -> bool:
        """Tell whether the user or the config left open that it would be this QPU."""
        return item.name != self.term.text

    @property
    def problem(self) -> str:
        """Why it gets no QPU, in one sentence."""
        if not self.failures:
            return f"{printable(self.term.text)}: no other QPU is left for it"
        more = len(self.failures) - _MAX_TOLD
        told = "; ".join(failure.reason for failure in self.failures[:_MAX_TOLD])
        return told + (f"; and {more} more like it" if more > 0 else "")

    @property
    def awaited(self) -> Failure | None:
        """The first failure that may pass; None where it never gets a QPU."""
        return next((failure for failure in self.failures if failure.kind.is_transient), None)


class Fits(NamedTuple):
    """What a `--qpu` comes to at a site.

    Args:
        slots: the terms that fit something.
        unknown: the texts of those that fit nothing.
    """

    slots: tuple[Slot, ...]
    unknown: tuple[str, ...]


# Makes candidates of resources; of one that the job cannot have, it says why.
Prepare = Callable[[Sequence[Resource]], Mapping[str, Candidate | str]]


def find(
    terms: Sequence[Term], resources: Mapping[str, Resource], ask_person: Callable[[bool], "Person"], prepare: Prepare
) -> Fits:
    """Return what the terms of a `--qpu` may come to. Each resource is looked at once, however many terms fit it.

    Args:
        terms: the terms.
        resources: of the config.
        ask_person: returns whose job it is, with its QOS if the argument is true; called only where there is a rule.
        prepare: makes candidates of all the resources that fit and that the person may use; called once.
    """
    fitting_of: dict[Term, list[Resource]] = {}
    for term in terms:
        if term not in fitting_of:
            fitting_of[term] = [resources[term.text]] if term.text in resources else _fitting(term, resources.values())
    fitting = {resource.name: resource for found in fitting_of.values() for resource in found}
    refusals = {name: _refusal(resource, ask_person) for name, resource in fitting.items()}
    prepared = prepare([resource for name, resource in fitting.items() if not refusals[name]])
    slots, unknown = [], []
    for term in terms:
        names = [resource.name for resource in fitting_of[term]]
        if not names:
            unknown.append(term.text)
            continue
        slot = Slot(term, [], [])
        for name in names:
            if refusals[name]:
                slot.failures.append(Failure(Kind.PERMANENT, name, refusals[name]))
                continue
            item = prepared[name]
            if isinstance(item, str):
                slot.failures.append(Failure(Kind.PERMANENT, name, not_acquired(name, item)))
            else:
                slot.candidates.append(item)
        slot.is_open = len(slot.candidates) > 1 or any(item.resource.is_dynamic for item in slot.candidates)
        slots.append(slot)
    return Fits(tuple(slots), tuple(unknown))


def _refusal(resource: Resource, ask_person: Callable[[bool], "Person"]) -> str:
    rules = resource.slurm.access
    if rules.is_open or rules.is_faulty:  # of the latter `prepare` says why
        return ""
    from qrmi_slurm.config import access  # only where there is a rule

    return access.refusal(resource.name, rules, ask_person(rules.qos is not None))


def _fault(resource: Resource) -> str:
    return not_acquired(resource.name, FAULT) if resource.slurm.fault else ""


def _fitting(term: Term, resources: Iterable[Resource]) -> list[Resource]:
    if not term.is_choice:
        return []
    return [
        resource
        for resource in resources
        if term.fits_name(resource.name) or (term.prefix and resource_types.are_one(resource.type, term.pattern))
    ]


def not_acquired(name: str, reason: str) -> str:
    """Return the sentence for a QPU that was not acquired."""
    return f"{printable(name)} could not be acquired: {reason}"


def expand(
    slot: Slot,
    found: Mapping[str, Sequence[str] | Failure],
    resources: Mapping[str, Resource],
    ask_person: Callable[[bool], "Person"],
) -> None:
    """Replace dynamic resources among a slot's candidates by the QPUs that QRMI found behind them.

    For a QPU that has an entry of its own in the config, that entry's access rules and license hold as well.

    Args:
        slot: the slot.
        found: by the dynamic resource's name, the QPUs, or why QRMI did not say.
        resources: of the config.
        ask_person: as in `find`.
    """
    expanded: list[Candidate] = []
    for item in slot.candidates:
        behind = found.get(item.name)
        if not item.resource.is_dynamic:
            expanded.append(item)
        elif isinstance(behind, Failure):
            slot.failures.append(behind)
        elif not behind:
            slot.failures.append(item.failed(Kind.OFFLINE, not_acquired(item.name, _NOTHING_BEHIND)))
        else:
            for name in behind:
                own = resources.get(name)
                if own is not None and (refusal := _refusal(own, ask_person) or _fault(own)):
                    slot.failures.append(Failure(Kind.PERMANENT, name, refusal))
                    continue
                section = item.resource.slurm
                if own is not None:
                    section = section._replace(
                        license=own.slurm.license,
                        capacity=own.slurm.capacity,
                        slots_license=own.slurm.slots_license or section.slots_license,
                    )
                expanded.append(item._replace(resource=item.resource._replace(name=name, slurm=section)))
    slot.candidates = expanded


def rank(slot: Slot, told: Mapping[str, Availability | Failure], licensed: Collection[str]) -> None:
    """Put a slot's candidates into the order in which they are tried, and drop those that cannot be used now.

    Args:
        slot: the slot.
        told: by name, what QRMI said about each, or why it said nothing; one that was discovered behind a dynamic
            resource is online, and keeps the order in which it was found.
        licensed: the licenses that the job has.
    """
    ranked = []
    for place, item in enumerate(slot.candidates):
        said = told.get(item.name)
        if isinstance(said, Failure):
            slot.failures.append(said)
        elif said is not None and not said.is_usable:
            kind = Kind.PAUSED if said.state == Kind.PAUSED else Kind.OFFLINE
            slot.failures.append(item.failed(kind, not_acquired(item.name, said.sentence)))
        else:
            queue = said.pending_jobs if said is not None and said.pending_jobs is not None else float("inf")
            is_doubtful = said is not None and said.state == "unknown"
            is_counted_elsewhere = bool(licensed) and item.license not in licensed
            order = (queue, is_counted_elsewhere) if slot.term.prefix == LEAST_BUSY else (is_counted_elsewhere, queue)
            ranked.append(((is_doubtful, *order, place), item))
    slot.candidates = [item for _, item in sorted(ranked, key=lambda pair: pair[0])]
