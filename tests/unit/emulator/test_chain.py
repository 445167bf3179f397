"""Laying a circuit out on a chain."""

from itertools import pairwise

import numpy as np
import pytest
from circuit_texts import brickwork, configuration
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector

from qrmi_emulator.chain import lay_out
from qrmi_emulator.circuits import measurements, read, target_of
from qrmi_emulator.failure import JobFailure


def entangled(seed, n_qubits=6):
    """Return a circuit with gates on any two qubits, measured in a random order."""
    rng = np.random.default_rng(seed)
    circuit = QuantumCircuit(n_qubits, n_qubits)
    for _ in range(20):
        first, second = (int(at) for at in rng.permutation(n_qubits)[:2])
        circuit.rx(rng.uniform(0, 6), first)
        getattr(circuit, rng.choice(["cx", "swap"]))(first, second)
        circuit.rz(rng.uniform(0, 6), second)
    circuit.measure(range(n_qubits), [int(at) for at in rng.permutation(n_qubits)])
    return circuit


def probabilities(circuit):
    """Return the probability of each value of the classical bits."""
    qubit_of = measurements(circuit)
    state = Statevector(circuit.remove_final_measurements(inplace=False))
    return state.probabilities([qubit_of[clbit] for clbit in sorted(qubit_of)])


@pytest.mark.parametrize("seed", range(5))
def test_gates_act_on_neighbors_and_outcomes_stay(seed):
    """The chain has the circuit's outcomes, and no gate between distant qubits."""
    circuit = entangled(seed)
    chain = lay_out(circuit).circuit
    for item in chain.data:
        sites = [chain.find_bit(bit).index for bit in item.qubits]
        assert max(sites) - min(sites) == len(sites) - 1
    assert np.allclose(probabilities(chain), probabilities(circuit))


def test_the_chain_follows_the_gates():
    """A line of qubits that is scattered over a device needs no swaps, measured or not."""
    order = [int(at) for at in np.random.default_rng(1).permutation(12)]
    circuit = QuantumCircuit(12)
    for first, second in pairwise(order):
        circuit.ry(0.3, first)
        circuit.cx(first, second)
    chain = lay_out(circuit)
    assert "swap" not in chain.circuit.count_ops()
    assert chain.doublings == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_bond_dimension_stays_below_its_bound(seed):
    """No cut of the chain is entangled more than the bound says."""
    chain = lay_out(entangled(seed))
    state = Statevector(chain.circuit.remove_final_measurements(inplace=False)).data
    bonds = [np.linalg.matrix_rank(state.reshape(2**left, -1), tol=1e-7) for left in range(1, 6)]
    assert max(bonds) <= 2**chain.doublings <= 2**3


@pytest.mark.parametrize(("layers", "doublings"), [(1, 1), (2, 1), (6, 3), (7, 4)])
def test_the_bound_is_tight_for_random_circuits(layers, doublings):
    """Every other layer of a brickwork acts on a given bond."""
    text = brickwork(30, layers, np.random.default_rng(1))
    assert lay_out(read(text, target_of(configuration(30))).body).doublings == doublings


def test_a_gate_on_three_qubits_is_refused():
    """A matrix product state is simulated with gates on two qubits."""
    circuit = QuantumCircuit(3)
    circuit.ccx(0, 1, 2)
    with pytest.raises(JobFailure, match="more than two qubits"):
        lay_out(circuit)
