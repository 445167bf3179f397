"""The report as a page: one HTML file with picture and tables, without scripts and without anything from elsewhere."""

import html
from collections.abc import Callable, Sequence
from typing import Final

from qrmi_slurm.report import timeline, usage
from qrmi_slurm.report.timeline import duration, moment, percent
from qrmi_slurm.report.usage import Acquisition, Row, Usage
from qrmi_slurm.text import printable

_STYLE: Final = """\
:root{color-scheme:light dark}
body{margin:0;background:#f6f7f9;color:#1c232b;
font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 20px 40px}
h1{font-size:24px;margin:0}h2{font-size:17px;margin:32px 0 10px}
p{margin:4px 0 0;color:#5c6773}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0}
.tile{background:#fff;border:1px solid #e1e5ea;border-radius:8px;padding:10px 18px;min-width:110px}
.tile b{display:block;font-size:22px;font-weight:600}.tile span{color:#5c6773;font-size:13px}
.picture{background:#fff;border:1px solid #e1e5ea;border-radius:8px;overflow-x:auto}
.picture svg{display:block;width:100%;min-width:760px;height:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;background:#fff;border:1px solid #e1e5ea;font-variant-numeric:tabular-nums}
th,td{padding:5px 16px;text-align:left;border-bottom:1px solid #e9ecf0;white-space:nowrap}
th{font-size:13px;color:#5c6773;font-weight:600}
td.n,th.n{text-align:right}tr.total td{font-weight:600;border-top:2px solid #a6afb9}
@media (prefers-color-scheme:dark){
body{background:#0c0f13;color:#e8ecf0}p,th,.tile span{color:#9aa6b2}
.tile,.picture,table{background:#12161b;border-color:#2b333c}
th,td{border-color:#242b33}tr.total td{border-top-color:#55606c}}
@media print{body{background:#fff}.tile,.picture,table{break-inside:avoid}}
"""


def render(found: Usage, keys: Sequence[str], who: Callable[[Acquisition], str]) -> str:
    """Return the page.

    Args:
        found: what to show.
        keys: of the table; where there are none, users.
        who: the text that stands for an acquisition's holder in the picture.
    """
    keys = list(keys) or ["user"]
    all_of_it = usage.total(found)
    title = f"QPUs from {moment(found.span.since_s)} to {moment(found.span.until_s)}"
    tiles = [
        (duration(all_of_it.held_s), "held"),
        (percent(all_of_it.utilisation or 0.0), "of what there was"),
        (str(len(all_of_it.jobs)), "jobs"),
        (str(all_of_it.acquired), "acquired"),
        (str(all_of_it.failed), "not acquired"),
    ]
    sections = [(keys, usage.group(found, keys))]
    if keys != ["qpu"]:
        sections.append((["qpu"], usage.group(found, ["qpu"])))
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{_text(title)}</h1>",
        "<p>Times are local to the machine that made this. Point at a bar for its job.</p>",
        '<div class="tiles">',
        *(f'<div class="tile"><b>{_text(value)}</b><span>{_text(what)}</span></div>' for value, what in tiles),
        '</div><div class="picture">',
        timeline.svg(found, who, is_alone=False).rstrip("\n"),
        "</div>",
        *(line for names, rows in sections for line in _table(names, rows, all_of_it)),
    ]
    if found.damaged:
        lines.append(f"<p>{found.damaged} lines of the ledger could not be read.</p>")
    return "\n".join([*lines, "</main></body></html>"]) + "\n"


def _table(keys: Sequence[str], rows: Sequence[Row], all_of_it: Row) -> list[str]:
    heading = [*(f"<th>{_text(key)}</th>" for key in keys)]
    heading += [f'<th class="n">{word}</th>' for word in ("jobs", "acquired", "not acquired", "held", "share", "used")]
    lines = [f"<h2>By {_text(' and '.join(keys))}</h2>", '<div class="scroll"><table>', f"<tr>{''.join(heading)}</tr>"]
    for row in [*rows, all_of_it]:
        is_total = row is all_of_it
        words = ["total", *[""] * (len(keys) - 1)] if is_total else [word or "(none)" for word in row.key]
        cells = [f"<td>{_text(word)}</td>" for word in words]
        share = row.held_s / all_of_it.held_s if all_of_it.held_s else 0.0
        used = "" if row.utilisation is None else percent(row.utilisation)
        numbers = (str(len(row.jobs)), str(row.acquired), str(row.failed), duration(row.held_s), percent(share), used)
        cells += [f'<td class="n">{_text(number)}</td>' for number in numbers]
        lines.append(f"<tr{' class=total' if is_total else ''}>{''.join(cells)}</tr>")
    return [*lines, "</table></div>"]


def _text(text: str) -> str:
    return html.escape(printable(text))
