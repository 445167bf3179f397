"""Which folder or file on the way to a path keeps users out."""

import tempfile
from pathlib import Path

import pytest

from qrmi_slurm.checks.user_access import blocking_users


@pytest.fixture
def open_folder():
    """A folder that others may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("target", ["b/c/../file", "{base}/b/file"], ids=["relative", "absolute"])
def test_the_first_closed_folder_or_file_is_found(open_folder, target):
    """Links are followed, relative and absolute ones."""
    file = open_folder / "b" / "file"
    (open_folder / "b" / "c").mkdir(parents=True)
    file.write_text("")
    link = open_folder / "link"
    link.symlink_to(target.format(base=open_folder))
    for folder in (open_folder / "b", open_folder / "b" / "c"):
        folder.chmod(0o711)
    file.chmod(0o755)
    assert blocking_users(link) is None
    file.chmod(0o750)
    assert blocking_users(link) == file
    (open_folder / "b").chmod(0o700)
    assert blocking_users(link) == open_folder / "b"


def test_a_loop_of_links_ends(open_folder):
    """Following links that point to each other ends after a bounded number of steps."""
    (open_folder / "a").symlink_to("b")
    (open_folder / "b").symlink_to("a")
    assert blocking_users(open_folder / "a" / "file") is None
