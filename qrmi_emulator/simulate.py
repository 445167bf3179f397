"""Simulations: the outcome of a circuit, by the method that suits it.

Few qubits: Aer, with the device's noise or without. Clifford gates only: Aer's stabilizer method, any width. Wide
with little entanglement: a matrix product state. Anything else fails, with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ControlFlowOp
from qiskit.circuit.library import SdgGate, SGate, ZGate
from qiskit.quantum_info import Pauli
from qiskit_aer import AerSimulator
from qiskit_aer.backends.backendproperties import AerBackendProperties
from qiskit_aer.noise import NoiseModel
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from qrmi_emulator.blocks import Step, Unrouted, unroute
from qrmi_emulator.circuits import Circuit, has_late_effects, measurements
from qrmi_emulator.failure import JobFailure
from qrmi_emulator.mps import MatrixProductState, best_order

Array = np.ndarray[Any, Any]

# A density matrix of 10 qubits takes 16 MiB, and a gate on it some milliseconds.
NOISE_MAX_QUBITS = 10
# A state vector of 20 qubits takes 16 MiB; one of 26 takes 1 GiB, and a second for each gate.
_VECTOR_QUBITS = 20
_VECTOR_MAX_QUBITS = 26
_SEED_BELOW = 2**31

_CLIFFORD = frozenset({"cx", "cy", "cz", "ecr", "h", "id", "s", "sdg", "swap", "sx", "sxdg", "x", "y", "z"})
_NO_GATE = frozenset({"measure", "reset", "delay", "barrier"})
_QUARTER_TURNS = {1: SGate, 2: ZGate, 3: SdgGate}
_ANGLE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Simulator:
    """Runs circuits of one device.

    Args:
        properties: the device's calibration, for its noise; None simulates without noise.
        rng: draws seeds and samples.
        log: takes a line for the job's log.
    """

    properties: Mapping[str, Any] | None
    rng: np.random.Generator
    log: Callable[[str], None]

    def sample(self, circuit: Circuit, values: Array, shots: int) -> Array:
        """Return the classical bits of each shot: booleans, one row a shot, one column a bit.

        Raises:
            JobFailure: the circuit cannot be simulated.
        """
        body = circuit.bind(values)
        if not circuit.active:
            return np.zeros((shots, body.num_clbits), dtype=bool)
        noise = self._noise_model(circuit)
        if noise is None and body.num_qubits > _VECTOR_QUBITS and not has_late_effects(body):
            clifford = _as_clifford(body)
            if clifford is None and (bits := self._sample_mps(body, shots)) is not None:
                return bits
        result = self._run_aer(body, noise, shots, memory=True)
        return _bits(result.data(0).get("memory", ["0x0"] * shots), body.num_clbits)

    def expectations(self, circuit: Circuit, values: Array, paulis: Sequence[str], shots: int) -> Array:
        """Return the exact expectation value of each Pauli string, which has a letter for each active qubit.

        With noise it is that of the noisy state. A circuit that measures on its way is averaged over `shots`.

        Raises:
            JobFailure: the circuit cannot be simulated.
        """
        body = circuit.bind(values)
        if not circuit.active:
            return np.ones(len(paulis))
        late = has_late_effects(body) or bool(measurements(body))
        noise = self._noise_model(circuit)
        wide = noise is None and body.num_qubits > _VECTOR_QUBITS and not late and _as_clifford(body) is None
        if wide and (found := self._mps(body)) is not None:
            state, wire_of = found
            letters = [{wire_of[i]: p for i, p in enumerate(reversed(pauli)) if p != "I"} for pauli in paulis]
            return np.array([state.expectation(letter) for letter in letters])
        observed = body.copy()
        for number, pauli in enumerate(paulis):
            observed.save_expectation_value(Pauli(pauli), range(body.num_qubits), label=f"p{number}")
        data = self._run_aer(observed, noise, shots if late else 1).data(0)
        return np.real(np.array([data[f"p{number}"] for number in range(len(paulis))]))

    def _noise_model(self, circuit: Circuit) -> NoiseModel | None:
        if self.properties is None or not circuit.active or len(circuit.active) > NOISE_MAX_QUBITS:
            return None
        reduced = reduced_properties(self.properties, circuit.active)
        return NoiseModel.from_backend_properties(AerBackendProperties.from_dict(reduced))

    def _run_aer(self, body: QuantumCircuit, noise: NoiseModel | None, shots: int, memory: bool = False) -> Any:
        n_qubits = body.num_qubits
        options: dict[str, Any] = {"seed_simulator": int(self.rng.integers(_SEED_BELOW))}
        if noise is not None:
            options |= {"method": "density_matrix", "noise_model": noise}
        elif n_qubits <= _VECTOR_QUBITS:
            options |= {"method": "statevector"}
        elif (clifford := _as_clifford(body)) is not None:
            body = clifford
            options |= {"method": "stabilizer"}
        elif n_qubits <= _VECTOR_MAX_QUBITS:
            options |= {"method": "statevector"}
        else:
            raise JobFailure(
                f"The circuit is too wide for the emulator: {n_qubits} qubits that are measured or reset on the "
                f"way, and gates that are not Clifford; it takes up to {_VECTOR_MAX_QUBITS} of those."
            )
        how = options["method"] + (" with the device's noise" if noise is not None else ", without noise")
        self.log(f"Simulating {n_qubits} qubits: {how}.")
        result = AerSimulator(**options).run(body, shots=shots, memory=memory).result()
        if not result.success:
            detail = result.results[0].status if result.results else result.status
            raise JobFailure(f"The simulation failed: {detail}")
        return result

    def _sample_mps(self, body: QuantumCircuit, shots: int) -> Array | None:
        found = self._mps(body)
        if found is None:
            return None
        state, wire_of = found
        bits = np.zeros((shots, body.num_clbits), dtype=bool)
        sources = measurements(body)
        columns = state.columns(wire_of[qubit] for qubit in sources.values())
        bits[:, list(sources)] = state.sample(shots, self.rng)[:, columns]
        return bits

    def _mps(self, body: QuantumCircuit) -> tuple[MatrixProductState, tuple[int, ...]] | None:
        """Return the state after all gates, and each qubit's wire in it.

        None where a state vector does and the state is too entangled.
        """
        index = {bit: at for at, bit in enumerate(body.qubits)}
        items = [item for item in body.data if item.operation.name not in _NO_GATE]
        if any(len(item.qubits) > 2 for item in items):
            raise JobFailure("The circuit is wide and has gates of more than two qubits.")
        gates = [Step(item.operation.to_matrix(), tuple(index[bit] for bit in item.qubits)) for item in items]
        circuit = unroute(body.num_qubits, gates)
        order = best_order(body.num_qubits, circuit.pairs, _orders(body, circuit))
        state = MatrixProductState(order)
        try:
            for step in circuit.steps:
                state.apply(step.matrix, step.wires)
        except JobFailure:
            if body.num_qubits <= _VECTOR_MAX_QUBITS:
                return None
            raise
        self.log(
            f"Simulating {body.num_qubits} qubits: matrix product state, bond dimension {state.max_bond}, "
            "without noise."
        )
        return state, circuit.wire_of


def reduced_properties(properties: Mapping[str, Any], active: Sequence[int]) -> dict[str, Any]:
    """Return a device's calibration for some of its qubits only, numbered anew."""
    place = {qubit: at for at, qubit in enumerate(active)}
    gates = [
        gate | {"qubits": [place[qubit] for qubit in gate["qubits"]]}
        for gate in properties["gates"]
        if all(qubit in place for qubit in gate["qubits"])
    ]
    reduced = {key: value for key, value in properties.items() if key != "general_qlists"}
    return reduced | {"qubits": [properties["qubits"][qubit] for qubit in active], "gates": gates, "general": []}


def _orders(body: QuantumCircuit, circuit: Unrouted) -> list[list[int]]:
    """Return orders of the wires in which neighbours are likely to be close."""
    n_wires = body.num_qubits
    # The order of the classical bits is often that of the circuit before it was laid out on the device.
    measured = list(dict.fromkeys(circuit.wire_of[qubit] for _, qubit in sorted(measurements(body).items())))
    rest = [wire for wire in range(n_wires) if wire not in set(measured)]
    orders = [list(range(n_wires)), measured + rest]
    if circuit.pairs:
        rows, columns = zip(*circuit.pairs, strict=True)
        graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n_wires, n_wires)).tocsr()
        orders.append([int(at) for at in reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True)])
    return orders


def _as_clifford(body: QuantumCircuit) -> QuantumCircuit | None:
    """Return the circuit in Clifford gates; None where it has others."""
    copy = body.copy_empty_like()
    for item in body.data:
        operation = item.operation
        if isinstance(operation, ControlFlowOp):
            return None
        if operation.name in {"rz", "p", "u1"}:
            turns = float(operation.params[0]) / (pi / 2)
            if abs(turns - round(turns)) > _ANGLE_TOLERANCE:
                return None
            gate = _QUARTER_TURNS.get(round(turns) % 4)
            if gate is not None:
                copy.append(gate(), item.qubits)
        elif operation.name in _CLIFFORD or operation.name in _NO_GATE or operation.name.startswith("save_"):
            copy.append(item)
        else:
            return None
    return copy


def _bits(memory: Sequence[str], n_bits: int) -> Array:
    """Return Aer's hexadecimal shots as booleans, the lowest bit first."""
    size = (n_bits + 7) // 8
    raw = b"".join(int(shot, 16).to_bytes(size, "little") for shot in memory)
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(len(memory), size)
    return np.unpackbits(rows, axis=1, bitorder="little")[:, :n_bits].astype(bool)
