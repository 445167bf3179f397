"""A job that is submitted from within a QPU job: the site's values are the site's, and the user's are the user's."""

from collections.abc import Mapping

import pytest

from slurm.jobs import environment_of
from slurm.polling import wait_for
from slurm.site import Site
from slurm.standins import Services
from standins.resources import resource

KIND = "iqm-server"  # its stand-in takes any token, so that old and new keys both work
QPU = "my_iqm_server"
TOKEN, ENDPOINT = f"{QPU}_QRMI_IQM_ISA_TOKEN", f"{QPU}_QRMI_IQM_ISA_ENDPOINT"

# How the inner job is submitted; it writes its environment to inner.txt. `srun` has to forget the outer job.
INNER = {
    "sbatch": "sbatch --wait --output=inner.txt inner.sh",
    "sbatch --export=NONE": "sbatch --wait --export=NONE --output=inner.txt inner.sh",
    "salloc": "salloc srun env >inner.txt",
    "srun": "env -u SLURM_JOB_ID -u SLURM_JOBID srun --output=inner.txt env",
}


def configure(site: Site, services: Services, host: str, token: str) -> None:
    """Write the site's config, with the stand-in under one of its host's names."""
    url = services.url.replace("127.0.0.1", host)
    entry = resource(KIND, f"{url}/online")
    entry["environment"]["QRMI_IQM_ISA_TOKEN"] = token
    site.config([entry])


def run(
    site: Site,
    services: Services,
    form: str,
    after: tuple[str, str],
    before: str = "",
    env: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Submit an inner job after the site's config has changed under the outer one.

    Args:
        site: the site.
        services: the stand-ins.
        form: a key of INNER.
        after: host and token of the changed config.
        before: what the outer script does before it submits.
        env: variables of the outer job.

    Returns:
        The inner job's environment, and the Authorization headers of its requests.
    """
    home = site.cluster.user.home
    (home / "inner.sh").write_text("#!/bin/sh\nenv\n")
    (home / "inner.txt").unlink(missing_ok=True)
    (home / "changed").unlink(missing_ok=True)
    configure(site, services, "127.0.0.1", "yesterdays-key")
    wait = "touch begun; while [ ! -e changed ]; do sleep 0.05; done; rm begun"
    script = f"#!/bin/bash\n{wait}\n{before}\n{INNER[form]}\n"
    job_id = site.cluster.sbatch(script, f"--qpu={QPU}", env=env)
    wait_for((home / "begun").exists, "the outer job to begin", 30)
    configure(site, services, *after)
    count = len(services.requests())
    (home / "changed").touch()
    info = site.cluster.wait_job(job_id, deadline_s=60)
    site.cluster.wait_nodes_idle()
    text = (home / "inner.txt").read_text()
    assert info.state == "COMPLETED", text + site.cluster.job_output(job_id)
    return environment_of(text), [request["headers"]["authorization"] for request in services.requests()[count:]]


@pytest.mark.parametrize("form", INNER)
def test_an_inner_job_has_the_sites_new_key_and_address(site: Site, services: Services, form: str) -> None:
    """The old ones are not taken for the user's, and are nowhere in the inner job's environment."""
    env, asked = run(site, services, form, ("localhost", "todays-key"))
    assert env[TOKEN] == "todays-key"
    assert "//localhost:" in env[ENDPOINT]
    assert set(asked[:1]) == {"Bearer todays-key"}
    assert "yesterdays-key" not in str(env)


@pytest.mark.parametrize("form", ["sbatch", "srun"])
def test_a_key_that_the_user_set_in_the_outer_job_is_theirs(site: Site, services: Services, form: str) -> None:
    """It is passed on, and used with the site's new address."""
    env, asked = run(site, services, form, ("localhost", "todays-key"), before=f"export {TOKEN}=the-users-own")
    assert env[TOKEN] == "the-users-own"
    assert "//localhost:" in env[ENDPOINT]
    assert set(asked[:1]) == {"Bearer the-users-own"}


def test_a_key_that_the_user_submitted_the_outer_job_with_is_theirs(site: Site, services: Services) -> None:
    """The inner job inherits it; unset in the outer job, it is gone, and so is Slurm's copy of it."""
    own = {TOKEN: "the-users-own"}
    env, _ = run(site, services, "sbatch", ("localhost", "todays-key"), env=own)
    assert env[TOKEN] == "the-users-own"
    assert "//localhost:" in env[ENDPOINT]
    env, asked = run(site, services, "sbatch", ("localhost", "todays-key"), env=own, before=f"unset {TOKEN}")
    assert env[TOKEN] == "todays-key"
    assert set(asked[:1]) == {"Bearer todays-key"}
    assert "the-users-own" not in str(env)


@pytest.mark.one_release
def test_the_sites_variables_of_yesterday_are_gone_from_an_inner_job(site: Site, services: Services) -> None:
    """`--env:` on the plugin's line has changed: an inner job without QPUs has none of it, one with them the new."""
    site.plugstack(site.plugstack_line("--env:QPU_PROXY=old", "--env:QPU_GONE=old", "--env:RUST_LOG=trace"))
    change = f"touch changed; while ! grep -q new {site.cluster.etc}/plugstack.conf; do sleep 0.05; done"
    option = "SLURM_SPANK__SLURM_SPANK_OPTION_spank_qrmi_qpu"
    home = site.cluster.user.home
    (home / "changed").unlink(missing_ok=True)
    (home / "inner.sh").write_text("#!/bin/sh\nenv\n")
    inner = f"env -u {option} sbatch --wait --output=none.txt inner.sh; sbatch --wait --output=one.txt inner.sh"
    configure(site, services, "127.0.0.1", "key")
    job_id = site.cluster.sbatch(f"#!/bin/bash\n{change}\n{inner}\n", f"--qpu={QPU}", env={"MINE": "old"})
    wait_for((home / "changed").exists, "the outer job to begin", 30)
    site.plugstack(site.plugstack_line("--env:QPU_PROXY=new", "--env:RUST_LOG=warn"))
    info = site.cluster.wait_job(job_id, deadline_s=60)
    site.cluster.wait_nodes_idle()
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    none, one = (environment_of((home / f"{name}.txt").read_text()) for name in ("none", "one"))
    assert not {name for name in none if "QRMI" in name or "QPU" in name or name == "RUST_LOG"}
    assert (one["QPU_PROXY"], one["RUST_LOG"]) == ("new", "warn")
    assert "QPU_GONE" not in one
    assert none["MINE"] == one["MINE"] == "old"
