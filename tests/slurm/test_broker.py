"""The credential broker: a QRMI program runs without the site's key in its job, and the broker ends with the job."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from slurm.aftermath import assert_next_job_is_fine, assert_nothing_left, assert_why, let_go, start_long_job
from slurm.emulator import API_KEY
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.processes import holds, living
from slurm.site import BIN, Site

# An ordinary QRMI program, unaware of the broker. It lingers so that its memory can be searched.
PROGRAM = """
import json, os, pathlib, time
from qiskit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from qrmi.primitives import QRMIService
from qrmi.primitives.ibm import SamplerV2, get_target
qpu = QRMIService().resources()[0]
passes = generate_preset_pass_manager(optimization_level=1, target=get_target(qpu))
bell = QuantumCircuit(2)
bell.h(0)
bell.cx(0, 1)
bell.measure_all()
for run in (1, 2):
    counts = SamplerV2(qpu, options={"default_shots": 500}).run([passes.run(bell)]).result()[0].data.meas.get_counts()
    print(f"ran-{run}", json.dumps(counts), flush=True)
    while run == 1 and not pathlib.Path("go-" + os.environ["SLURM_JOB_ID"]).exists():
        time.sleep(0.05)
"""

# What a hostile job may try with its own key. It prints the status of each answer.
ATTEMPTS = """
import http.client, json, os, sys, urllib.parse
endpoint = urllib.parse.urlsplit(os.environ["ibm_demo_QRMI_IBM_QCS_ENDPOINT"])
key = os.environ["ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"]
token = os.environ["ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"]
def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection(endpoint.netloc)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()
login = "grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey=" + key
form = {"Content-Type": "application/x-www-form-urlencoded"}
status, text = ask("POST", endpoint.path.replace("/api", "/iam") + "/identity/token", login, **form)
bearer = {"Authorization": "Bearer " + json.loads(text)["access_token"], "Content-Type": "application/json"}
job = {"program_id": "sampler", "backend": "ibm_demo", "session_id": token, "params": {"pubs": [], "version": 2}}
for method, path, body in json.loads(sys.argv[1]):
    body = None if body is None else json.dumps({**job, **body})
    status, text = ask(method, endpoint.path + path.replace("OWN", token), body, **bearer)
    print(method, path, status, "broker" if b"credential broker" in text else "service")
print("tried")
"""


def with_broker(site: Site, *names: str) -> None:
    """Write a config in which every resource has a broker."""
    site.config([{**site.emulator.resource(name), "slurm": {"broker": True}} for name in names or ("ibm_demo",)])


@pytest.fixture
def broker_site(site: Site) -> Site:
    """Return the shared site with a broker for ibm_demo."""
    with_broker(site)
    return site


def brokers(site: Site, job_id: int) -> list[int]:
    """Return the live brokers of a job on this site: processes with one of the state directory's files open."""
    found = []
    for process in living():
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            files = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        is_of_job = b"qrmi_slurm.broker" in words and f"job={job_id}".encode() in words
        if is_of_job and any(file.startswith(f"{site.state_dir}/") for file in files):
            found.append(process.pid)
    return found


def record_of_broker(site: Site, job_id: int) -> dict[str, Any]:
    found: dict[str, Any] = (site.record_of(job_id) or {})["broker"]
    return found


def assert_no_broker(site: Site, job_id: int) -> None:
    """Wait until the job has no broker. It ends by itself where its process could not be identified."""
    wait_for(lambda: not brokers(site, job_id), f"the broker of job {job_id} to end", 10)


def write_program(site: Site, name: str, text: str) -> str:
    """Put a program into the job user's home, and return the command that runs it."""
    path = site.cluster.user.home / name
    path.write_text(text)
    path.chmod(0o644)
    return f"{BIN}/python3 -P {path}"


def start_program(site: Site, *options: str) -> int:
    """Start the QRMI program as a job, and wait until its first circuit has run."""
    run = write_program(site, "program.py", PROGRAM)
    job_id = site.cluster.sbatch(f"#!/bin/sh\n{run} 2>&1\n", "--qpu=ibm_demo", "--nodelist=n1", *options)
    over = {"COMPLETED", "FAILED"}
    wait_for(
        lambda: "ran-1" in site.cluster.job_output(job_id) or site.cluster.job(job_id).state in over,
        f"job {job_id} to run a circuit",
        90,
    )
    assert "ran-1" in site.cluster.job_output(job_id), site.cluster.job_output(job_id)
    return job_id


def ask(port: int, path: str, *, uid: int, key: str = "") -> tuple[int, str]:
    """Ask a broker as some user; status 0 means that it did not answer."""
    code = (
        "import http.client, sys\n"
        "c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=10)\n"
        "form = 'grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey=' + sys.argv[3]\n"
        "c.request('POST', sys.argv[2], form, {'Content-Type': 'application/x-www-form-urlencoded'})\n"
        "a = c.getresponse(); print(a.status, a.read().decode())"
    )
    command = [sys.executable, "-I", "-c", code, str(port), path, key]
    done = subprocess.run(command, user=uid, group=uid, extra_groups=[], capture_output=True, text=True, cwd="/")
    status, _, text = done.stdout.partition(" ")
    return (int(status), text) if status else (0, done.stderr)


LOGIN = "/qrmi-slurm-broker/0/iam/identity/token"


@pytest.mark.one_release
def test_a_qrmi_program_runs_without_the_sites_key_in_its_job(broker_site: Site) -> None:
    """Not in the environment, arguments or memory of the user's processes; nor can the user read the broker's.

    Nor does it notice that its session ends before its first circuit, and again before its second one.
    """
    site = broker_site
    resource = site.emulator.resource("ibm_demo")
    resource["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = "2"
    site.config([{**resource, "slurm": {"broker": True}}])
    before = len(site.emulator.sessions())
    job_id = start_program(site)
    (broker,) = brokers(site, job_id)
    mine = [process.pid for process in living() if process.uid == site.cluster.user.uid]
    assert len(mine) >= 2
    key = next(iter(record_of_broker(site, job_id)["keys"].values())).encode()
    assert any(holds(pid, key) for pid in mine), "the search has to find the job's own key"
    assert not [pid for pid in mine if holds(pid, API_KEY.encode())]
    assert holds(broker, API_KEY.encode())
    for name in ("environ", "cmdline"):
        assert API_KEY.encode() not in Path(f"/proc/{broker}/{name}").read_bytes()
    status = Path(f"/proc/{broker}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "NoNewPrivs:\t1" in status
    for uid in (site.cluster.user.uid, 65534):
        code = f"open('/proc/{broker}/mem', 'rb')"
        done = subprocess.run([sys.executable, "-I", "-c", code], user=uid, capture_output=True, text=True, cwd="/")
        assert "PermissionError" in done.stderr
    wait_for(lambda: not site.emulator.open_sessions(), "the session to expire", 30)
    count = len(site.emulator.sessions())
    let_go(site, job_id)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert "ran-2" in site.cluster.job_output(job_id)
    assert len(site.emulator.sessions()) > count > before
    assert not brokers(site, job_id), "Epilog ends it"
    assert_nothing_left(site, job_id)
    assert API_KEY not in site.hooks_log()


def test_a_jobs_environment_points_to_its_broker(broker_site: Site) -> None:
    """Loopback addresses, a key of the job's own, and the instance, which is not secret."""
    site = broker_site
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--nodelist=n1")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    env = environment_of(site.cluster.job_output(job_id))
    assert API_KEY not in str(env)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/qrmi-slurm-broker/0/api", env["ibm_demo_QRMI_IBM_QCS_ENDPOINT"])
    assert env["ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"].startswith("qrmi-slurm-broker.")
    assert env["QRMI_SLURM_BROKER"] == "n1"
    assert "127.0.0.1" in env["NO_PROXY"].split(",")
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
def test_another_user_cannot_connect_even_with_the_key(broker_site: Site) -> None:
    """The kernel identifies the connecting process: root, nobody and other users are all rejected."""
    site = broker_site
    job_id = start_long_job(site)
    broker = record_of_broker(site, job_id)
    key = broker["keys"]["ibm_demo"]
    status, text = ask(broker["port"], LOGIN, uid=site.cluster.user.uid, key=key)
    assert status == 200 and "access_token" in text
    for uid in (0, 1, 65534):
        status, text = ask(broker["port"], LOGIN, uid=uid, key=key)
        assert (status, "another user's" in text) == (403, True), text
    assert ask(broker["port"], LOGIN, uid=site.cluster.user.uid, key="wrong")[0] == 400
    let_go(site, job_id)
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)


# Another user's program: opens so many connections and keeps them, or opens another for each that it loses.
CROWD = """
import select, socket, sys
port, count, comes_back = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "comes back"
poll, held = select.epoll(), {}
def join():
    end = socket.socket()
    end.setblocking(False)
    end.connect_ex(("127.0.0.1", port))
    held[end.fileno()] = end
    poll.register(end.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
for _ in range(count):
    join()
print("all here", flush=True)
while True:
    for fd, event in poll.poll() if comes_back else select.select([], [], []):
        held.pop(fd).close()
        join()
"""

# The job user's program: logs in so many times, each time with a new connection, and prints how long each login took.
LOG_IN = """
import http.client, sys, time
for _ in range(int(sys.argv[4])):
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    form = "grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey=" + sys.argv[3]
    connection.request("POST", sys.argv[2], form, {"Content-Type": "application/x-www-form-urlencoded"})
    assert connection.getresponse().status == 200
    connection.close()
    print(time.monotonic() - began)
"""


def login_seconds(site: Site, broker: Mapping[str, Any], times: int) -> list[float]:
    """Return how long each of several logins of the job's user took, in seconds, sorted."""
    command = [sys.executable, "-I", "-c", LOG_IN, str(broker["port"]), LOGIN, broker["keys"]["ibm_demo"], str(times)]
    done = site.cluster.run_as_user(command)
    assert done.returncode == 0, done.stderr
    return sorted(map(float, done.stdout.split()))


@contextlib.contextmanager
def crowd(site: Site, port: int, what: str) -> Iterator[None]:
    """Let the other user open 4000 connections to a broker, until the block ends."""
    _, other = site.cluster.users
    command = [sys.executable, "-I", "-c", CROWD, str(port), "4000", what]
    with site.cluster.popen_as_user(command, user=other) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "all here\n"
            yield
        finally:
            process.kill()


@pytest.mark.one_release
@pytest.mark.parametrize(("what", "most_s"), [("stays", 0.1), ("comes back", 3.0)])
def test_another_users_connections_do_not_slow_the_job_down(broker_site: Site, what: str, most_s: float) -> None:
    """A login takes as long as before; if they reconnect as fast as a processor can, as long as all of them queue."""
    site = broker_site
    job_id = start_long_job(site)
    broker = record_of_broker(site, job_id)
    alone_s = login_seconds(site, broker, 20)
    with crowd(site, broker["port"], what):
        crowded_s = login_seconds(site, broker, 20)
    figures = f"median {alone_s[10]:.4f} s alone, {crowded_s[10]:.4f} s crowded, at most {crowded_s[-1]:.3f} s"
    print(figures)
    assert crowded_s[10] < max(most_s, 20 * alone_s[10]), figures
    assert crowded_s[-1] < 5, figures
    let_go(site, job_id)
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
def test_requests_outside_this_job_get_403(broker_site: Site) -> None:
    """Another session, another user's job, another backend, however it is spelled."""
    site = broker_site
    site.config(
        [
            {**site.emulator.resource("ibm_demo"), "slurm": {"broker": True}},
            site.emulator.resource("ibm_second"),
        ]
    )
    other = start_long_job(site)
    session = record_session(site, other)
    run = write_program(site, "attempts.py", ATTEMPTS)
    tries = [
        ("GET", "/backends/ibm_demo/status", None, 200),
        ("GET", "/sessions/OWN", None, 200),
        ("GET", f"/sessions/{session}", None, 403),
        ("DELETE", f"/sessions/{session}/close", None, 403),
        ("DELETE", f"/sessions/OWN/../{session}/close", None, 403),
        ("DELETE", f"/sessions/OWN%2f..%2f{session}/close", None, 403),
        ("POST", "/sessions", {}, 403),
        ("GET", f"/jobs?session_id={session}", None, 403),
        ("GET", f"/jobs?session_id=OWN&session_id={session}", None, 400),
        ("GET", "/jobs?session_id=OWN", None, 200),
        ("GET", "/jobs/00000000-0000-0000-0000-000000000000", None, 403),
        ("POST", "/jobs", {"session_id": session}, 403),
        ("POST", "/jobs", {"backend": "ibm_second"}, 403),
        ("POST", "/jobs", {"start_session": True}, 403),
        ("GET", "/backends/ibm_second/status", None, 403),
        ("GET", "/usage", None, 403),
    ]
    arguments = json.dumps([item[:3] for item in tries])
    job_id = site.cluster.sbatch(f"#!/bin/sh\n{run} '{arguments}' 2>&1\n", "--qpu=ibm_demo", "--nodelist=n1")
    assert site.cluster.wait_job(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    lines = site.cluster.job_output(job_id).splitlines()
    assert lines[-1] == "tried", lines
    assert [line.rsplit(" ", 2)[-2] for line in lines[:-1]] == [str(item[3]) for item in tries], lines
    assert session in {found["id"] for found in site.emulator.open_sessions()}
    let_go(site, other)
    site.cluster.wait_job_over(other)
    assert_nothing_left(site, job_id)


# What a hostile task may send to its broker: the first line's method and target, more headers, what follows; with the
# job's own token. It prints the status of each answer, and how many answers there were.
RAW = """
import json, os, socket, sys, urllib.parse, urllib.request
endpoint = urllib.parse.urlsplit(os.environ["ibm_demo_QRMI_IBM_QCS_ENDPOINT"])
form = "grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey=" + os.environ["ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"]
login = endpoint._replace(path=endpoint.path.replace("/api", "/iam") + "/identity/token").geturl()
token = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(login, form.encode()))
head = f"Host: {endpoint.netloc}\\r\\nAuthorization: Bearer {token['access_token']}\\r\\n"
own = f"{endpoint.path}/backends/ibm_demo/status"
inner = f"GET {endpoint.path}/backends/ibm_demo/configuration HTTP/1.1\\r\\n{head}\\r\\n"
for first, headers, after in json.loads(sys.argv[1]):
    first = first.replace("OWN", own).replace("API", endpoint.path).replace("HOST", endpoint.netloc)
    after = after.replace("INNER", inner)
    headers = "".join(f"{header}\\r\\n" for header in headers)
    with socket.create_connection((endpoint.hostname, endpoint.port), 20) as connection:
        connection.sendall(f"{first} HTTP/1.1\\r\\n{head}{headers}\\r\\n{after}".encode())
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while piece := connection.recv(65536):
            got += piece
    print(got.split()[1].decode(), got.count(b"HTTP/1.1 "))
print("tried")
"""


@pytest.mark.one_release
def test_requests_that_no_service_may_see(broker_site: Site) -> None:
    """A proxy's, an upgrade's, ambiguous lengths, and second requests hidden behind first ones: one refusal each."""
    site = broker_site
    tries = [
        ("GET OWN", [], "", "200 1"),
        ("GET http://HOST/OWN", [], "", "400 1"),
        ("GET http://169.254.169.254/", [], "", "400 1"),
        ("GET //evil.invalid/OWN", [], "", "403 1"),
        ("CONNECT 127.0.0.1:22", [], "INNER", "400 1"),
        ("OPTIONS *", [], "", "400 1"),
        ("TRACE OWN", [], "", "403 1"),
        ("HEAD OWN", [], "", "403 1"),
        ("HEAD OWN", ["Content-Length: 500"], "INNER", "403 1"),
        ("GET OWN", ["Content-Length: 500"], "INNER" * 9, "403 1"),
        ("GET OWN", ["Connection: Upgrade", "Upgrade: h2c"], "", "200 1"),
        ("GET OWN", ["Host: evil.invalid"], "", "400 1"),
        ("GET OWN", ["Authorization: Bearer x"], "", "400 1"),
        ("POST API/jobs", ["Content-Length: 2", "Transfer-Encoding: chunked"], "0\r\n\r\nINNER", "400 1"),
        ("POST API/jobs", ["Transfer-Encoding: chunked", "Transfer-Encoding: x"], "0\r\n\r\nINNER", "501 1"),
        ("POST API/jobs", ["Content-Length: 2", "Content-Length: 3"], "{}INNER", "400 1"),
        ("POST API/jobs", ["Content-Length: +2"], "{}INNER", "400 1"),
        ("GET API/backends/ibm_demo/../../usage", [], "", "403 1"),
        ("GET API/backends/ibm_demo%2f..%2f..%2fusage/status", [], "", "403 1"),
    ]
    run = write_program(site, "raw.py", RAW)
    before = len(site.emulator.requests())
    arguments = json.dumps([item[:3] for item in tries])
    job_id = site.cluster.sbatch(f"#!/bin/sh\n{run} '{arguments}' 2>&1\n", "--qpu=ibm_demo", "--nodelist=n1")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert site.cluster.job_output(job_id).splitlines() == [*(item[3] for item in tries), "tried"]
    seen = [request["path"] for request in site.emulator.requests()[before:] if "/backends/" in request["path"]]
    assert [path for path in seen if path != "/backends/ibm_demo/status"] == []


def record_session(site: Site, job_id: int) -> str:
    """Return a job's session."""
    (entry,) = (site.record_of(job_id) or {})["entries"]
    return str(entry["token"])


def test_two_jobs_of_one_user_have_two_brokers(broker_site: Site) -> None:
    """Neither accepts the other's key, and each ends with its own job."""
    site = broker_site
    first, second = start_long_job(site), start_long_job(site)
    one, two = record_of_broker(site, first), record_of_broker(site, second)
    assert one["port"] != two["port"]
    uid = site.cluster.user.uid
    assert ask(two["port"], LOGIN, uid=uid, key=one["keys"]["ibm_demo"])[0] == 400
    let_go(site, first)
    site.cluster.wait_job(first)
    assert_no_broker(site, first)
    assert ask(two["port"], LOGIN, uid=uid, key=two["keys"]["ibm_demo"])[0] == 200
    let_go(site, second)
    site.cluster.wait_job_over(second)
    assert_no_broker(site, second)
    assert_nothing_left(site, second)


def test_a_canceled_job_leaves_no_broker(broker_site: Site) -> None:
    site = broker_site
    job_id = start_long_job(site)
    assert len(brokers(site, job_id)) == 1
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    assert not brokers(site, job_id)
    assert_nothing_left(site, job_id)


def test_a_requeued_jobs_second_run_gets_a_new_broker(broker_site: Site) -> None:
    """It has a new key, and the first broker is gone."""
    site = broker_site
    job_id = start_long_job(site, "--requeue", "--open-mode=append")
    before = record_of_broker(site, job_id)
    site.cluster.slurm("scontrol", "requeue", str(job_id))
    site.cluster.wait_job(job_id, {"PENDING"})
    site.cluster.wait_nodes_idle()
    assert_no_broker(site, job_id)
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "StartTime=now+2")
    wait_for(lambda: site.cluster.job_output(job_id).count("begun") == 2, "the second run", 30)
    after = record_of_broker(site, job_id)
    assert brokers(site, job_id) == [after["pid"]]
    assert after["keys"] != before["keys"]
    let_go(site, job_id)
    site.cluster.wait_job_over(job_id)
    assert_no_broker(site, job_id)
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
def test_a_killed_broker_is_restarted_by_recover(broker_site: Site) -> None:
    """`status` reports it. It comes back on its old port, still knows its key and its jobs, and the program goes on."""
    site = broker_site
    job_id = start_program(site, "--time=5")
    before = record_of_broker(site, job_id)
    os.kill(before["pid"], signal.SIGKILL)
    assert_no_broker(site, job_id)
    assert "its credential broker has ended" in site.command("status", "--json").stdout
    assert_why(site, job_id, "runs with ibm_demo until ", "its credential broker has ended")
    said = site.command("recover").stdout
    assert said == f"job {job_id} ibm_demo: restarted its credential broker (the job is running)\n"
    after = record_of_broker(site, job_id)
    assert (after["port"], after["keys"]) == (before["port"], before["keys"])
    assert brokers(site, job_id) == [after["pid"]]
    assert "its credential broker has ended" not in site.command("status", "--json").stdout
    let_go(site, job_id)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert "ran-2" in site.cluster.job_output(job_id)
    assert not brokers(site, job_id)
    assert_nothing_left(site, job_id)


def test_prolog_killed_as_soon_as_the_broker_runs(broker_site: Site) -> None:
    """The broker does not outlive the job, whether or not it was already recorded."""
    site = broker_site
    job_id = site.cluster.sbatch("#!/bin/sh\nsleep 60\n", "--qpu=ibm_demo", "--nodelist=n1")
    wait_for(lambda: brokers(site, job_id), "a broker", 20)
    for pid in site.hook_pids("prolog"):
        os.kill(pid, signal.SIGKILL)
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    site.recover("--now")
    assert_no_broker(site, job_id)
    assert_nothing_left(site, job_id)
    assert_next_job_is_fine(site)


@pytest.mark.one_release
def test_epilog_that_never_ran(broker_site: Site) -> None:
    """slurmd and all of the job's processes die at once: recover releases, and the broker ends with the record."""
    site = broker_site
    job_id = start_long_job(site, "--no-requeue")
    site.cluster.kill_slurmd("n1")
    mine = [process.pid for process in living() if process.uid == site.cluster.user.uid]
    for pid in mine:
        with contextlib.suppress(ProcessLookupError):  # it ended with another one
            os.kill(pid, signal.SIGKILL)
    site.change_record(job_id, lambda record: record.update(boot_id="an earlier boot"))
    (result,) = site.recover()["jobs"]
    assert result["outcome"] == "released"
    assert_no_broker(site, job_id)
    site.cluster.restart_slurmd("n1")
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)


def test_slurmd_restarted_under_a_job(broker_site: Site) -> None:
    """The broker is not a child of slurmd: the job goes on, and the new slurmd's Epilog ends the broker."""
    site = broker_site
    job_id = start_program(site)
    site.cluster.kill_slurmd("n1")
    site.cluster.restart_slurmd("n1")
    assert len(brokers(site, job_id)) == 1
    let_go(site, job_id)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert "ran-2" in site.cluster.job_output(job_id)
    assert_no_broker(site, job_id)
    assert_nothing_left(site, job_id)


def test_prolog_that_runs_again_restarts_a_dead_broker(broker_site: Site) -> None:
    """A restarted slurmd may run Prolog again during the job."""
    site = broker_site
    job_id = start_long_job(site)
    os.kill(record_of_broker(site, job_id)["pid"], signal.SIGKILL)
    assert_no_broker(site, job_id)
    assert site.run_hook("prolog", job_id).returncode == 0
    assert brokers(site, job_id) == [record_of_broker(site, job_id)["pid"]]
    let_go(site, job_id)
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)


def test_a_task_on_another_node_sees_the_brokers_node(broker_site: Site) -> None:
    """A task there sends the job's key to nobody, and QRMI's error would name the broker's node."""
    site = broker_site
    variables = ("ENDPOINT", "IAM_ENDPOINT")
    show = " ".join(f"$SLURMD_NODENAME=$ibm_demo_QRMI_IBM_QCS_{name}" for name in variables)
    script = f"#!/bin/sh\nsrun -N2 -n2 sh -c 'echo {show}'\nsrun -N2 -n2 --export=NONE /bin/sh -c 'echo {show}'\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo", "--nodelist=n1,n2", "-N2", "-n2")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    lines = sorted(site.cluster.job_output(job_id).splitlines())
    assert len(lines) == 4, lines
    for line in lines[:2]:
        assert re.fullmatch(r"(n1=http://127\.0\.0\.1:\d+/qrmi-slurm-broker/0/(api|iam) ?){2}", line), line
    for line in lines[2:]:
        assert line.startswith("n2=http://credential-broker-is-on-n1-only.invalid/qrmi-slurm-broker/0/api "), line
    assert_nothing_left(site, job_id)


def test_a_job_submitted_from_within_a_job_gets_its_own_broker(broker_site: Site) -> None:
    """Variables inherited from the surrounding job do not count as the user's own credentials."""
    site = broker_site
    (site.cluster.user.home / "inner.sh").write_text(PRINT_ENVIRONMENT)
    script = "#!/bin/sh\nsbatch --qpu=ibm_demo --output=inner.txt --wait inner.sh\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo", "--nodelist=n1")
    assert site.cluster.wait_job_over(job_id, deadline_s=60).state == "COMPLETED", site.cluster.job_output(job_id)
    inner = environment_of((site.cluster.user.home / "inner.txt").read_text())
    assert inner["QRMI_JOB_ID"] == str(job_id + 1)
    assert inner["ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"].startswith("qrmi-slurm-broker.")
    assert API_KEY not in str(inner)
    site.cluster.wait_nodes_idle()
    assert_no_broker(site, job_id)
    assert_no_broker(site, job_id + 1)
    assert site.emulator.open_sessions() == []


@pytest.mark.parametrize(
    ("own", "state"),
    [
        ({"ibm_demo_QRMI_IBM_QCS_SESSION_MODE": "batch"}, "COMPLETED"),
        ({"ibm_demo_QRMI_IBM_QCS_SERVICE_CRN": "crn:of-mine"}, "FAILED"),
        ({"ibm_demo_QRMI_IBM_QCS_ENDPOINT": "http://127.0.0.1:1"}, "FAILED"),
    ],
)
def test_what_users_may_set_with_the_sites_key(broker_site: Site, own: Mapping[str, str], state: str) -> None:
    """Only tunables of a session, nothing that would use the site's key for something else."""
    site = broker_site
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", env=dict(own))
    assert site.cluster.wait_job_over(job_id).state == state, site.cluster.job_output(job_id)
    assert API_KEY not in site.cluster.job_output(job_id)
    site.cluster.wait_nodes_idle()
    assert_no_broker(site, job_id)


def test_users_with_their_own_key_need_no_broker(broker_site: Site) -> None:
    """The key is their own, so their job may see it."""
    site = broker_site
    resource = {**site.emulator.resource("ibm_demo"), "slurm": {"broker": True}}
    own = {f"ibm_demo_{name}": value for name, value in resource["environment"].items()}
    resource["environment"] = {**resource["environment"], "QRMI_IBM_QCS_IAM_APIKEY": "another-key-of-the-site"}
    site.config([resource])
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", env=own)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    env = environment_of(site.cluster.job_output(job_id))
    assert env["ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"] == API_KEY
    assert "QRMI_SLURM_BROKER" not in env
    assert "another-key-of-the-site" not in str(env)


def test_a_type_without_broker_support_is_refused(site: Site) -> None:
    """The job does not get the key instead."""
    environment = {"QRMI_IQM_ISA_ENDPOINT": "http://127.0.0.1:1", "QRMI_IQM_ISA_TOKEN": "test-secret-of-iqm"}
    site.config([{"name": "ibm_demo", "type": "iqm-server", "environment": environment, "slurm": {"broker": True}}])
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert "iqm-server cannot have one" in site.cluster.job_output(job_id)
    assert "test-secret-of-iqm" not in site.cluster.job_output(job_id)


@pytest.mark.one_release
def test_the_brokers_port_was_taken_in_the_meantime(broker_site: Site) -> None:
    """recover reports it and leaves the job alone."""
    site = broker_site
    job_id = start_long_job(site)
    broker = record_of_broker(site, job_id)
    os.kill(broker["pid"], signal.SIGKILL)
    assert_no_broker(site, job_id)
    server = http.client.socket.socket()  # type: ignore[attr-defined]
    server.bind(("127.0.0.1", broker["port"]))
    server.listen()
    with server:
        (result,) = site.recover()["jobs"]
        assert result["is_left"] and "Address already in use" in result["outcome"]
    (result,) = site.recover()["jobs"]
    assert result["outcome"] == "restarted its credential broker"
    let_go(site, job_id)
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)
