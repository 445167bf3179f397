"""Simulations: all methods give the same outcomes, and circuits that no method can simulate are refused."""

import numpy as np
import pytest
from circuit_texts import HEADER, brickwork, configuration, ghz
from qiskit import QuantumCircuit
from qiskit.quantum_info import Pauli, Statevector

from qrmi_emulator import simulate
from qrmi_emulator.circuits import Circuit, read, target_of
from qrmi_emulator.failure import JobFailure

LINE = target_of(configuration(5))
NO_VALUES = np.zeros(0)


def simulator(log=lambda _: None):
    return simulate.Simulator(None, np.random.default_rng(7), log)


@pytest.fixture
def no_state_vector(monkeypatch):
    """Let three qubits be too wide for a state vector."""
    monkeypatch.setattr(simulate, "_VECTOR_QUBITS", 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_matrix_product_state_is_the_state(seed, no_state_vector):
    """Its expectation values and samples are those of a state vector, wherever the qubits are on the device."""
    rng = np.random.default_rng(seed)
    place = [int(at) for at in rng.permutation(6)]
    line = read(brickwork(6, 5, rng, measured=False), target_of(configuration(6))).body
    circuit = QuantumCircuit(6, 6).compose(line, place)
    exact = Statevector(circuit)
    paulis = ["".join(rng.choice(list("IXYZ"), 6)) for _ in range(20)]
    lines = []
    found = simulator(lines.append).expectations(Circuit(circuit, tuple(range(6)), ()), NO_VALUES, paulis, 1)
    assert np.allclose(found, [exact.expectation_value(Pauli(pauli)).real for pauli in paulis], atol=1e-9)
    circuit.measure(range(6), range(6))
    samples = simulator(lines.append).sample(Circuit(circuit, tuple(range(6)), ()), NO_VALUES, 4000)
    drawn = np.bincount(samples @ (1 << np.arange(6)), minlength=64) / 4000
    assert np.abs(drawn - exact.probabilities()).sum() < 0.2
    assert len(lines) == 2 and all("matrix product state" in line for line in lines)


def test_wide_circuits_agree_with_narrow_ones(monkeypatch):
    """The same circuit gives the same results as a state vector and as a matrix product state."""
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


def test_clifford_circuits_can_have_any_width():
    """A GHZ state of 156 qubits is all 0 or all 1."""
    lines = []
    circuit = read(ghz(156), target_of(configuration(156)))
    bits = simulator(log=lines.append).sample(circuit, NO_VALUES, 200)
    assert set(bits.sum(axis=1).tolist()) == {0, 156}
    assert "stabilizer" in lines[0]


def test_distant_gates_do_not_slow_down_wide_circuits():
    """A layer of gates on a 4 by 12 grid, numbered by rows, takes less than a second; without a chain, minutes."""
    lines = [HEADER, "bit[48] c;"]
    lines += [f"sx ${at}; rz(0.3) ${at}; sx ${at};" for at in range(48)]
    pairs = [(at, at + 1) for at in range(47) if at % 12 != 11] + [(at, at + 12) for at in range(36)]
    lines += [f"cx ${one}, ${other}; rz(0.7) ${other}; cx ${one}, ${other};" for one, other in pairs]
    lines += [f"c[{at}] = measure ${at};" for at in range(48)]
    grid = configuration(48)
    grid["gates"] = [{"name": "cx", "coupling_map": [list(pair) for pair in pairs]}]
    log = []
    bits = simulator(log.append).sample(read("\n".join(lines), target_of(grid)), NO_VALUES, 1000)
    assert "matrix product state" in log[0]
    assert np.allclose(bits.mean(axis=0), (1 + np.cos(0.3)) / 2, atol=0.06)  # the other gates do not change Z


def test_qubits_that_are_not_measured_do_not_slow_down_sampling():
    """Aer only samples quickly if every qubit is measured; the additional bits are not returned."""
    text = brickwork(40, 6, np.random.default_rng(1), measured=False) + "\nc[3] = measure $7; c[0] = measure $21;"
    circuit = read(text, target_of(configuration(40)))
    paulis = ["".join("Z" if at == qubit else "I" for at in reversed(range(40))) for qubit in (7, 21)]
    ones = simulator().sample(circuit, NO_VALUES, 20000).mean(axis=0)
    z = simulator().expectations(read(text.partition("c[3]")[0], target_of(configuration(40))), NO_VALUES, paulis, 1)
    assert ones.shape == (40,)
    assert np.allclose(ones[[3, 0]], (1 - z) / 2, atol=0.02)
    assert not ones[[1, 2, *range(4, 40)]].any()


def test_an_entangled_circuit_runs_as_a_state_vector_if_it_fits(monkeypatch, no_state_vector):
    """Entanglement only costs a circuit that is too wide for a state vector."""
    monkeypatch.setattr(simulate, "_VECTOR_DOUBLINGS", 1)
    circuit = read(brickwork(5, 4, np.random.default_rng(5), measured=False), LINE)
    lines = []
    paulis = ["ZZIII", "IXXII", "YIIIY"]
    found = simulator(lines.append).expectations(circuit, NO_VALUES, paulis, 1)
    exact = Statevector(circuit.body)
    assert np.allclose(found, [exact.expectation_value(Pauli(pauli)).real for pauli in paulis])
    assert lines == ["Simulating 5 qubits: statevector, without noise."]


def test_a_wide_circuit_with_gates_after_measurements_is_refused():
    """Neither a state vector nor a matrix product state can simulate it."""
    text = brickwork(30, 2, np.random.default_rng(1)) + "\nrz(0.3) $0; sx $0;\nc[0] = measure $0;\n"
    with pytest.raises(JobFailure, match="too wide"):
        simulator().sample(read(text, target_of(configuration(30))), NO_VALUES, 10)
