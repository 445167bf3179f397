"""Circuits from text to outcome: what is read, what is refused, and that all methods agree."""

import json

import numpy as np
import pytest
from emulator_circuits import BELL, BELL_UNMEASURED, HEADER, brickwork, configuration
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit.library import PermutationGate, UnitaryGate
from qiskit.quantum_info import Pauli, Statevector
from qiskit_ibm_runtime.json import RuntimeDecoder

from qrmi_emulator import devices, primitives, simulate, worker
from qrmi_emulator.blocks import Step, unroute
from qrmi_emulator.circuits import read, target_of
from qrmi_emulator.failure import JobFailure
from qrmi_emulator.mps import MatrixProductState
from qrmi_emulator.options import BackendSpec

MANILA = BackendSpec("m", "FakeManilaV2")
LINE = target_of(configuration(5))
NO_VALUES = np.zeros(0)


def simulator(noisy=False, log=lambda _: None):
    properties = devices.load(MANILA).properties if noisy else None
    return simulate.Simulator(properties, np.random.default_rng(7), log)


def run(program, params, target=LINE, noisy=False):
    return json.loads(primitives.run(program, params, target, simulator(noisy)), cls=RuntimeDecoder)


def counts(pub_result, register="c"):
    return getattr(pub_result.data, register).get_counts()


@pytest.mark.parametrize("noisy", [False, True])
def test_a_bell_pair_is_one(noisy):
    """Both bits agree; with noise nearly always."""
    found = counts(run("sampler", {"pubs": [[BELL, None, 2000]]}, noisy=noisy)[0])
    agreeing = found.get("00", 0) + found.get("11", 0)
    assert sum(found.values()) == 2000
    assert agreeing == 2000 if not noisy else 1700 < agreeing < 2000
    assert 800 < found["00"] < 1200


def test_only_used_qubits_are_simulated():
    """Idle qubits cost nothing."""
    assert read(BELL, target_of(configuration(156))).active == (3, 4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "cannot be read"),
        (HEADER + "qubit[1] q;\nfoo q[0];", "cannot be read"),
        (HEADER + "h $0;", "h on qubits (0,) is not supported"),
        (HEADER + "cx $0, $2;", "cx on qubits (0, 2) is not supported"),
        (HEADER + "qubit[6] q;\nx q[5];", "uses 6 qubits; the backend has 5"),
        (HEADER + "bit[1] c;\nif (c[0]) { h $0; }", "h on qubits (0,) is not supported"),
        (None, "OpenQASM 3 text"),
        (7, "OpenQASM 3 text"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_circuit_that_cannot_run_says_why(text, reason, capfd):
    """The reason names what is wrong."""
    with pytest.raises(JobFailure) as caught:
        read(text, LINE)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "pubs must be"),
        ({"pubs": [BELL]}, "pubs must be"),
        ({"pubs": [[BELL, None, 0]]}, "number of shots"),
        ({"pubs": [[BELL, None, 20001]]}, "number of shots"),
        ({"pubs": [[BELL, [1.0], 10]]}, "has 0 parameters"),
        ({"pubs": [[BELL, ["x"], 10]]}, "cannot be used"),
        ({"pubs": [[BELL, None, 10]], "version": 1}, "Version 1"),
    ],
)
def test_an_input_that_cannot_run_says_why(params, reason):
    """The reason names what is wrong."""
    with pytest.raises(JobFailure, match=reason):
        primitives.run("sampler", params, LINE, simulator())


def test_parameters_come_in_the_order_of_their_declaration():
    """`input` lines give the order, which is not that of the alphabet."""
    text = HEADER + "input float[64] t_2;\ninput float[64] t_10; // input float[64] no;\nbit[2] c;\n"
    text += "sx $0; rz(t_2) $0; sx $0; sx $1; rz(t_10) $1; sx $1;\nc[0] = measure $0;\nc[1] = measure $1;\n"
    result = run("sampler", {"pubs": [[text, [[np.pi, 0.0], [0.0, np.pi]], 50]]})[0]
    assert result.data.c.shape == (2,)
    assert [counts_of.get_counts() for counts_of in (result.data.c[0], result.data.c[1])] == [{"10": 50}, {"01": 50}]


def test_circuits_may_depend_on_their_measurements():
    """A bit measured on the way decides what follows."""
    text = HEADER + "bit[1] a;\nbit[1] b;\nx $0;\na[0] = measure $0;\nif (a[0]) { x $1; }\nb[0] = measure $1;\n"
    result = run("sampler", {"pubs": [[text, None, 20]]})[0]
    assert counts(result, "a") == counts(result, "b") == {"1": 20}


def test_plain_results_are_json():
    """Without Qiskit's types the service writes samples in hexadecimal."""
    text = primitives.run("sampler", {"pubs": [[BELL, None, 9]], "support_qiskit": False}, LINE, simulator())
    data = json.loads(text)["results"][0]["data"]["c"]
    assert data["num_bits"] == 2 and set(data["samples"]) <= {"0x0", "0x3"} and len(data["samples"]) == 9


def test_the_estimator_estimates():
    """Values of all observables, in their shape; idle qubits are 0; precision 0 is exact."""
    observables = [{"XXIII": 1.0, "ZZIII": 0.5, "IIIIZ": 2.0, "IIIIX": 9.0}, {"1IIII": 1.0}, {"0000I": 1.0}]
    exact = run("estimator", {"pubs": [[BELL_UNMEASURED, observables, [], 0.0]]})[0].data
    assert np.allclose(exact.evs, [3.5, 0.5, 0.5]) and np.allclose(exact.stds, 0)
    drawn = run("estimator", {"pubs": [[BELL_UNMEASURED, "ZIIII", [], 0.05]]})[0]
    assert abs(float(drawn.data.evs)) < 0.25 and 0.04 < float(drawn.data.stds) <= 0.051
    assert drawn.metadata["shots"] == 400


def test_observables_and_values_broadcast():
    """Parameter values and observables fit each other as in NumPy."""
    text = HEADER + "input float[64] theta;\nsx $0; rz(theta) $0; sx $0;\n"
    pub = [text, [[{"IIIIZ": 1.0}], [{"IIIIX": 1.0}]], [[0.0], [np.pi]], 0.0]
    assert np.allclose(run("estimator", {"pubs": [pub]})[0].data.evs, [[-1, 1], [0, 0]], atol=1e-9)
    with pytest.raises(JobFailure, match="do not fit"):
        run("estimator", {"pubs": [[text, ["Z", "Z", "Z"], [[0.0], [1.0]], 0.0]]})


@pytest.mark.parametrize("observable", ["ZZZZZZ", "Q", {"Z": "1"}, {"Z": 1j}, [], 5, [["Z"], "Z"]])
def test_what_is_no_observable_is_refused(observable):
    """Letters, width, coefficient and shape are checked."""
    with pytest.raises(JobFailure):
        primitives.observable_array(observable, 5)


@pytest.mark.parametrize("seed", range(3))
def test_a_matrix_product_state_is_the_state(seed):
    """Its expectation values and samples are those of a state vector, in any order of the qubits."""
    rng = np.random.default_rng(seed)
    circuit = qasm3.loads(brickwork(6, 5, rng, measured=False))
    exact = Statevector(circuit)
    state = MatrixProductState([int(at) for at in rng.permutation(6)])
    for item in circuit.data:
        state.apply(item.operation.to_matrix(), [circuit.find_bit(bit).index for bit in item.qubits])
    for _ in range(20):
        pauli = "".join(rng.choice(list("IXYZ"), 6))
        letters = {at: letter for at, letter in enumerate(reversed(pauli)) if letter != "I"}
        assert state.expectation(letters) == pytest.approx(exact.expectation_value(Pauli(pauli)).real, abs=1e-9)
    samples = state.sample(4000, rng)[:, state.columns(range(6))]
    drawn = np.bincount(samples @ (1 << np.arange(6)), minlength=64) / 4000
    assert np.abs(drawn - exact.probabilities()).sum() < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_taking_swaps_out_keeps_the_state(seed):
    """A routed circuit without its swaps is the same circuit, with its qubits on other wires."""
    rng = np.random.default_rng(seed)
    circuit = QuantumCircuit(5)
    for _ in range(30):
        first, second = (int(at) for at in rng.permutation(5)[:2])
        circuit.rx(rng.uniform(0, 6), first)
        gate = rng.choice(["cx", "swap", "swap", "cz"])
        getattr(circuit, gate)(first, second)
        circuit.rz(rng.uniform(0, 6), second)
    gates = [
        Step(item.operation.to_matrix(), tuple(circuit.find_bit(bit).index for bit in item.qubits))
        for item in circuit.data
    ]
    found = unroute(5, gates)
    rebuilt = QuantumCircuit(5)
    for step in found.steps:
        rebuilt.append(UnitaryGate(step.matrix), list(step.wires))
    moved = QuantumCircuit(5)
    moved.append(PermutationGate([found.wire_of[qubit] for qubit in range(5)]), range(5))
    assert Statevector(rebuilt.compose(moved)).equiv(Statevector(circuit))
    assert len(found.pairs) <= sum(item.operation.name in {"cx", "cz"} for item in circuit.data)


def test_wide_circuits_agree_with_narrow_ones(monkeypatch):
    """The same circuit gives the same by state vector and by matrix product state."""
    rng = np.random.default_rng(5)
    circuit = read(brickwork(5, 4, rng), LINE)
    unmeasured = read(brickwork(5, 4, np.random.default_rng(5), measured=False), LINE)
    paulis = ["ZZIII", "IXXII", "YIIIY"]
    vector = simulator().expectations(unmeasured, NO_VALUES, paulis, 1)
    ones = simulator().sample(circuit, NO_VALUES, 4000).mean(axis=0)
    monkeypatch.setattr(simulate, "_VECTOR_QUBITS", 2)
    lines = []
    assert np.allclose(simulator(log=lines.append).expectations(unmeasured, NO_VALUES, paulis, 1), vector)
    assert np.allclose(simulator(log=lines.append).sample(circuit, NO_VALUES, 4000).mean(axis=0), ones, atol=0.06)
    assert all("matrix product state" in line for line in lines)


def ghz(n_qubits):
    lines = [HEADER, f"bit[{n_qubits}] c;", "rz(pi/2) $0; sx $0; rz(pi/2) $0;"]
    lines += [f"cx ${at}, ${at + 1};" for at in range(n_qubits - 1)]
    return "\n".join(lines + [f"c[{at}] = measure ${at};" for at in range(n_qubits)])


def test_clifford_circuits_are_as_wide_as_they_like():
    """A GHZ state of 156 qubits is all 0 or all 1."""
    lines = []
    circuit = read(ghz(156), target_of(configuration(156)))
    bits = simulator(log=lines.append).sample(circuit, NO_VALUES, 200)
    assert set(bits.sum(axis=1).tolist()) == {0, 156}
    assert "stabilizer" in lines[0]


def test_too_much_entanglement_fails(monkeypatch):
    """A wide circuit that no method can do fails with the reason."""
    monkeypatch.setattr("qrmi_emulator.mps._MAX_BOND", 8)
    text = brickwork(30, 10, np.random.default_rng(1))
    with pytest.raises(JobFailure, match="too entangled"):
        simulator().sample(read(text, target_of(configuration(30))), NO_VALUES, 10)


def test_a_wide_circuit_that_goes_on_after_measuring_fails():
    """Neither a state vector nor a matrix product state does those."""
    text = brickwork(30, 2, np.random.default_rng(1)) + "\nrz(0.3) $0; sx $0;\nc[0] = measure $0;\n"
    with pytest.raises(JobFailure, match="too wide"):
        simulator().sample(read(text, target_of(configuration(30))), NO_VALUES, 10)


def test_any_surprise_is_its_jobs_failure():
    """The worker goes on after whatever a job does to it."""
    job = {"program": "sampler", "params": 7, "name": "m", "device": "FakeManilaV2", "noise": False, "seed": 1}
    assert worker.answer(job, print)["failure"].startswith("The simulation failed: AttributeError")
    job["params"] = {"pubs": [[BELL, None, 5]]}
    assert "result" in worker.answer(job, lambda _: None)
    job["program"] = "noiselearner"
    assert "noiselearner" in worker.answer(job, print)["failure"]
