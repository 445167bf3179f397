"""The real QRMI against a running emulator: what an unmodified program sees.

Each program runs in its own process: QRMI reads its variables from the environment and prints warnings of its own.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

NAME = "ibm_demo"
KEY = "contract-api-key"
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/emulator:emulator::"
START_DEADLINE_S = 30
PROGRAM_DEADLINE_S = 120
QRMI_TYPES = {
    "ibm-quantum-compute-service": ("QCS", "IBMQuantumComputeService"),
    "qiskit-runtime-service": ("QRS", "IBMQiskitRuntimeService"),
}
HEADER = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'


class Emulator:
    """A running emulator."""

    def __init__(self, process, url, output):
        self.process = process
        self.url = url
        self.output = output

    def control(self, method, what, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/_emulator/{what}", data, {"Content-Type": "application/json"}, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def session(self, session_id):
        (found,) = [s for s in self.control("GET", "sessions") if s["id"] == session_id]
        return found

    def environment(self, qrmi_type="ibm-quantum-compute-service", path="/api/v1", **more):
        prefix, _ = QRMI_TYPES[qrmi_type]
        variables = {
            f"{NAME}_QRMI_IBM_{prefix}_ENDPOINT": self.url + path,
            f"{NAME}_QRMI_IBM_{prefix}_IAM_ENDPOINT": self.url,
            f"{NAME}_QRMI_IBM_{prefix}_IAM_APIKEY": KEY,
            f"{NAME}_QRMI_IBM_{prefix}_SERVICE_CRN": CRN,
            "QRMI_JOB_QPU_RESOURCES": NAME,
            "QRMI_JOB_QPU_TYPES": qrmi_type,
        }
        return variables | more


@contextmanager
def running(folder, *arguments):
    """Start an emulator on a free port, and end it with SIGTERM."""
    port_file, output = folder / "port", folder / "output"
    command = [sys.executable, "-P", "-m", "qrmi_emulator", "--port", "0", "--port-file", port_file]
    command += ["--backend", f"{NAME}=FakeSherbrooke", "--backend", "ibm_small=FakeManilaV2", *arguments]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | {"QRMI_EMULATOR_APIKEY": KEY}
        )
    try:
        ends_s = time.monotonic() + START_DEADLINE_S
        while not port_file.exists():
            assert process.poll() is None and time.monotonic() < ends_s, output.read_text()
            time.sleep(0.02)
        yield Emulator(process, f"http://127.0.0.1:{port_file.read_text().strip()}", output)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    with running(tmp_path_factory.mktemp("emulator"), "--job-time-limit", "60") as started:
        yield started


@pytest.fixture(autouse=True)
def no_faults(emulator):
    yield
    emulator.control("DELETE", "faults")


def python(program, environment, deadline_s=PROGRAM_DEADLINE_S):
    """Run a program as its user would; its last line is JSON."""
    clean = {name: value for name, value in os.environ.items() if "QRMI" not in name and "SLURM" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=deadline_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


ACQUIRE = f"""
import json, os, qrmi
kind = dict(QCS="IBMQuantumComputeService", QRS="IBMQiskitRuntimeService")[os.environ.get("KIND", "QCS")]
qpu = qrmi.QuantumResource({NAME!r}, getattr(qrmi.ResourceType, kind))
def attempt(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return "refused: " + repr(error)
"""

PRIMITIVES = """
import json, os
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qrmi.primitives import QRMIService
from qrmi.primitives.ibm import EstimatorV2, SamplerV2, get_target
qpu = QRMIService().resources()[0]
passes = generate_preset_pass_manager(optimization_level=1, target=get_target(qpu))
"""


def test_acquire_and_release_open_and_close_a_session(emulator):
    """The token is a session, open until released; an unused one is closed, not canceled."""
    program = ACQUIRE + "token = qpu.acquire(); qpu.release(token); print(json.dumps(token))"
    token = python(program, emulator.environment(**{f"{NAME}_QRMI_IBM_QCS_SESSION_MAX_TTL": "77"}))
    session = emulator.session(token)
    assert (session["backend"], session["state"], session["by"]) == (NAME, "closed", "update_session")
    assert (session["mode"], session["max_ttl"]) == ("dedicated", 77)


@pytest.mark.parametrize("path", ["", "/api", "/api/v1"])
def test_every_documented_endpoint_works(emulator, path):
    """With and without the path after the host."""
    program = ACQUIRE + "token = qpu.acquire(); qpu.release(token); print(json.dumps(token))"
    assert emulator.session(python(program, emulator.environment(path=path)))["state"] == "closed"


def test_the_older_type_works(emulator):
    """qiskit-runtime-service is the same service under its older name."""
    program = ACQUIRE + "token = qpu.acquire(); qpu.release(token); print(json.dumps(token))"
    environment = emulator.environment("qiskit-runtime-service", KIND="QRS")
    assert emulator.session(python(program, environment))["state"] == "closed"


def test_a_pending_job_makes_release_cancel(emulator):
    """QRMI cancels a session that has jobs; the waiting job never runs."""
    program = (
        ACQUIRE
        + f"""
token = qpu.acquire()
pub = [{HEADER + "bit[1] c; x $0; c[0] = measure $0;"!r}, None, 5]
payload = qrmi.Payload.QiskitPrimitive(input=json.dumps(dict(pubs=[pub], version=2)), program_id="sampler")
task = qpu.task_start(payload)
before = str(qpu.task_status(task))
qpu.release(token)
print(json.dumps([token, before, str(qpu.task_status(task))]))
"""
    )
    emulator.control("POST", f"backends/{NAME}", {"status": "paused"})
    try:
        token, before, after = python(program, emulator.environment())
    finally:
        emulator.control("POST", f"backends/{NAME}", {"status": "online"})
    assert "Queued" in before and "Cancelled" in after
    assert emulator.session(token)["state"] == "cancelled"


def test_a_wrong_key_acquires_nothing(emulator):
    """First IAM refuses, then the service; no line shows the key."""
    program = ACQUIRE + "print(json.dumps(attempt(qpu.acquire)))"
    before = len(emulator.control("GET", "sessions"))
    wrong = {f"{NAME}_QRMI_IBM_QCS_IAM_APIKEY": "wrong-planted-key"}
    assert python(program, emulator.environment(**wrong)).startswith("refused")
    assert len(emulator.control("GET", "sessions")) == before
    printed = emulator.output.read_text()
    assert "POST /identity/token 400" in printed and "POST /api/v1/sessions 401" in printed
    assert "wrong-planted-key" not in printed and KEY not in printed


def test_requests_refused_by_the_service_are_errors(emulator):
    """A closed session takes no job, an unknown one cannot be released, and another instance is refused."""
    program = (
        ACQUIRE
        + f"""
token = qpu.acquire()
qpu.release(token)
os.environ["{NAME}_QRMI_JOB_ACQUISITION_TOKEN"] = token
again = qrmi.QuantumResource({NAME!r}, qrmi.ResourceType.IBMQuantumComputeService)
payload = qrmi.Payload.QiskitPrimitive(input=json.dumps(dict(pubs=[], version=2)), program_id="sampler")
os.environ["{NAME}_QRMI_IBM_QCS_SERVICE_CRN"] = "crn:other"
del os.environ["{NAME}_QRMI_JOB_ACQUISITION_TOKEN"]
other = qrmi.QuantumResource({NAME!r}, qrmi.ResourceType.IBMQuantumComputeService)
calls = [attempt(again.task_start, payload), attempt(qpu.release, "nothing"), attempt(other.acquire)]
print(json.dumps(calls))
"""
    )
    refusals = python(program, emulator.environment())
    assert all(refusal.startswith("refused") for refusal in refusals), refusals


def test_an_unknown_backend_has_no_session(emulator):
    """404, as the service answers."""
    program = ACQUIRE.replace(NAME, "ibm_nothing") + "print(json.dumps(attempt(qpu.acquire)))"
    environment = {name.replace(NAME, "ibm_nothing"): value for name, value in emulator.environment().items()}
    emulator.control("DELETE", "requests")
    assert python(program, environment).startswith("refused")
    statuses = [r["status"] for r in emulator.control("GET", "requests") if r["call"] == "create_session"]
    assert statuses == [404]


def test_a_test_can_set_the_status(emulator):
    """QRMI sees a backend go offline."""
    program = ACQUIRE + "import warnings; warnings.simplefilter('ignore'); print(json.dumps(qpu.is_accessible()))"
    assert python(program, emulator.environment()) is True
    emulator.control("POST", f"backends/{NAME}", {"status": "offline"})
    try:
        assert python(program, emulator.environment()) is False
    finally:
        emulator.control("POST", f"backends/{NAME}", {"status": "online"})


def test_primitives_run_unmodified(emulator):
    """A Bell pair by sampler and estimator, in the session that was acquired."""
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
print(json.dumps([counts, evs, sample.logs(), sample.job_id()]))
"""
    )
    token = python(ACQUIRE + "print(json.dumps(qpu.acquire()))", emulator.environment())
    environment = emulator.environment(**{f"{NAME}_QRMI_JOB_ACQUISITION_TOKEN": token})
    counts, evs, logs, _ = python(program, environment)
    assert sum(counts.values()) == 1000 and counts["00"] + counts["11"] > 850
    assert all(1.7 < value <= 2.0 for value in evs)
    assert "device's noise" in logs
    assert emulator.session(token)["state"] == "active"


def test_a_circuit_as_wide_as_the_device_runs(emulator):
    """A parametrized linear circuit over all 127 qubits."""
    program = (
        PRIMITIVES
        + """
import numpy
from qiskit.circuit.library import efficient_su2
circuit = efficient_su2(127, reps=2, entanglement="linear")
circuit.measure_all()
values = numpy.random.default_rng(1).random(circuit.num_parameters)
job = SamplerV2(qpu, options={"default_shots": 300}).run([(passes.run(circuit), values)])
bits = job.result()[0].data.meas
print(json.dumps([bits.num_shots, bits.num_bits, job.logs()]))
"""
    )
    shots, bits, logs = python(program, emulator.environment())
    assert (shots, bits) == (300, 127) and "matrix product state" in logs


def test_a_circuit_that_cannot_run_fails_as_a_job(emulator):
    """An untranspiled circuit and an invalid one fail with the reason in their logs."""
    program = (
        ACQUIRE
        + f"""
import time
found = []
for text in ({HEADER + "h $0;"!r}, "nonsense"):
    given = json.dumps(dict(pubs=[[text, None, 5]], version=2))
    task = qpu.task_start(qrmi.Payload.QiskitPrimitive(input=given, program_id="sampler"))
    while qpu.task_status(task) in (qrmi.TaskStatus.Queued, qrmi.TaskStatus.Running):
        time.sleep(0.05)
    found.append([str(qpu.task_status(task)), qpu.task_logs(task)])
print(json.dumps(found))
"""
    )
    (first, why_first), (second, why_second) = python(program, emulator.environment())
    assert "Failed" in first and "h on qubits (0,) is not supported" in why_first
    assert "Failed" in second and "cannot be read" in why_second


def long_circuit(folder):
    """A circuit, in a file, for which a 24-qubit state vector takes minutes."""
    lines = [HEADER, "bit[24] c;"]
    for _ in range(3000):
        lines += [f"rz(0.3) ${at}; sx ${at};" for at in range(0, 24, 6)]
    lines += [f"sx ${at};" for at in range(24)]
    lines += ["c[0] = measure $0; sx $0; c[1] = measure $0;"]
    path = folder / "long.qasm"
    path.write_text("\n".join(lines))
    return path


def start_long(path):
    return (
        ACQUIRE
        + f"""
import time
def pending(task):
    return qpu.task_status(task) in (qrmi.TaskStatus.Queued, qrmi.TaskStatus.Running)
def start(text):
    given = json.dumps(dict(pubs=[[text, None, 5]], version=2))
    return qpu.task_start(qrmi.Payload.QiskitPrimitive(input=given, program_id="sampler"))
task = start(open({str(path)!r}).read())
"""
    )


def test_a_running_job_can_be_canceled(emulator, tmp_path):
    """A long simulation is killed, and the next job runs."""
    program = (
        start_long(long_circuit(tmp_path))
        + f"""
while qpu.task_status(task) == qrmi.TaskStatus.Queued:
    time.sleep(0.02)
running = str(qpu.task_status(task))
qpu.task_stop(task)
stopped = str(qpu.task_status(task))
task = start({HEADER + "bit[1] c; x $0; c[0] = measure $0;"!r})
while pending(task):
    time.sleep(0.05)
print(json.dumps([running, stopped, str(qpu.task_status(task))]))
"""
    )
    running_, stopped, after = python(program, emulator.environment())
    assert "Running" in running_ and "Cancelled" in stopped and "Completed" in after


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "reason"),
    [
        (["--job-time-limit", "2"], {}, "Failed", "took longer than 2 seconds"),
        (["--memory-limit", "40"], {}, "Failed", "needs more than 40 MiB"),
        ([], {f"{NAME}_QRMI_JOB_TIMEOUT_SECONDS": "2"}, "Cancelled", "longer than the 2 seconds"),
    ],
)
def test_a_job_that_exceeds_a_limit_ends(tmp_path, arguments, variables, status, reason):
    """Time, memory and the job's own cost are limited; the log says which limit was exceeded."""
    program = (
        start_long(long_circuit(tmp_path))
        + """
while pending(task):
    time.sleep(0.05)
print(json.dumps([str(qpu.task_status(task)), qpu.task_logs(task)]))
"""
    )
    with running(tmp_path, *arguments) as started:
        found, logs = python(program, started.environment(**variables))
    assert status in found and reason in logs


def test_a_circuit_that_is_too_entangled_ends(tmp_path):
    """The time limit stops it; the log says how entangled it may be."""
    program = (
        PRIMITIVES
        + """
import numpy
from qiskit.circuit.library import efficient_su2
circuit = efficient_su2(30, reps=12, entanglement="pairwise")
circuit.measure_all()
values = numpy.random.default_rng(1).random(circuit.num_parameters)
job = SamplerV2(qpu).run([(passes.run(circuit), values)])
try:
    job.result()
    failed = ""
except Exception as error:
    failed = repr(error)
print(json.dumps([failed, job.logs()]))
"""
    )
    with running(tmp_path, "--job-time-limit", "15") as started:
        failed, logs = python(program, started.environment())
    assert failed
    assert "matrix product state, bond dimension at most 2^" in logs and "took longer than 15 seconds" in logs


def test_the_task_runner_runs(emulator, tmp_path):
    """QRMI's own command writes the results of a payload file."""
    given, taken = tmp_path / "input.json", tmp_path / "output.json"
    pub = [HEADER + "bit[2] c; x $0; c[0] = measure $0; c[1] = measure $1;", None, 20]
    parameters = {"pubs": [pub], "version": 2, "support_qiskit": False}
    given.write_text(json.dumps({"program_id": "sampler", "parameters": parameters}))
    runner = Path(sys.executable).parent / "task_runner"
    command = [sys.executable, "-c", "from qrmi.tools.task_runner.main import run; run()"]
    done = subprocess.run(
        [*([runner] if runner.exists() else command), NAME, given, taken],
        env=os.environ | emulator.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    samples = json.loads(taken.read_text())["results"][0]["data"]["c"]["samples"]
    assert len(samples) == 20 and max(map(samples.count, samples)) >= 17


def test_a_lost_answer_leaves_a_session_behind(emulator):
    """A fault after the call means an error for QRMI, and a session it does not know of."""
    emulator.control("POST", "faults", {"call": "create_session", "kind": "reset", "when": "after"})
    before = {s["id"] for s in emulator.control("GET", "sessions")}
    assert python(ACQUIRE + "print(json.dumps(attempt(qpu.acquire)))", emulator.environment()).startswith("refused")
    (left,) = [s for s in emulator.control("GET", "sessions") if s["id"] not in before]
    assert left["state"] == "open"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly(tmp_path, end):
    """A signal ends it and its worker at once with exit status 0, even while requests hang."""
    with running(tmp_path, "--fault", "create_session:hang") as started:
        assert started.output.read_text().splitlines()[0] == f"listening on {started.url}"
        children = Path(f"/proc/{started.process.pid}/task").glob("*/children")
        workers = [int(pid) for file in children for pid in file.read_text().split()]
        assert workers
        started.process.send_signal(end)
        assert started.process.wait(20) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        assert "Traceback" not in started.output.read_text()


def test_killing_the_emulator_kills_its_worker(tmp_path):
    """SIGKILL leaves no worker behind."""
    with running(tmp_path) as started:
        children = Path(f"/proc/{started.process.pid}/task").glob("*/children")
        workers = [int(pid) for file in children for pid in file.read_text().split()]
        started.process.kill()
        started.process.wait()
        ends_s = time.monotonic() + 10
        while any(_lives(pid) for pid in workers):
            assert time.monotonic() < ends_s
            time.sleep(0.02)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
