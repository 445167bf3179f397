"""The real QRMI through a credential broker, as a job's program uses it: unmodified, and without the site's key."""

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from qrmi_slurm.broker import launch, process
from qrmi_slurm.broker import variables as broker_variables
from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret
from qrmi_slurm.state import record
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State
from setup import environment
from standins import quantum_system

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_qrmi_against_emulator import ACQUIRE, CRN, KEY, NAME, PRIMITIVES, emulator, python  # noqa: F401

# The time the broker may add to a request.
MOST_ADDED_MS = 2.0


@pytest.fixture
def started(tmp_path):
    """Return a function that starts a broker for one QPU, and returns the job's environment."""
    brokers = []

    def start(name, type_name, variables, token):
        site = {f"{name}_{variable}": value for variable, value in variables.items()}
        entry = Entry(name, type_name, site, state=State.ACQUIRED, token=Secret(token))
        folder = JobFolder(tmp_path / "state", "test", 12 + len(brokers))
        folder.create()
        current = Record("test", folder.job_id, os.getuid(), "n1", record.boot_id(), 0, time.time(), (entry,))
        current = launch.start(folder, current, [name], time.time() + 600, 20, HookLog("prolog", 12, echo=False))
        brokers.append(current.broker)
        seen = broker_variables.for_job(current.broker, name, type_name, variables)
        job = {f"{name}_{variable}": value for variable, value in seen.items()}
        job |= {f"{name}_QRMI_JOB_ACQUISITION_TOKEN": token, f"{name}_QRMI_JOB_TIMEOUT_SECONDS": "60"}
        return job | {"QRMI_JOB_QPU_RESOURCES": name, "QRMI_JOB_QPU_TYPES": type_name}

    yield start
    for broker in brokers:
        process.kill(broker)
        os.waitpid(broker.pid, 0)


@pytest.fixture
def job(emulator, started):  # noqa: F811
    """Return the environment of a job with a session at the emulator, behind a broker."""
    site = emulator.environment()
    token = python(ACQUIRE + "print(json.dumps(qpu.acquire()))", site)
    own = f"{NAME}_"
    variables = {name.removeprefix(own): value for name, value in site.items() if name.startswith(own)}
    seen = started(NAME, "ibm-quantum-compute-service", variables, token)
    assert KEY not in str(seen) and emulator.url not in str(seen)
    return seen


def test_primitives_run_unmodified(job):
    """A Bell pair by sampler and estimator, with logs and status; the program is unaware of the broker."""
    program = (
        PRIMITIVES
        + """
bell = QuantumCircuit(2)
bell.h(0)
bell.cx(0, 1)
isa = passes.run(bell)
observable = SparsePauliOp.from_list([("ZZ", 1), ("XX", 1)]).apply_layout(isa.layout)
estimate = EstimatorV2(qpu).run([(isa, [observable, observable])])
bell.measure_all()
sample = SamplerV2(qpu, options={"default_shots": 1000}).run([passes.run(bell)])
counts = sample.result()[0].data.meas.get_counts()
evs = estimate.result()[0].data.evs.tolist()
print(json.dumps([counts, evs, sample.logs(), str(qpu.status().status), qpu.acquire()]))
"""
    )
    counts, evs, logs, status, token = python(program, job)
    assert counts["00"] + counts["11"] > 850 and all(1.7 < value <= 2.0 for value in evs)
    assert "device's noise" in logs and "Online" in status
    assert token == job[f"{NAME}_QRMI_JOB_ACQUISITION_TOKEN"], "acquire finds the job's own session"


def test_a_circuit_as_wide_as_the_device_runs(job):
    """Its body and results are large."""
    program = (
        PRIMITIVES
        + """
import numpy
from qiskit.circuit.library import efficient_su2
circuit = efficient_su2(127, reps=2, entanglement="linear")
circuit.measure_all()
values = numpy.random.default_rng(1).random(circuit.num_parameters)
job = SamplerV2(qpu, options={"default_shots": 300}).run([(passes.run(circuit), values)])
print(json.dumps(job.result()[0].data.meas.num_shots))
"""
    )
    assert python(program, job) == 300


def test_a_program_may_release_its_own_session(job, emulator):  # noqa: F811
    """As QRMI's examples do; it cannot open another one."""
    token = job[f"{NAME}_QRMI_JOB_ACQUISITION_TOKEN"]
    program = (
        ACQUIRE
        + f"""
qpu.release({token!r})
del os.environ["{NAME}_QRMI_JOB_ACQUISITION_TOKEN"]
again = qrmi.QuantumResource({NAME!r}, qrmi.ResourceType.IBMQuantumComputeService)
print(json.dumps(attempt(again.acquire)))
"""
    )
    assert "403 Forbidden" in python(program, job)
    assert emulator.session(token)["state"] == "closed"


def test_another_jobs_result_is_refused(job, emulator):  # noqa: F811
    """It is from another session of the same key."""
    program = (
        ACQUIRE
        + """
qpu.acquire()
pub = ['OPENQASM 3.0;\\ninclude "stdgates.inc";\\nbit[1] c; x $0; c[0] = measure $0;', None, 5]
payload = qrmi.Payload.QiskitPrimitive(input=json.dumps(dict(pubs=[pub], version=2)), program_id="sampler")
print(json.dumps(qpu.task_start(payload)))
"""
    )
    others = python(program, emulator.environment())
    asked = (
        ACQUIRE + f"print(json.dumps([attempt(getattr(qpu, f), {others!r}) for f in ('task_status', 'task_result')]))"
    )
    assert all("was not submitted by this Slurm job" in said for said in python(asked, job))


def test_the_oldest_qrmi_works_through_it(job):
    """It needs less of the service."""
    oldest = environment.oldest_qrmi()
    program = ACQUIRE + "import warnings; warnings.simplefilter('ignore'); print(json.dumps(bool(qpu.is_accessible())))"
    assert python(program, {**job, "PYTHONPATH": str(oldest)}) is True


# --- an IBM Quantum System, whose inputs and results are in S3 ------------------------------------------------------

RUN_A_TASK = """
import json, os, sys, urllib.request, warnings
import qrmi
warnings.simplefilter("ignore")
qpu = qrmi.QuantumResource("ibm_system", qrmi.ResourceType.IBMQuantumSystem)
payload = qrmi.Payload.QiskitPrimitive(input=json.dumps(dict(pubs=[], version=2)), program_id="sampler")
task = qpu.task_start(payload)
urllib.request.urlopen(sys.argv[1] + "/run/" + task).close()  # the service fetches the input and leaves the results
said = [str(qpu.status().status), str(qpu.task_status(task)), qpu.task_result(task).value, qpu.task_logs(task)]
try:
    qpu.task_status("job-of-another")
except Exception as error:
    said.append(str(error))
qpu.task_stop(task)
print(json.dumps([task, *said]))
"""


@pytest.fixture(scope="module")
def system():
    with subprocess.Popen([sys.executable, quantum_system.__file__], stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


def run_a_task(job, url):
    clean = {name: value for name, value in os.environ.items() if "QRMI" not in name}
    done = subprocess.run(
        [sys.executable, "-c", RUN_A_TASK, url], env=clean | job, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def objects(url):
    with urllib.request.urlopen(f"{url}/objects", timeout=10) as answer:
        return json.loads(answer.read())


def test_the_stand_in_accepts_what_qrmi_signs_with_the_sites_key(system):
    """This makes its verdict on a broker's signatures count."""
    site = {f"ibm_system_{name}": value for name, value in quantum_system.variables(system).items()}
    task, status, state, result, logs, *_ = run_a_task({**site, "ibm_system_QRMI_JOB_TIMEOUT_SECONDS": "60"}, system)
    assert (status[-6:], state[-9:], logs) == ("Online", "Completed", "it ran")
    assert json.loads(result) == {"ran": {"pubs": [], "version": 2}}
    assert f"input_{task}.json" in objects(system)


def test_a_task_of_a_system_runs_with_the_jobs_own_keys(system, started):
    """Requests to S3 and the URLs for the service are signed again; each job's objects are separate."""
    variables = quantum_system.variables(system)
    job = started("ibm_system", "ibm-quantum-system", variables, "dummy")
    secrets = [quantum_system.KEY_ID, quantum_system.SECRET, quantum_system.API_KEY]
    assert not [secret for secret in secrets if secret in str(job)]
    task, status, state, result, logs, refused = run_a_task(job, system)
    assert (status[-6:], state[-9:], logs) == ("Online", "Completed", "it ran")
    assert json.loads(result) == {"ran": {"pubs": [], "version": 2}}
    assert "403" in refused or "was not submitted by this Slurm job" in refused
    (name,) = [name for name in objects(system) if name.endswith(f"/input_{task}.json")]
    assert name.startswith("qrmi-slurm-broker/test-12-0-")


def ask_as_job(job, method, path, body=None):
    """Ask a system's broker as a program of the job; return status and text."""
    endpoint = urlsplit(job["ibm_system_QRMI_IBM_QS_ENDPOINT"])
    connection = http.client.HTTPConnection(endpoint.netloc, timeout=20)
    form = f"grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey={job['ibm_system_QRMI_IBM_QS_IAM_APIKEY']}"
    connection.request("POST", endpoint.path.replace("/api", "/iam") + "/identity/token", form)
    token = json.loads(connection.getresponse().read())["access_token"]
    connection.request(method, endpoint.path + path, body, {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_a_system_reveals_no_other_users_job_and_no_key(system, started):
    """Its answers contain S3 URLs with the key's id and a signature."""
    job = started("ibm_system", "ibm-quantum-system", quantum_system.variables(system), "dummy")
    storage = {
        kind: {"presigned_url": f"http://x/{quantum_system.BUCKET}/{kind}_mine-1.json", "type": "s3_compatible"}
        for kind in ("input", "results", "logs")
    }
    body = {"id": "mine-1", "backend": "ibm_system", "program_id": "sampler", "timeout_secs": 60, "storage": storage}
    assert ask_as_job(job, "POST", "/v1/jobs", json.dumps(body))[0] == 204
    status, text = ask_as_job(job, "GET", "/v1/jobs")
    assert status == 200 and [found["id"] for found in json.loads(text)["jobs"]] == ["mine-1"]
    for said in (text, ask_as_job(job, "GET", "/v1/jobs/mine-1")[1]):
        assert "X-Amz-Signature" in said and quantum_system.KEY_ID not in said
    taken = json.dumps(
        {
            **body,
            "id": quantum_system.ANOTHERS,
            "storage": json.loads(json.dumps(storage).replace("mine-1", quantum_system.ANOTHERS)),
        }
    )
    assert ask_as_job(job, "POST", "/v1/jobs", taken)[0] == 409
    assert ask_as_job(job, "GET", f"/v1/jobs/{quantum_system.ANOTHERS}")[0] == 403


# --- cost ------------------------------------------------------------------------------------------------------------


def test_the_broker_adds_less_than_two_milliseconds_to_a_request(job, emulator):  # noqa: F811
    """Direct and through the broker in turn, so that both meet the same load; the fastest tenth of each."""

    def client(endpoint, iam, key):
        parts, login = urlsplit(endpoint), urlsplit(iam)
        form = f"grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey={key}"
        connection = http.client.HTTPConnection(login.netloc, timeout=20)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", f"{login.path}/identity/token", form, headers)
        token = json.loads(connection.getresponse().read())["access_token"]
        connection.close()

        def ask():
            began_s = time.perf_counter()
            connection = http.client.HTTPConnection(parts.netloc, timeout=20)
            headers = {"Authorization": f"Bearer {token}", "Service-CRN": CRN}
            connection.request("GET", f"{parts.path}/backends/{NAME}/status", headers=headers)
            with connection.getresponse() as answer:
                assert answer.status == 200 and answer.read()
            connection.close()
            return (time.perf_counter() - began_s) * 1e3

        return ask

    site = emulator.environment()
    names = [f"{NAME}_QRMI_IBM_QCS_{name}" for name in ("ENDPOINT", "IAM_ENDPOINT", "IAM_APIKEY")]
    direct, through = (client(*(found[name] for name in names)) for found in (site, job))
    took_ms = [(direct(), through()) for _ in range(400)]
    best = [sorted(column)[len(column) // 10] for column in zip(*took_ms, strict=True)]
    assert best[1] - best[0] < MOST_ADDED_MS, f"direct {best[0]:.2f} ms, through the broker {best[1]:.2f} ms"
