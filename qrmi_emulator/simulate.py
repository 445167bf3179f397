"""Simulations: a circuit's outcome, by the Aer method that suits it.

A few qubits: a density matrix with the device's noise, or a state vector without. Only Clifford gates: a stabilizer
state, of any width. Wide with little entanglement: a matrix product state. Any other circuit fails with a reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Clbit, ControlFlowOp
from qiskit.circuit.library import SdgGate, SGate, ZGate
from qiskit.quantum_info import Pauli
from qiskit_aer import AerSimulator
from qiskit_aer.backends.backendproperties import AerBackendProperties
from qiskit_aer.noise import NoiseModel

from qrmi_emulator.chain import lay_out
from qrmi_emulator.circuits import Circuit, has_late_effects, measurements
from qrmi_emulator.failure import JobFailure

Array = np.ndarray[Any, Any]

# A density matrix of 10 qubits takes 16 MiB, and a gate on it some milliseconds.
NOISE_MAX_QUBITS = 10
# A state vector of 20 qubits takes 16 MiB; one of 26 takes 1 GiB, and each gate a second.
_VECTOR_QUBITS = 20
_VECTOR_MAX_QUBITS = 26
# Up to this many doublings of its bond dimension, a matrix product state is faster than a state vector.
_VECTOR_DOUBLINGS = 6
_MPS_OPTIONS = {
    "method": "matrix_product_state",
    # The squared weight that is dropped at a bond: what double precision cannot tell from 0. There is no other limit:
    # results are exact, and the job's time and memory limits stop a circuit that is too entangled.
    "matrix_product_state_truncation_threshold": 1e-14,
    # The default algorithm copies the state for each shot, which is ten times slower.
    "mps_sample_measure_algorithm": "mps_probabilities",
    # Aer refuses circuits by its estimate, in MiB, which takes every gate as maximally entangling: no limit.
    "max_memory_mb": 2**44,
}
_SEED_BELOW = 2**31

_CLIFFORD = frozenset({"cx", "cy", "cz", "ecr", "h", "id", "s", "sdg", "swap", "sx", "sxdg", "x", "y", "z"})
_NO_GATE = frozenset({"measure", "reset", "delay", "barrier"})
_QUARTER_TURNS = {1: SGate, 2: ZGate, 3: SdgGate}
_ANGLE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Simulator:
    """Runs circuits for one device.

    Args:
        properties: the device's calibration, for its noise; None simulates without noise.
        rng: draws seeds and samples.
        log: takes a line for the job's log.
    """

    properties: Mapping[str, Any] | None
    rng: np.random.Generator
    log: Callable[[str], None]

    def sample(self, circuit: Circuit, values: Array, shots: int) -> Array:
        """Return the classical bits of each shot: booleans, one row per shot, one column per bit.

        Raises:
            JobFailure: the circuit cannot be simulated.
        """
        body = circuit.bind(values)
        if not circuit.active:
            return np.zeros((shots, body.num_clbits), dtype=bool)
        data = self._run(body, self._noise_model(circuit), shots, memory=True)
        return _bits(data.get("memory", ["0x0"] * shots), body.num_clbits)

    def expectations(self, circuit: Circuit, values: Array, paulis: Sequence[str], shots: int) -> Array:
        """Return the exact expectation value of each Pauli string, which has a letter for each active qubit.

        With noise it is that of the noisy state. A circuit with measurements is averaged over `shots`.

        Raises:
            JobFailure: the circuit cannot be simulated.
        """
        body = circuit.bind(values)
        if not circuit.active:
            return np.ones(len(paulis))
        is_random = has_late_effects(body) or bool(measurements(body))
        observed = body.copy()
        for number, pauli in enumerate(paulis):
            observed.save_expectation_value(Pauli(pauli), range(body.num_qubits), label=f"p{number}")
        data = self._run(observed, self._noise_model(circuit), shots if is_random else 1)
        return np.real(np.array([data[f"p{number}"] for number in range(len(paulis))]))

    def _noise_model(self, circuit: Circuit) -> NoiseModel | None:
        if self.properties is None or len(circuit.active) > NOISE_MAX_QUBITS:
            return None
        reduced = reduced_properties(self.properties, circuit.active)
        return NoiseModel.from_backend_properties(AerBackendProperties.from_dict(reduced))

    def _run(self, body: QuantumCircuit, noise: NoiseModel | None, shots: int, memory: bool = False) -> dict[str, Any]:
        """Return what Aer returns as data.

        Raises:
            JobFailure: the circuit cannot be simulated.
        """
        n_qubits = body.num_qubits
        options: dict[str, Any] = {"method": "statevector"}
        how = "statevector, without noise"
        if noise is not None:
            options = {"method": "density_matrix", "noise_model": noise}
            how = "density_matrix with the device's noise"
        elif n_qubits > _VECTOR_QUBITS and (clifford := _as_clifford(body)) is not None:
            body, options = clifford, {"method": "stabilizer"}
            how = "stabilizer, without noise"
        elif n_qubits > _VECTOR_QUBITS and not has_late_effects(body):
            chain = lay_out(body)
            if n_qubits > _VECTOR_MAX_QUBITS or chain.doublings <= _VECTOR_DOUBLINGS:
                body, options = _fully_measured(chain.circuit), _MPS_OPTIONS
                how = f"matrix product state, bond dimension at most 2^{chain.doublings}, without noise"
        elif n_qubits > _VECTOR_MAX_QUBITS:
            raise JobFailure(
                f"The circuit is too wide for the emulator: it has {n_qubits} qubits, measures or resets some before "
                f"its end, and has gates that are not Clifford; the limit for such circuits is {_VECTOR_MAX_QUBITS}."
            )
        self.log(f"Simulating {n_qubits} qubits: {how}.")
        options = {"seed_simulator": int(self.rng.integers(_SEED_BELOW)), **options}
        result = AerSimulator(**options).run(body, shots=shots, memory=memory).result()
        if not result.success:
            detail = result.results[0].status if result.results else result.status
            raise JobFailure(f"The simulation failed: {detail}")
        data: dict[str, Any] = result.data(0)
        return data


def reduced_properties(properties: Mapping[str, Any], active: Sequence[int]) -> dict[str, Any]:
    """Return a device's calibration for some of its qubits, renumbered."""
    place = {qubit: at for at, qubit in enumerate(active)}
    gates = [
        gate | {"qubits": [place[qubit] for qubit in gate["qubits"]]}
        for gate in properties["gates"]
        if all(qubit in place for qubit in gate["qubits"])
    ]
    reduced = {key: value for key, value in properties.items() if key != "general_qlists"}
    return reduced | {"qubits": [properties["qubits"][qubit] for qubit in active], "gates": gates, "general": []}


def _as_clifford(body: QuantumCircuit) -> QuantumCircuit | None:
    """Return the circuit in Clifford gates; None if it has others."""
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


def _fully_measured(circuit: QuantumCircuit) -> QuantumCircuit:
    """Return a circuit that also measures its other qubits, into bits behind its own, if it measures any.

    Aer only samples quickly if it samples every qubit.
    """
    measured = set(measurements(circuit).values())
    rest = [qubit for qubit in range(circuit.num_qubits) if qubit not in measured]
    if not measured or not rest:
        return circuit
    n_bits = circuit.num_clbits
    copy = circuit.copy()
    copy.add_bits([Clbit() for _ in rest])
    copy.measure(rest, range(n_bits, n_bits + len(rest)))
    return copy


def _bits(memory: Sequence[str], n_bits: int) -> Array:
    """Return the first bits of Aer's hexadecimal shots as booleans, lowest bit first."""
    size = (n_bits + 7) // 8
    raw = b"".join((int(shot, 16) & ((1 << n_bits) - 1)).to_bytes(size, "little") for shot in memory)
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(len(memory), size)
    return np.unpackbits(rows, axis=1, bitorder="little")[:, :n_bits].astype(bool)
