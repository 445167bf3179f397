"""The colors of a picture: who has which, and the style sheet that names them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from qrmi_slurm.report.acquisition import Acquisition
from qrmi_slurm.report.usage import Usage

# Fills on a light and on a dark background, for the holder with the most time first; the last is for all others.
_LIGHT: Final = ("2f6fb7", "b85c00", "17805a", "a8407f", "0b7d8f", "c03a3a", "6a4fc0", "6f7011", "6e7783")
_DARK: Final = ("7db1ec", "f0a65a", "63c79b", "e48fc4", "5cc6d4", "f18d8d", "b39cf2", "cccc69", "9aa4b0")
OTHERS: Final = len(_LIGHT) - 1


@dataclass(frozen=True, slots=True)
class Colors:
    """Who has which color.

    Args:
        who: returns the text that names an acquisition's holder.
        numbers: a color's number by that text, in their order; whoever is missing shares the color `OTHERS`.
    """

    who: Callable[[Acquisition], str]
    numbers: Mapping[str, int]

    def of(self, one: Acquisition) -> int:
        """Return the number of an acquisition's color."""
        return self.numbers.get(self.who(one), OTHERS)


def assign(usage: Usage, who: Callable[[Acquisition], str]) -> Colors:
    """Give colors to those who held QPUs the longest.

    Args:
        usage: what the picture shows.
        who: returns the text that names an acquisition's holder.
    """
    held: Counter[str] = Counter()
    for one in usage.acquisitions:
        held[who(one)] += 0 if one.acquired_s is None else max(1, round(one.held_s(usage.span)))
    names = [name for name, _ in sorted(held.items(), key=lambda item: (-item[1], item[0]))]
    return Colors(who, {name: number for number, name in enumerate(names[:OTHERS])})


def style_sheet() -> str:
    """Return the picture's style sheet, for light and dark backgrounds."""
    light = "".join(f".c{number}{{fill:#{fill}}}" for number, fill in enumerate(_LIGHT))
    dark = "".join(f".c{number}{{fill:#{fill}}}" for number, fill in enumerate(_DARK))
    return (
        ".timeline{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:12px}"
        ".ground{fill:#fff}.text{fill:#1c232b}.soft{fill:#5c6773}.title{font-size:18px;font-weight:600}"
        ".name{font-weight:600}.small{font-size:11px}.lane{fill:#f0f2f5}.grid{stroke:#d9dee4}.axis{stroke:#a6afb9}"
        ".on{fill:#fff;font-size:11px;pointer-events:none}.bad{fill:#c4262e}.meter{fill:#e3e7ec}.used{fill:#5c6773}"
        ".open{fill:none;stroke:#8a5a00;stroke-dasharray:3 2}.clear{fill:transparent}"
        f"{light}"
        "@media (prefers-color-scheme: dark){"
        ".ground{fill:#12161b}.text{fill:#e8ecf0}.soft{fill:#9aa6b2}.lane{fill:#1d232a}"
        ".grid{stroke:#2b333c}.axis{stroke:#55606c}.on{fill:#10151a}.bad{fill:#ff7b7b}.meter{fill:#2b333c}"
        f".used{{fill:#9aa6b2}}.open{{stroke:#e0b050}}{dark}"
        "}"
    )
