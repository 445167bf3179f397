"""The choice: which QPUs a job's terms may come to, and in which order they are tried."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from qrmi_slurm.calls.backend import Availability
from qrmi_slurm.config import resource_types
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.credentials import Credentials
from qrmi_slurm.errors import BackendError, CredentialsError, ExportsError
from qrmi_slurm.slurm.selection import LEAST_BUSY, Term
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.config.access import Person

# How many names a sentence lists; a site may have thousands.
_MAX_NAMES: Final = 20

_NOTHING_BEHIND: Final = "QRMI finds no online QPU behind it"


class Candidate(NamedTuple):
    """One QPU that a job may get.

    Args:
        resource: what the config says of it, under the name that QRMI acquires.
        credentials: the variables to call QRMI with.
        installed_type: the type under which the installed QRMI serves it.
        entry_name: its entry's name in the config; another than the resource's for a QPU that QRMI has found behind it.
    """

    resource: Resource
    credentials: Credentials
    installed_type: str
    entry_name: str

    @property
    def name(self) -> str:
        """The name that QRMI acquires, and that tasks read."""
        return self.resource.name

    @property
    def license(self) -> str | None:
        """The license that counts its jobs."""
        return self.resource._replace(name=self.entry_name).sharing.license


class Slot:
    """A term of a job's selection, and what it may come to.

    Args:
        term: the term.
        candidates: what it may come to, the best first.
        failures: why others cannot be had, a sentence each.
    """

    def __init__(self, term: Term, candidates: list[Candidate], failures: list[str]) -> None:
        self.term = term
        self.candidates = candidates
        self.failures = failures
        self.chosen: Candidate | None = None
        # Whether QRMI has to be asked before it is known what the term comes to.
        self.is_open = False

    def is_choice_of(self, item: Candidate) -> bool:
        """Tell whether it was left open, by the user or by the config, that it would be this QPU."""
        return item.name != self.term.text

    @property
    def problem(self) -> str:
        """Why nothing of it can be had, in one sentence."""
        return "; ".join(self.failures) or f"{printable(self.term.text)}: no other QPU is left for it"


class Fits(NamedTuple):
    """What a selection comes to in a config.

    Args:
        slots: the terms that fit something.
        unknown: the texts of those that fit nothing.
    """

    slots: tuple[Slot, ...]
    unknown: tuple[str, ...]


Prepare = Callable[[Resource], Candidate]


def find(
    terms: Sequence[Term], resources: Mapping[str, Resource], ask_person: Callable[[bool], "Person"], prepare: Prepare
) -> Fits:
    """Return what the terms of a selection may come to.

    Args:
        terms: of the selection.
        resources: of the config.
        ask_person: says who asks, with the job's QOS where it is told to; asked only where there is a rule.
        prepare: makes a candidate of a resource; raises where the job cannot have it.
    """
    slots, unknown = [], []
    for term in terms:
        fitting = [resources[term.text]] if term.text in resources else _fitting(term, resources.values())
        if not fitting:
            unknown.append(term.text)
            continue
        slot = Slot(term, [], [])
        for resource in fitting:
            if refusal := _refusal(resource, ask_person):
                slot.failures.append(refusal)
                continue
            try:
                slot.candidates.append(prepare(resource))
            except (CredentialsError, BackendError, ExportsError) as error:
                slot.failures.append(not_acquired(resource.name, error.message))
        slot.is_open = len(slot.candidates) > 1 or any(item.resource.is_dynamic for item in slot.candidates)
        slots.append(slot)
    return Fits(tuple(slots), tuple(unknown))


def _refusal(resource: Resource, ask_person: Callable[[bool], "Person"]) -> str:
    rules = resource.sharing.access
    if rules.is_open:
        return ""
    from qrmi_slurm.config import access  # only where there is a rule

    return access.refusal(resource.name, rules, ask_person(rules.qos is not None))


def _fitting(term: Term, resources: Iterable[Resource]) -> list[Resource]:
    if not term.is_choice:
        return []
    return [
        resource
        for resource in resources
        if term.fits_name(resource.name) or (term.prefix and resource_types.are_one(resource.type, term.pattern))
    ]


def not_acquired(name: str, reason: str) -> str:
    """Return the sentence for a QPU that could not be had."""
    return f"{printable(name)} could not be acquired: {reason}"


def not_known(unknown: Sequence[str], known: Iterable[str], ignored: str = "") -> str:
    """Return the sentence for terms that no QPU of the site fits.

    Args:
        unknown: the texts of these terms.
        known: the names of the site's QPUs.
        ignored: what follows "unknown QPU" if the job runs with its other QPUs; the known ones are not listed then.
    """
    from qrmi_slurm.text import near_match  # only where somebody has mistyped

    names = list(known)
    words = []
    for text in unknown:
        near = near_match(text, names)
        words.append(printable(text) + (f" (did you mean {printable(near)}?)" if near else ""))
    what = "unknown QPU" if len(unknown) == 1 else "unknown QPUs"
    sentence = f"{what}{ignored}: {', '.join(words)}"
    if ignored or not names:
        return sentence
    more = f", ... and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{sentence}; known QPUs: {', '.join(map(printable, names[:_MAX_NAMES]))}{more}"


def expand(slot: Slot, found: Mapping[str, Sequence[str] | str]) -> None:
    """Put the QPUs that QRMI has found behind dynamic resources into their places.

    Args:
        slot: the slot.
        found: by the dynamic resource's name, what is behind it, or why that is not known.
    """
    expanded: list[Candidate] = []
    for item in slot.candidates:
        behind = found.get(item.name)
        if not item.resource.is_dynamic:
            expanded.append(item)
        elif behind is None or isinstance(behind, str) or not behind:
            slot.failures.append(not_acquired(item.name, behind if isinstance(behind, str) else _NOTHING_BEHIND))
        else:
            expanded += [item._replace(resource=item.resource._replace(name=name)) for name in behind]
    slot.candidates = expanded


def rank(slot: Slot, told: Mapping[str, Availability | str], licenses: Mapping[str, int]) -> None:
    """Put a slot's candidates into the order in which they are tried, and drop those that cannot be used now.

    Args:
        slot: the slot.
        told: what QRMI said of each by name, or why it said nothing; one that was found behind a dynamic resource is
            online, and stays in the order in which it was found.
        licenses: the job's.
    """
    ranked = []
    for place, item in enumerate(slot.candidates):
        said = told.get(item.name)
        if isinstance(said, str):
            slot.failures.append(not_acquired(item.name, said))
        elif said is not None and said.state not in ("online", "unknown"):
            why = f": {said.reason}" if said.reason else ""
            slot.failures.append(not_acquired(item.name, f"the QPU is {said.state}{why}"))
        else:
            queue = said.pending_jobs if said is not None and said.pending_jobs is not None else float("inf")
            is_doubtful = said is not None and said.state == "unknown"
            is_counted_elsewhere = bool(licenses) and item.license not in licenses
            order = (queue, is_counted_elsewhere) if slot.term.prefix == LEAST_BUSY else (is_counted_elsewhere, queue)
            ranked.append(((is_doubtful, *order, place), item))
    slot.candidates = [item for _, item in sorted(ranked, key=lambda pair: pair[0])]
