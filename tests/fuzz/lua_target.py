"""The Lua module against Prolog's Python: sites of any names, types and rules, and selections of any terms.

The module must take what Prolog can serve, refuse the rest for the same reason, never fail, and never do more work than
slurmctld has time for.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests" / "unit")]

from lua import INTERPRETERS, Lua, Outcome  # noqa: E402

from qrmi_slurm.config import slurm_section  # noqa: E402
from qrmi_slurm.config.access import Person, refusal  # noqa: E402
from qrmi_slurm.config.config_file import Resource  # noqa: E402
from qrmi_slurm.config.resource_types import KNOWN, are_one  # noqa: E402
from qrmi_slurm.errors import SelectionError  # noqa: E402
from qrmi_slurm.scheduling import catalogue  # noqa: E402
from qrmi_slurm.scheduling.catalogue import Group  # noqa: E402
from qrmi_slurm.slurm import selection  # noqa: E402

MAX_INSTRUCTIONS = 75_000
JOBS = 200  # at each site
PARTS = [
    "ibm",
    "iqm",
    "_",
    "-",
    "a",
    "b",
    "q",
    "1",
    "2",
    "12",
    "é",
    "ü",
    "量",
    ":",
    "]",
    "!",
    "\\",
    '"',
    "%",
    ".",
    "^",
    "$",
]
WILD = ["*", "*", "?", "[ab]", "[!a-q]", "[]]", "[é-ü]", "[", "[1-", "**", "[%]", "[a-]"]
PREFIXES = ["", "", "", "any:", "least-busy:", "any: ", "Any:"]
ALICE = Person("alice", frozenset({"g", "h"}), "x", "p", None)


def name_of(rng: random.Random) -> str:
    return "".join(rng.choices(PARTS, k=rng.randrange(1, 6)))


def term_of(rng: random.Random, names: list[str]) -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(names)
    if kind < 0.5:
        return rng.choice(PREFIXES) + rng.choice([*KNOWN, "IBMDirectAccess", "new", ""])
    if kind < 0.55:
        return "".join(rng.choices([*PARTS, " ", "=", "\t", "x" * 100], k=rng.randrange(4)))
    return rng.choice(PREFIXES) + "".join(rng.choices(PARTS + WILD, k=rng.randrange(1, 8)))


def site_of(rng: random.Random) -> dict[str, Resource]:
    found = {}
    for _ in range(rng.choice((1, 3, 20, 300))):
        name = name_of(rng)
        slurm: dict[str, object] = {}
        if rng.random() < 0.2:
            slurm["license"] = rng.choice((None, "shared", "other"))
        if rng.random() < 0.3:
            slurm["allow"] = rng.choice(
                (
                    {"users": ["bob"]},
                    {"groups": ["g"]},
                    {"users": ["alice"], "accounts": ["y"]},
                    {"partitions": ["p", "q"]},
                )
            )
        section = slurm_section.parse(name, {"capacity": 99, **slurm})
        found[name] = Resource(name, rng.choice([*KNOWN, "New-Type"]), {}, rng.random() < 0.1, section)
    return found


def fault_of(site: dict[str, Resource], text: str, outcome: Outcome) -> str:
    """Return what is wrong with the module's answer; empty if nothing is."""
    sentence = outcome.user[-1].removeprefix("qrmi-slurm: ") if outcome.code and outcome.user else ""
    if outcome.log or outcome.instructions > MAX_INSTRUCTIONS:
        return "it failed, or did too much"
    if (outcome.code and not sentence) or "\n" in sentence:
        return "no sentence"
    try:
        terms = selection.parse(text)
    except SelectionError as error:
        # The module leaves characters that no name has to Prolog.
        is_limit = "ask for fewer" in error.message
        return "another limit" if is_limit != (sentence == error.message) else ""
    if "takes too long" in sentence or "more licenses than Slurm accepts" in sentence:
        return ""
    fitting = {}
    for term in terms:
        if term.text in site:
            fitting[term] = [site[term.text]]
        else:
            fitting[term] = [
                item
                for item in site.values()
                if term.is_choice and (term.fits_name(item.name) or (term.prefix and are_one(item.type, term.pattern)))
            ]
    unknown = [term.text for term in terms if not fitting[term]]
    if bool(unknown) != sentence.startswith("unknown QPU"):
        return f"unknown: {unknown}"
    denied = [
        term.text
        for term in terms
        if fitting[term] and all(refusal(item.name, item.slurm.access, ALICE) for item in fitting[term])
    ]
    if denied and not unknown and not outcome.code:
        return f"denied: {denied}"
    if "may not use" in sentence and not any(
        refusal(item.name, item.slurm.access, ALICE) for items in fitting.values() for item in items
    ):
        return "nothing is denied"
    if outcome.code or unknown or denied:
        return ""
    asked = [word.rpartition(":")[0] for word in outcome.job.get("licenses", "").split(",") if word]
    open_to_alice = [
        item for items in fitting.values() for item in items if not refusal(item.name, item.slurm.access, ALICE)
    ]
    wrong = set(asked) - {item.slurm.license for item in open_to_alice}
    return f"licenses of other QPUs: {wrong}" if wrong else ""


def main(seconds: float, seed: int) -> int:
    rng = random.Random(seed)  # noqa: S311
    count = taken = most = 0
    ends_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < ends_s:
            lua = Lua(rng.choice(INTERPRETERS), Path(folder))
            site = site_of(rng)
            notices = {name: "offline" for name in site if rng.random() < 0.2}
            groups = {"g": Group(7, ("bob", "alice")), "h": Group(8, ())}
            lua.catalogue.write_text(catalogue.render(site.values(), notices, groups.__getitem__))
            names = list(site)
            texts = []
            for _ in range(JOBS):
                terms = [term_of(rng, names) for _ in range(rng.choice((1, 1, 2, 3, 9, 70)))]
                texts.append(",".join(terms).replace("\0", "") or "*")
                lua.submit(texts[-1], account="x", partition="p")
            try:
                outcomes = lua.run()
            except (AssertionError, json.JSONDecodeError, subprocess.TimeoutExpired) as error:
                print(f"finding: {error} (seed {seed})")
                return 1
            for text, outcome in zip(texts, outcomes[-JOBS:], strict=True):
                count += 1
                taken += not outcome.code
                most = max(most, outcome.instructions if outcome is not outcomes[0] else 0)
                # The first job pays for reading the catalogue.
                fault = fault_of(site, text, outcome) if outcome is not outcomes[0] else ""
                if fault:
                    print(f"finding: {fault} (seed {seed})\n  --qpu={text!r}\n  {outcome}\n  {names}")
                    return 1
    print(f"{count} inputs, {taken} of them taken, {most} instructions at most, no finding (seed {seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10**6))
