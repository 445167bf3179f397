"""Options that several sub-commands share, and the exit statuses of all of them."""

from pathlib import Path
from typing import Annotated, Final

import typer

EXIT_PROBLEMS: Final = 1
EXIT_FAILED: Final = 2

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        show_default=False,
        help="Folder of the records. Default: set by the plugin's line in plugstack.conf.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
QrmiTimeout = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0.1, max=600, help="Time limit for QRMI to answer for all QPUs."),
]
