"""The page: a report as one HTML file with picture and tables, which has no scripts and loads nothing."""

import html
from collections.abc import Callable, Sequence
from typing import Final

from qrmi_slurm.report import timeline, usage
from qrmi_slurm.report.acquisition import Acquisition
from qrmi_slurm.report.figures import duration, moment, percent
from qrmi_slurm.report.usage import Row, Usage
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
        keys: those of the first table; without any, it is by user.
        who: returns the text that names an acquisition's holder in the picture.
    """
    keys = list(keys) or ["user"]
    total = usage.total(found)
    title = _text(f"QPUs from {moment(found.span.since_s)} to {moment(found.span.until_s)}")
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{title}</h1>",
        "<p>Times are local to the machine that made this page. Point at a bar to see its job.</p>",
        '<div class="tiles">',
        *_tiles(total),
        '</div><div class="picture">',
        timeline.svg(found, who, is_alone=False).rstrip("\n"),
        "</div>",
    ]
    for of_table in [keys] if keys == ["qpu"] else [keys, ["qpu"]]:
        lines += _table(of_table, usage.group(found, of_table), total)
    if found.damaged:
        lines.append(f"<p>{found.damaged} lines of the ledger could not be read.</p>")
    return "\n".join([*lines, "</main></body></html>"]) + "\n"


def _tiles(total: Row) -> list[str]:
    tiles = [
        (duration(total.held_s), "held"),
        (percent(total.utilization or 0.0), "of capacity"),
        (str(len(total.jobs)), "jobs"),
        (str(total.acquired), "acquired"),
        (str(total.failed), "not acquired"),
    ]
    return [f'<div class="tile"><b>{_text(value)}</b><span>{_text(what)}</span></div>' for value, what in tiles]


def _table(keys: Sequence[str], rows: Sequence[Row], total: Row) -> list[str]:
    heading = [*(f"<th>{_text(key)}</th>" for key in keys)]
    heading += [f'<th class="n">{word}</th>' for word in ("jobs", "acquired", "not acquired", "held", "share", "used")]
    return [
        f"<h2>By {_text(' and '.join(keys))}</h2>",
        '<div class="scroll"><table>',
        f"<tr>{''.join(heading)}</tr>",
        *(f"<tr>{_cells([word or '(none)' for word in row.key], row, total)}</tr>" for row in rows),
        f"<tr class=total>{_cells(['total', *[''] * (len(keys) - 1)], total, total)}</tr>",
        "</table></div>",
    ]


def _cells(words: Sequence[str], row: Row, total: Row) -> str:
    share = row.held_s / total.held_s if total.held_s else 0.0
    used = "" if row.utilization is None else percent(row.utilization)
    numbers = (str(len(row.jobs)), str(row.acquired), str(row.failed), duration(row.held_s), percent(share), used)
    cells = [f"<td>{_text(word)}</td>" for word in words]
    cells += [f'<td class="n">{_text(number)}</td>' for number in numbers]
    return "".join(cells)


def _text(text: str) -> str:
    return html.escape(printable(text))
