"""QPUs as licenses: jobs wait for them in the queue, and what cannot run is refused at submission."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from slurm.attackers import Attacker
from slurm.cluster import ClusterError, ClusterOptions, JobInfo, User
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.release import LICENSES_IN_FIRST_COMPONENT
from slurm.site import LUA_DIR, Site, SiteOptions

# Jobs at a time: ibm_demo one, ibm_second two; ibm_guarded is for the first user in the partition quantum.
BACKENDS = ("ibm_demo", "ibm_second", "ibm_guarded")
LICENSES = {"qpu_ibm_demo": 1, "second": 2, "qpu_ibm_guarded": 1, "matlab": 4}

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scheduling.md"
FORGE_SELECTION = Path(__file__).with_name("forge_selection.c")

HOLD = """#!/bin/sh
echo begun
while [ ! -e {gate} ]; do sleep 0.05; done
"""


def slurm_keys(site: Site) -> Mapping[str, Mapping[str, Any]]:
    """Return the `slurm` section of each resource."""
    return {
        "ibm_second": {"license": "second", "capacity": 2},
        "ibm_guarded": {"allow": {"users": [site.cluster.user.name], "partitions": ["quantum"]}},
    }


def write_config(site: Site, **keys: Mapping[str, Any]) -> None:
    """Write the config and its catalogue, with changed `slurm` sections for some resources."""
    wanted = {**slurm_keys(site), **keys}
    site.config([{**site.emulator.resource(name), "slurm": dict(wanted.get(name, {}))} for name in BACKENDS])


@pytest.fixture(scope="module")
def licensed_site() -> Iterator[Site]:
    """Start a site of two nodes whose QPUs are licenses."""
    cluster = ClusterOptions(
        nodes=2,
        users=2,
        conf_lines=("PartitionName=quantum Nodes=ALL MaxTime=60", "PartitionName=debug Nodes=ALL DefaultTime=60"),
    )
    options = SiteOptions(cluster, dict.fromkeys(BACKENDS, "FakeSherbrooke"), licenses=LICENSES)
    with Site(options) as started:
        without = re.sub("^CliFilterPlugins=.*\n", "", started.cluster.slurm_conf.read_text(), flags=re.MULTILINE)
        (started.cluster.etc / "without_filter.conf").write_text(without)
        yield started


@pytest.fixture
def site(licensed_site: Site) -> Iterator[Site]:
    """Return the module's site without jobs. Jobs held by a test end with it."""
    write_config(licensed_site)
    gate(licensed_site).unlink(missing_ok=True)
    yield licensed_site
    for user in licensed_site.cluster.users:
        licensed_site.cluster.slurm("scancel", f"--user={user.name}")
    gate(licensed_site).touch()
    licensed_site.cluster.wait_nodes_idle()


def gate(site: Site) -> Path:
    """Return the file whose creation ends held jobs."""
    return site.cluster.folder / "gate"


def hold(site: Site, *options: str) -> int:
    """Submit a job that runs until the gate exists."""
    return site.cluster.sbatch(HOLD.format(gate=gate(site)), *options)


def pending(site: Site, job_id: int | str) -> JobInfo:
    """Wait until a job waits for licenses, without a node."""

    def waits() -> JobInfo | None:
        info = site.cluster.job(job_id)
        return info if (info.state, info.reason) == ("PENDING", "Licenses") else None

    info = wait_for(waits, f"job {job_id} to wait for licenses", 20, on_timeout=lambda: str(site.cluster.job(job_id)))
    assert info.nodes in ("", "(null)")
    return info


def licenses_of(site: Site, job_id: int | str) -> list[str]:
    """Return the licenses of each job or component, as scontrol shows them."""
    return [info.fields["Licenses"] for info in site.cluster.jobs(job_id)]


def counted(site: Site, license: str) -> dict[str, int]:
    """Return scontrol's numbers for a license."""
    shown = site.cluster.slurm("scontrol", "--oneliner", "show", "lic", license)
    return {name: int(count) for name, count in re.findall(r"(Total|Used|Free|Reserved)=(\d+)", shown)}


def refusal(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the standard error of a command that was refused."""
    assert done.returncode != 0, done.stdout
    return done.stderr


# --- waiting -----------------------------------------------------------------------------------------------


def test_the_second_job_on_a_qpu_waits_in_the_queue_without_a_node(site: Site) -> None:
    """It starts when the first has ended, and then has the QPU."""
    first = hold(site, "--qpu=ibm_demo")
    site.cluster.wait_job(first, {"RUNNING"})
    second = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo")
    pending(site, second)
    assert counted(site, "qpu_ibm_demo") == {"Total": 1, "Used": 1, "Free": 0, "Reserved": 0}
    assert len(site.emulator.open_sessions()) == 1
    other = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_second")
    assert site.cluster.wait_job(other).state == "COMPLETED", "another QPU is free all the while"
    gate(site).touch()
    assert site.cluster.wait_job_over(second).state == "COMPLETED"
    assert environment_of(site.cluster.job_output(second))["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    assert counted(site, "qpu_ibm_demo")["Used"] == 0


def test_a_capacity_of_two_runs_two(site: Site) -> None:
    """The third job waits."""
    jobs = [hold(site, "--qpu=ibm_second") for _ in range(2)]
    for job_id in jobs:
        site.cluster.wait_job(job_id, {"RUNNING"})
    third = hold(site, "--qpu=ibm_second")
    pending(site, third)
    assert counted(site, "second") == {"Total": 2, "Used": 2, "Free": 0, "Reserved": 0}
    assert licenses_of(site, third) == ["second:1"]


def test_srun_and_salloc_wait_as_well(site: Site) -> None:
    """Their jobs wait for the license, and run when it is free."""
    first = hold(site, "--qpu=ibm_demo")
    site.cluster.wait_job(first, {"RUNNING"})
    commands = (
        ["srun", "--job-name=s", "--qpu=ibm_demo", "true"],
        ["salloc", "--job-name=s", "--qpu=ibm_demo", "true"],
    )
    waiting = [site.cluster.popen_as_user(command) for command in commands]

    def ids() -> list[str]:
        found = site.cluster.slurm("squeue", "--noheader", "--name=s", "--format=%i").split()
        return found if len(found) == len(waiting) else []

    jobs = wait_for(ids, "both jobs to be in the queue", 20)
    for job_id in jobs:
        assert pending(site, job_id).fields["Licenses"] == "qpu_ibm_demo:1"
    gate(site).touch()
    for process in waiting:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err


def test_array_tasks_run_one_after_another(site: Site) -> None:
    """Each task needs the license, which only one at a time can hold."""
    job_id = hold(site, "--qpu=ibm_demo", "--array=1-3")
    wait_for(lambda: counted(site, "qpu_ibm_demo")["Used"] == 1, "the first task to run", 20)

    def states() -> list[str]:
        return [f"{info.state} {info.reason}" for info in site.cluster.jobs(job_id)]

    wait_for(lambda: sorted(states()) == ["PENDING Licenses", "RUNNING None"], "the others to wait", 20)
    gate(site).touch()
    wait_for(lambda: set(states()) == {"COMPLETED None"}, "all to be done", 60, on_timeout=lambda: str(states()))
    assert licenses_of(site, job_id) == ["qpu_ibm_demo:1"] * 3


def test_each_component_of_a_heterogeneous_job_has_its_own(site: Site) -> None:
    """A component without --qpu has none. From 23.02 on, Slurm takes licenses only from the first component."""
    if LICENSES_IN_FIRST_COMPONENT.is_here:
        words = ["sbatch", "--qpu=ibm_demo", ":", "--qpu=ibm_second", "--wrap=true"]
        sentence = "only in a heterogeneous job's first component: put --qpu=ibm_second there"
        assert sentence in refusal(site.cluster.run_as_user(words))
        one = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", ":", "-N1")
        assert licenses_of(site, one) == ["qpu_ibm_demo:1", "(null)"]
        return
    two = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", ":", "--qpu=ibm_second", "--licenses=matlab:2")
    one = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", ":", "-N1")
    assert licenses_of(site, two) == ["qpu_ibm_demo:1", "matlab:2,second:1"]
    assert licenses_of(site, one) == ["qpu_ibm_demo:1", "(null)"]
    site.cluster.slurm("scontrol", "update", f"JobId={one}", "Licenses=matlab:1")
    assert licenses_of(site, one) == ["matlab:1,qpu_ibm_demo:1", "matlab:1"]


def test_a_job_that_inherits_qpu_waits_like_any_other(site: Site) -> None:
    """An sbatch inside a QPU job inherits the outer job's --qpu."""
    outer = site.cluster.sbatch(f"#!/bin/sh\nsbatch --parsable {write_script(site)}\n", "--qpu=ibm_demo")
    site.cluster.wait_job_over(outer)
    inner = int(site.cluster.job_output(outer).strip())
    assert site.cluster.wait_job_over(inner).state == "COMPLETED"
    assert licenses_of(site, inner) == ["qpu_ibm_demo:1"]


def write_script(site: Site) -> Path:
    """Write a batch script that the user can read, and return its path."""
    path = site.cluster.user.home / "inner.sh"
    path.write_text(PRINT_ENVIRONMENT)
    path.chmod(0o644)
    return path


def test_a_choice_waits_for_one_qpu_and_lists_its_alternatives(site: Site) -> None:
    """The jobs get its QPUs in turn."""
    jobs = [site.cluster.sbatch(PRINT_ENVIRONMENT, "--hold", "--qpu=any:ibm_[ds]*") for _ in range(4)]
    found = [site.cluster.job(job_id).fields for job_id in jobs]
    assert sorted(fields["Licenses"] for fields in found) == ["qpu_ibm_demo:1"] * 2 + ["second:1"] * 2
    assert {fields["AdminComment"] for fields in found} == {"qrmi-slurm:any=qpu_ibm_demo|second"}


# --- refusals ----------------------------------------------------------------------------------------------


def commands(*options: str) -> list[list[str]]:
    """Return the three ways to submit."""
    return [["sbatch", *options, "--wrap=true"], ["srun", *options, "true"], ["salloc", *options, "true"]]


@pytest.mark.parametrize("has_filter", [True, False])
def test_unknown_names_are_refused_at_submission(site: Site, has_filter: bool) -> None:
    """By cli_filter on a login node that has it, which also looks for a similar name; otherwise by the controller."""
    env = {} if has_filter else {"SLURM_CONF": str(site.cluster.etc / "without_filter.conf")}
    before = site.cluster.slurm("squeue", "--noheader", "--states=all", "--format=%i")
    for command in commands("--qpu=ibm_dmeo"):
        said = refusal(site.cluster.run_as_user(command, env=env))
        known = "known QPUs: ibm_demo, ibm_second, ibm_guarded"
        meant = " (did you mean ibm_demo?)" if has_filter else ""
        assert f"qrmi-slurm: unknown QPU: ibm_dmeo{meant}; {known}\n" in said
        assert ("cli_filter plugin terminated with error" in said) is has_filter
    assert site.cluster.slurm("squeue", "--noheader", "--states=all", "--format=%i") == before


@pytest.mark.parametrize("has_filter", [True, False])
def test_a_user_without_access_is_told_so(site: Site, has_filter: bool) -> None:
    """At submission, by the config's access rules."""
    env = {} if has_filter else {"SLURM_CONF": str(site.cluster.etc / "without_filter.conf")}
    owner, other = site.cluster.users
    by_user = f"user {other.name} may not use ibm_guarded: it is for user {owner.name}\n"
    in_debug = "partition debug may not use ibm_guarded: it is for partition quantum\n"
    in_default = "partition main may not use ibm_guarded: it is for partition quantum\n"

    def said(user: User, command: list[str]) -> str:
        return refusal(site.cluster.run_as_user(command, user=user, env=env))

    for command in commands("--qpu=ibm_guarded", "--partition=quantum"):
        assert by_user in said(other, command)
    for command in commands("--qpu=ibm_guarded", "--partition=quantum,debug"):
        assert in_debug in said(owner, command)
    for command in commands("--qpu=ibm_guarded"):
        assert in_default in said(owner, command)
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_guarded", "--partition=quantum")
    assert licenses_of(site, job_id) == ["qpu_ibm_guarded:1"]


def test_access_rules_by_group_and_account(site: Site) -> None:
    """The catalogue lists the group's members; without accounting, the account is the one in --account."""
    owner, other = site.cluster.users
    write_config(site, ibm_demo={"allow": {"groups": [owner.name], "accounts": ["physics"]}})
    job_id = hold(site, "--qpu=ibm_demo", "--account=Physics")
    assert licenses_of(site, job_id) == ["qpu_ibm_demo:1"]
    command = ["sbatch", "--qpu=ibm_demo", "--account=physics", "--wrap=true"]
    said = refusal(site.cluster.run_as_user(command, user=other))
    assert f"user {other.name} may not use ibm_demo: it is for group {owner.name}\n" in said
    said = refusal(site.cluster.run_as_user(["sbatch", "--qpu=ibm_demo", "--wrap=true"]))
    assert "a job without an account may not use ibm_demo: it is for account physics\n" in said


def test_a_license_asked_for_by_hand_is_refused(site: Site) -> None:
    """It would keep the QPU from jobs that use it."""
    for command in commands("--licenses=matlab:1,qpu_ibm_demo:1"):
        said = refusal(site.cluster.run_as_user(command))
        assert "qpu_ibm_demo is the license of ibm_demo: ask for it with --qpu=ibm_demo, not with --licenses" in said
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--licenses=matlab:1")
    assert licenses_of(site, job_id) == ["matlab:1"]


def test_without_a_catalogue_jobs_with_qpu_are_refused_and_others_run(site: Site) -> None:
    """slurmctld's log tells the admin why."""
    path = site.cluster.etc / "qrmi_catalogue.lua"
    path.unlink()
    said = refusal(site.cluster.run_as_user(["sbatch", "--qpu=ibm_demo", "--wrap=true"]))
    assert "the site's list of QPUs cannot be used; please tell an admin\n" in said
    assert f"{path}: No such file or directory; run: qrmi-slurm catalogue" in site.cluster.log("slurmctld").read_text()
    plain = site.cluster.sbatch(PRINT_ENVIRONMENT, "--licenses=matlab")
    assert site.cluster.wait_job_over(plain).state == "COMPLETED"
    old = 'return { version = 1, qpus = {\n  { name = "ibm_demo", types = {"x"}, license = "l", capacity = 1 },\n} }\n'
    for content, reason in (("return {", "is not Lua"), (old, "was written by an older version of qrmi-slurm")):
        path.write_text(content)
        assert "cannot be used" in refusal(site.cluster.run_as_user(["sbatch", "--qpu=ibm_demo", "--wrap=true"]))
        assert f"{path} {reason}" in site.cluster.log("slurmctld").read_text()
    write_config(site)
    assert site.cluster.run_as_user(["sbatch", "--qpu=ibm_demo", "--wrap=true"]).returncode == 0


@pytest.fixture
def attacker(site: Site) -> Attacker:
    """Return a user who submits jobs with any SPANK environment."""
    return Attacker(site)


@pytest.mark.parametrize("entry", ["QRMI_QPU=ibm_demo", "SPANK_QRMI_QPU=ibm_demo", "SPANK_QRMI_QPU= ibm_demo,ibm_demo"])
def test_a_forged_selection_that_prolog_sees_has_its_license(site: Site, attacker: Attacker, entry: str) -> None:
    """Slurm makes Prolog's SPANK_QRMI_QPU from either of two names, so job_submit looks for both."""
    job_id = attacker.submit(entry)
    assert licenses_of(site, job_id) == ["qpu_ibm_demo:1"]
    count = len(site.emulator.sessions())
    site.cluster.wait_job_over(job_id)
    assert len(site.emulator.sessions()) <= count + 1


@pytest.mark.parametrize(
    "entry",
    ["SPANK_SPANK_QRMI_QPU=ibm_demo", "qrmi_qpu=ibm_demo", "QRMI_QPU =ibm_demo", " QRMI_QPU=ibm_demo", "QRMI_QPU"],
)
def test_prolog_sees_no_selection_that_job_submit_does_not_see(site: Site, attacker: Attacker, entry: str) -> None:
    """The job gets no license and no session."""
    count = len(site.emulator.sessions())
    job_id = attacker.submit(entry)
    assert licenses_of(site, job_id) == ["(null)"]
    site.cluster.wait_job_over(job_id)
    assert len(site.emulator.sessions()) == count
    assert "QRMI_JOB_QPU_RESOURCES" not in site.cluster.job_output(job_id)


def test_two_different_selections_are_refused(attacker: Attacker) -> None:
    """Prolog might see one of them and job_submit the other."""
    for entries in (["QRMI_QPU=ibm_demo", "SPANK_QRMI_QPU=ibm_second"], ["QRMI_QPU=ibm_demo", "QRMI_QPU="]):
        with pytest.raises(ClusterError, match="two different values of --qpu"):
            attacker.submit(*entries)


@pytest.mark.parametrize(
    ("selection", "what"),
    [
        (",".join(f"q{number}" for number in range(65)), "64 terms"),
        ("*,*,*,*,*,*,*,*,*", "8 choices (patterns, any: and least-busy:)"),
        ("ibm_demo," * 500, "4096 bytes"),
    ],
)
def test_more_than_a_job_may_ask_for_is_refused_by_sbatch_and_by_slurmctld(
    site: Site, attacker: Attacker, selection: str, what: str
) -> None:
    """In the same words, also for a program that submits without the plugin; Prolog has them as well."""
    sentence = f"--qpu has more than {what}; ask for fewer QPUs in one job"
    for command in commands(f"--qpu={selection}"):
        assert f"spank_qrmi: {sentence}.\n" in refusal(site.cluster.run_as_user(command))
    with pytest.raises(ClusterError, match=re.escape(f"qrmi-slurm: {sentence}")):
        attacker.submit(f"QRMI_QPU={selection}")


def test_a_step_gets_no_qpu_that_its_job_has_no_license_for(site: Site) -> None:
    """job_submit does not see a step's --qpu, and with PrologFlags=Alloc neither does Prolog."""
    count = len(site.emulator.sessions())
    job_id = site.cluster.sbatch("#!/bin/sh\nsrun --qpu=ibm_demo env\n")
    site.cluster.wait_job_over(job_id)
    assert len(site.emulator.sessions()) == count
    assert "ACQUISITION_TOKEN" not in site.cluster.job_output(job_id)


def forged_step(site: Site) -> "subprocess.CompletedProcess[str]":
    """In a job without --qpu, run a step whose srun loads the user's own plugin."""
    home = site.cluster.user.home
    plugin = site.cluster.folder / "forge_selection.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", plugin, FORGE_SELECTION], check=True)
    (home / "plugstack.conf").write_text(f"required {plugin}\n")
    conf = re.sub(
        "^PlugStackConfig=.*$",
        f"PlugStackConfig={home}/plugstack.conf",
        site.cluster.slurm_conf.read_text(),
        flags=re.MULTILINE,
    )
    (home / "slurm.conf").write_text(re.sub("^CliFilterPlugins=.*$", "", conf, flags=re.MULTILINE))
    for path in (home / "slurm.conf", home / "plugstack.conf"):
        path.chmod(0o644)
    return site.cluster.run_as_user(["salloc", "srun", "env"], env={"SLURM_CONF": f"{home}/slurm.conf"})


def test_a_forged_step_gets_no_qpu_with_prolog_at_the_jobs_start(site: Site) -> None:
    """Prolog has already run, for the selection that the controller has seen."""
    count = len(site.emulator.sessions())
    done = forged_step(site)
    assert done.returncode == 0, done.stderr
    assert "ACQUISITION_TOKEN" not in done.stdout
    assert len(site.emulator.sessions()) == count


def test_a_forged_step_gets_a_qpu_without_prologflags_alloc() -> None:
    """The reason for the doctor's error: at a job's first step, slurmd takes the SPANK environment from srun."""
    cluster = ClusterOptions(nodes=1, settings={"PrologFlags": "Serial"})
    with Site(SiteOptions(cluster, licenses={"qpu_ibm_demo": 1})) as site:
        forged_step(site)
        assert len(site.emulator.sessions()) == 1
        assert licenses_of(site, 1) == ["qpu_ibm_demo:1"], (
            "Prolog has taken it; a job for a QPU in use fails, not waits"
        )
        said = json.loads(site.command("doctor", "--json").stdout)["lines"]
        assert [line["level"] for line in said if line["name"] == "licenses"] == ["error"]


# --- setting it up ------------------------------------------------------------------------------------------


def test_the_printed_lines_match_this_site(site: Site) -> None:
    """The site's other licenses are kept, and all named files exist."""
    done = site.command("slurm-conf")
    part = done.stdout.partition(f"### {site.cluster.slurm_conf}: add, to let jobs wait for QPUs (optional)\n")[2]
    lines = [line for line in part.splitlines() if not line.startswith("# ")]
    assert lines == [
        "Licenses=matlab:4,qpu_ibm_demo:1,second:2,qpu_ibm_guarded:1",
        "JobSubmitPlugins=lua",
        "CliFilterPlugins=lua",
    ]
    assert "# with slurmdbd: AccountingStorageTRES=license/qpu_ibm_demo,license/second,license/qpu_ibm_guarded" in part
    for path in re.findall(r"install -m 0644 (\S+) ", part):
        assert Path(path).read_text().count(f'"{LUA_DIR}/?.lua;') == 1


def test_the_doctor_checks_licenses(site: Site) -> None:
    """An outdated catalogue is a warning; a license missing in Slurm is an error."""
    names = ("JobSubmitPlugins", "catalogue", "Licenses", "licenses")

    def levels() -> dict[str, str]:
        said = json.loads(site.command("doctor", "--json").stdout)["lines"]
        return {line["name"]: line["level"] for line in said if line["name"] in names}

    assert levels() == {"JobSubmitPlugins": "ok", "catalogue": "ok", "Licenses": "ok"}
    config = json.loads(site.config_path.read_text())
    config["resources"].append({**config["resources"][0], "name": "ibm_new"})
    site.config_path.write_text(json.dumps(config))
    assert levels() == {"JobSubmitPlugins": "ok", "catalogue": "warning", "Licenses": "error"}


def test_a_sites_own_job_submit_needs_the_lines_of_the_page(site: Site) -> None:
    """The lines in docs/scheduling.md; slurmctld reads the new file at the next job."""
    path = site.cluster.etc / "job_submit.lua"
    ready = path.read_text()
    [block] = re.findall(r"^```lua\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    own = block.replace("/opt/qrmi-slurm/lib/lua", str(LUA_DIR))
    own = own.replace("    -- what your site does\n", '    job_desc.comment = "seen by the site"\n')
    mtime = path.stat().st_mtime
    try:
        for text in (own, ready):
            path.write_text(text)
            mtime += 2  # slurmctld compares seconds
            os.utime(path, (mtime, mtime))
            job_id = hold(site, "--hold", "--qpu=ibm_demo", "--licenses=matlab")
            assert licenses_of(site, job_id) == ["matlab,qpu_ibm_demo:1"]
            assert ("Comment" in site.cluster.job(job_id).fields) is (text is own)
            env = {"SLURM_CONF": str(site.cluster.etc / "without_filter.conf")}
            done = site.cluster.run_as_user(["sbatch", "--qpu=ibm_dmeo", "--wrap=true"], env=env)
            assert "unknown QPU: ibm_dmeo" in refusal(done)
    finally:
        path.write_text(ready)


# --- changes -----------------------------------------------------------------------------------------------


def test_a_waiting_job_keeps_its_qpus_licenses_through_changes(site: Site) -> None:
    """Whether its user or root changes them."""
    job_id = str(hold(site, "--hold", "--qpu=ibm_demo"))
    for licenses, expected in (
        ("matlab:2", "matlab:2,qpu_ibm_demo:1"),
        ("", "qpu_ibm_demo:1"),
        ("second", "qpu_ibm_demo:1"),
    ):
        update = ["scontrol", "update", f"JobId={job_id}", f"Licenses={licenses}"]
        assert site.cluster.run_as_user(update).returncode == 0
        assert licenses_of(site, job_id) == [expected]
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "Licenses=matlab:1")
    assert licenses_of(site, job_id) == ["matlab:1,qpu_ibm_demo:1"]
    plain = str(hold(site, "--hold"))
    done = site.cluster.run_as_user(["scontrol", "update", f"JobId={plain}", "Licenses=qpu_ibm_demo"])
    assert "Invalid license specification" in refusal(done)
    assert licenses_of(site, plain) == ["(null)"]


def test_a_waiting_choice_can_be_moved_to_another_of_its_licenses(site: Site) -> None:
    """As `qrmi-slurm sensor` does, but not to a license outside the choice."""
    job_id = str(hold(site, "--hold", "--qpu=any:ibm_[ds]*"))
    for license in ("second:1", "qpu_ibm_demo:1", "second:1"):
        site.cluster.slurm("scontrol", "update", f"JobId={job_id}", f"Licenses={license}")
        assert licenses_of(site, job_id) == [license]
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "Licenses=qpu_ibm_guarded:1")
    assert licenses_of(site, job_id) == ["second:1"]
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "AdminComment=seen")
    assert site.cluster.job(job_id).fields["AdminComment"] == "seen qrmi-slurm:any=qpu_ibm_demo|second"


def test_a_running_job_keeps_its_license_unless_an_operator_changes_it(site: Site) -> None:
    """Slurm alone would let the user drop it, and a second job would get the QPU."""
    job_id = hold(site, "--qpu=ibm_demo")
    site.cluster.wait_job(job_id, {"RUNNING"})
    done = site.cluster.run_as_user(["scontrol", "update", f"JobId={job_id}", "Licenses="])
    assert "Invalid license specification" in refusal(done)
    assert counted(site, "qpu_ibm_demo")["Used"] == 1
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "Licenses=second:1")
    assert licenses_of(site, job_id) == ["second:1"]
    assert (counted(site, "qpu_ibm_demo")["Used"], counted(site, "second")["Used"]) == (0, 1)


def test_a_change_must_fit_the_access_rules(site: Site) -> None:
    """A waiting job cannot move to a partition in which its QPU is not allowed."""
    job_id = hold(site, "--hold", "--qpu=ibm_guarded", "--partition=quantum")
    done = site.cluster.run_as_user(["scontrol", "update", f"JobId={job_id}", "Partition=debug"])
    assert "Access/permission denied" in refusal(done)
    assert site.cluster.job(job_id).fields["Partition"] == "quantum"
    free = hold(site, "--hold", "--qpu=ibm_demo", "--partition=quantum")

    def is_moved() -> bool:
        # Without accounting, slurmctld may answer with an errno that something else has left behind, here EAGAIN:
        # _update_job() in src/slurmctld/job_mgr.c takes errno's value where a job has no association.
        done = site.cluster.run_as_user(["scontrol", "update", f"JobId={free}", "Partition=debug"])
        assert done.returncode == 0 or "Resource temporarily unavailable" in done.stderr, done.stderr
        return done.returncode == 0

    wait_for(is_moved, "the job's other partition", 10.0)
    assert site.cluster.job(free).fields["Partition"] == "debug"
    assert licenses_of(site, free) == ["qpu_ibm_demo:1"]


# --- reservations ------------------------------------------------------------------------------------------


def test_only_jobs_in_the_reservation_get_a_reserved_license(site: Site) -> None:
    """Slurm's own way to keep a QPU for a class: other jobs wait, and start when it is over."""
    owner, other = site.cluster.users
    create = ["ReservationName=class", "StartTime=now", "Duration=60", f"Users={owner.name}", "Flags=LICENSE_ONLY"]
    site.cluster.slurm("scontrol", "create", "reservation", *create, "Licenses=qpu_ibm_demo:1")
    try:
        assert counted(site, "qpu_ibm_demo")["Reserved"] == 1
        outside = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", user=other)
        pending(site, outside)
        inside = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--reservation=class", user=owner)
        assert site.cluster.wait_job(inside).state == "COMPLETED"
        assert site.cluster.job(outside).state == "PENDING"
    finally:
        site.cluster.slurm("scontrol", "delete", "ReservationName=class")
    assert site.cluster.wait_job_over(outside).state == "COMPLETED"


def test_a_partitions_limits_apply_to_a_qpu_restricted_to_it(site: Site) -> None:
    """The partition's MaxTime applies to each job on the QPU."""
    job_id = hold(site, "--qpu=ibm_guarded", "--partition=quantum", "--time=90")
    info = wait_for(lambda: _with_reason(site, job_id), "the job to be held back", 20)
    assert info.reason in ("PartitionTimeLimit", "PartitionConfig")


def _with_reason(site: Site, job_id: int) -> JobInfo | None:
    info = site.cluster.job(job_id)
    return info if info.reason not in ("None", "Priority") else None
