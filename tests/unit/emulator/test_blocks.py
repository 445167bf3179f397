"""Undoing a circuit's routing."""

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit.library import PermutationGate, UnitaryGate
from qiskit.quantum_info import Statevector

from qrmi_emulator.blocks import Step, unroute


@pytest.mark.parametrize("seed", range(5))
def test_removing_swaps_keeps_the_state(seed):
    """A routed circuit without its swaps gives the same state, with its qubits on other wires."""
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
    assert len(found.entangling) <= sum(item.operation.name in {"cx", "cz"} for item in circuit.data)
