"""Whether QRMI raises, panics, exits or crashes: it costs one QPU of one job and no node."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.aftermath import SCRIPT, assert_next_job_is_fine, assert_why, finish_with
from slurm.site import BIN, Site

FAKES = Path(__file__).resolve().parents[1] / "fakes"
WORDS = ["raise", "panic", "exit", "segv"]


@pytest.fixture
def fake_qrmi(site: Site) -> Iterator[Path]:
    """Run Prolog and Epilog with a QRMI that does what the config says; return the file of its calls."""
    venv = site.cluster.folder / "venv-with-fake-qrmi"
    packages = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if not venv.exists():
        packages.mkdir(parents=True)
        (venv / "bin").mkdir()
        (venv / "bin" / "python3").symlink_to((BIN / "python3").resolve())
        (venv / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
        installed = [path for path in map(Path, sys.path) if path.name == "site-packages"]
        (packages / "fakes.pth").write_text("".join(f"{path}\n" for path in (FAKES, *installed)))
        for hook in ("prolog", "epilog"):
            (venv / "bin" / f"qrmi-slurm-{hook}").write_bytes((BIN / f"qrmi-slurm-{hook}").read_bytes())
            (venv / "bin" / f"qrmi-slurm-{hook}").chmod(0o755)
    calls = site.cluster.folder / "fake-qrmi-calls"
    calls.unlink(missing_ok=True)
    with site.hooks_of(venv / "bin"):
        yield calls


def configure(site: Site, calls: Path, **words: str) -> None:
    """Tell the fake what to do: `acquire="panic"`."""
    resource: dict[str, Any] = site.emulator.resource("ibm_demo")
    told = {f"QRMI_FAKE_{action.upper()}": word for action, word in words.items()}
    resource["environment"] |= {"QRMI_FAKE_CALLS": str(calls), **told}
    site.config([resource])


@pytest.mark.parametrize("word", WORDS)
def test_while_acquiring(site: Site, fake_qrmi: Path, word: str) -> None:
    """The job fails with the reason, and the node is free."""
    configure(site, fake_qrmi, acquire=word)
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert f"job {job_id} has no QPU: ibm_demo could not be acquired: " in site.cluster.job_output(job_id)
    assert_why(site, job_id, "failed: ibm_demo could not be acquired: ")
    assert fake_qrmi.read_text().splitlines() == ["acquire ibm_demo "]


@pytest.mark.parametrize("word", WORDS)
def test_while_releasing(site: Site, fake_qrmi: Path, word: str) -> None:
    """The token stays recorded, and is released as soon as QRMI can do it."""
    configure(site, fake_qrmi, release=word)
    job_id = finish_with(site, lambda _job_id: None)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    (entry,) = (site.record_of(job_id) or {})["entries"]
    assert (entry["state"], entry["token"]) == ("releasing", "session-ibm_demo")
    heal = {"ibm_demo_QRMI_FAKE_RELEASE": ""}
    site.change_record(job_id, lambda record: record["entries"][0]["environment"].update(heal))
    python = fake_qrmi.parent / "venv-with-fake-qrmi" / "bin" / "python3"
    recover: list[str | Path] = [python, "-I", "-m", "qrmi_slurm.command.cli", "recover", "--now"]
    done = subprocess.run(recover, env=site.root_env("n1"), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"job {job_id} ibm_demo: released (its release is pending)\n"
    assert not site.folder_of(job_id).exists()
    assert fake_qrmi.read_text().splitlines()[1:] == ["release ibm_demo session-ibm_demo"] * 2


@pytest.mark.parametrize("how", ["raise ImportError('libquantum.so: cannot open')", "import os; os._exit(9)"])
def test_a_qrmi_that_cannot_be_imported(site: Site, fake_qrmi: Path, how: str) -> None:
    """The job fails, the node stays in service, and with another QRMI everything works again."""
    broken = fake_qrmi.parent / "broken" / "qrmi"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "__init__.py").write_text(f"{how}\n")
    (pth,) = (fake_qrmi.parent / "venv-with-fake-qrmi").glob("lib/*/site-packages/fakes.pth")
    sound = pth.read_text()
    pth.write_text(f"{broken.parent}\n{sound}")
    try:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        assert site.cluster.wait_job_over(job_id).state == "FAILED"
        assert f"job {job_id} has no QPU" in site.cluster.job_output(job_id)
        cause = "QRMI cannot be imported" if "raise" in how else "Prolog on n1 ended with exit status 9"
        assert_why(site, job_id, f"failed: {cause}")
    finally:
        pth.write_text(sound)
    assert not os.path.lexists(site.folder_of(job_id))
    configure(site, fake_qrmi)
    assert_next_job_is_fine(site)


@pytest.mark.parametrize(("whose", "most"), [("the site's", 4000), ("the user's", 6 * 100)])
def test_a_flood_of_log_records(site: Site, fake_qrmi: Path, whose: str, most: int) -> None:
    """Each call says 100,000 lines; a hook logs so many of all of them, and fewer of what may be the user's own."""
    one: dict[str, Any] = site.emulator.resource("ibm_demo")
    told = one["environment"] | {"QRMI_FAKE_ACQUIRE": "lines"}
    names = [f"q{number}" for number in range(6)]
    own = {f"{name}_{variable}": value for name in names for variable, value in told.items()}
    is_site = whose == "the site's"
    site.config([{**one, "name": name, "environment": told if is_site else {}} for name in names])
    job_id = site.cluster.sbatch(SCRIPT, f"--qpu={','.join(names)}", "--nodelist=n1", env={} if is_site else own)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    said = [line for line in site.hooks_log().splitlines() if f"qrmi: job={job_id} " in line]
    assert sum("says=x" in line for line in said) == most
    assert sum("more than 4000 lines: cut here" in line for line in said) == is_site
