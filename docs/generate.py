"""Writes the generated pages: docs/environment.md, docs/support.md, docs/validate-config.md and docs/man/.

generate.py            write them
generate.py --check    name the pages that are out of date, and exit 1 if there are any
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from made import environment, man, support, validate_config
from made.text import CHECKOUT, DOCS


def pages() -> dict[Path, str]:
    """Return every generated page by its path."""
    found = {
        DOCS / "environment.md": environment.page(),
        DOCS / "support.md": support.page(),
        DOCS / "validate-config.md": validate_config.page(),
    }
    return found | {DOCS / "man" / name: text for name, text in man.pages().items()}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with `--check` compare them.

    Returns:
        The exit status: 0, or 1 if a page is out of date.
    """
    if "--check" not in arguments:
        support.take_over()
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path.relative_to(CHECKOUT)} is out of date: run make docs", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path])
            print(f"wrote {path.relative_to(CHECKOUT)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
