"""Where this installation is."""

from qrmi_slurm.checks.installation import Installation, this_one


def test_an_installation_is_known_by_the_path_it_was_called_by(tmp_path, monkeypatch):
    """A link to the current version stays in Slurm's settings, even if the command itself is a link."""
    real, link = tmp_path / "qrmi-slurm-1", tmp_path / "qrmi-slurm"
    (real / "bin").mkdir(parents=True)
    (real / "bin" / "qrmi-slurm").touch()
    link.symlink_to(real.name)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "qrmi-slurm").symlink_to("../qrmi-slurm/bin/qrmi-slurm")
    monkeypatch.setattr("sys.prefix", str(real))
    for called, prefix in (
        (real / "bin" / "qrmi-slurm", real),
        (link / "bin" / "qrmi-slurm", link),
        (tmp_path / "local" / "qrmi-slurm", link),
        (tmp_path / "elsewhere.py", real),
    ):
        monkeypatch.setattr("sys.argv", [str(called)])
        assert this_one() == Installation(prefix)
