"""Circuits: reads OpenQASM 3, checks it against the device and reduces it to the qubits that it uses."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from openqasm3.parser import QASM3ParsingError
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import CircuitInstruction, Clbit, ControlFlowOp, Gate, Instruction, Qubit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.exceptions import QiskitError
from qiskit_qasm3_import import ConversionError

from qrmi_emulator.failure import JobFailure

# A qubit with only these is idle: they leave the state unchanged.
_IDLE = frozenset({"barrier", "delay", "id"})
# Every device has these, whether its configuration lists them or not.
_ALWAYS = frozenset({"barrier", "delay", "id", "measure", "reset"})
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INPUT = re.compile(r"\binput\s+[^;]*?([^\W\d]\w*)\s*;")
_MAX_TEXT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """What a device can do.

    Args:
        n_qubits: its number of qubits.
        names: the instructions that it supports.
        couplings: for each two-qubit gate, the ordered pairs of qubits that it is available on.
        max_shots: the most shots that a pub may ask for.
    """

    n_qubits: int
    names: frozenset[str]
    couplings: Mapping[str, frozenset[tuple[int, ...]]]
    max_shots: int


@dataclass(frozen=True, slots=True)
class Circuit:
    """A circuit over the qubits that it uses.

    Args:
        body: has as many qubits as `active`, and all classical bits and registers of the text.
        active: for each qubit of the body, the device's qubit.
        inputs: the parameters' names, in the order in which the text declares them.
    """

    body: QuantumCircuit
    active: tuple[int, ...]
    inputs: tuple[str, ...]

    def bind(self, values: np.ndarray[Any, Any]) -> QuantumCircuit:
        """Return the body with a value for each of `inputs`."""
        known = {parameter.name: parameter for parameter in self.body.parameters}
        bound = {known[name]: float(v) for name, v in zip(self.inputs, values, strict=True) if name in known}
        circuit: QuantumCircuit = self.body.assign_parameters(bound)
        return circuit


def target_of(configuration: Mapping[str, Any]) -> Target:
    """Return what a device can do, from its configuration."""
    gates = configuration.get("gates", [])
    couplings = {
        gate["name"]: frozenset(tuple(pair) for pair in gate["coupling_map"])
        for gate in gates
        if gate.get("coupling_map") and len(gate["coupling_map"][0]) == 2
    }
    names = {*configuration["basis_gates"], *(configuration.get("supported_instructions") or ()), *_ALWAYS}
    return Target(configuration["n_qubits"], frozenset(names), couplings, int(configuration.get("max_shots", 100_000)))


def read(text: object, target: Target) -> Circuit:
    """Read a circuit and check it against its device.

    Raises:
        JobFailure: it cannot be read, is too wide, or has an instruction that the device does not support.
    """
    if not isinstance(text, str):
        raise JobFailure("The circuit of a pub must be OpenQASM 3 text.")
    if len(text) > _MAX_TEXT:
        raise JobFailure(f"The circuit's text has {len(text)} characters; the limit is {_MAX_TEXT}.")
    try:
        circuit = qasm3.loads(text)
    except (QASM3ParsingError, QiskitError, ConversionError) as error:
        detail = str(error).strip() or "it has a syntax error"
        raise JobFailure(f"The OpenQASM 3 text cannot be read: {detail}") from error
    except RecursionError as error:
        raise JobFailure("The OpenQASM 3 text cannot be read: it is nested too deeply.") from error
    if circuit.num_qubits > target.n_qubits:
        raise JobFailure(f"The circuit uses {circuit.num_qubits} qubits; the backend has {target.n_qubits}.")
    inputs = tuple(_INPUT.findall(_COMMENT.sub("", text)))
    _check(circuit, tuple(range(circuit.num_qubits)), target)
    return _reduced(circuit, inputs)


def _check(circuit: QuantumCircuit, qubits: Sequence[int], target: Target) -> None:
    """Check every instruction, also in nested blocks; `qubits` are the device's."""
    index = {bit: qubits[position] for position, bit in enumerate(circuit.qubits)}
    for instruction in circuit.data:
        name = instruction.operation.name
        where = tuple(index[bit] for bit in instruction.qubits)
        pairs = target.couplings.get(name)
        if name not in target.names or (pairs is not None and where not in pairs):
            raise JobFailure(
                f"The instruction {name} on qubits {where} is not supported by the target system. "
                "Transpile the circuit for this backend."
            )
        if isinstance(instruction.operation, ControlFlowOp):
            for block in instruction.operation.blocks:
                _check(block, where, target)


def _reduced(circuit: QuantumCircuit, inputs: tuple[str, ...]) -> Circuit:
    index = {bit: position for position, bit in enumerate(circuit.qubits)}
    used = {index[bit] for item in circuit.data if item.operation.name not in _IDLE for bit in item.qubits}
    active = tuple(sorted(used))
    body = QuantumCircuit([Qubit() for _ in active], list(circuit.clbits))
    for register in circuit.cregs:
        body.add_register(register)
    place = {circuit.qubits[old]: body.qubits[new] for new, old in enumerate(active)}
    for item in circuit.data:
        qubits = [place[bit] for bit in item.qubits if bit in place]
        if item.operation.name == "barrier" or len(qubits) < len(item.qubits):
            continue  # barriers have no effect on a simulation, and the others act on idle qubits
        body.append(CircuitInstruction(_standard(item.operation), qubits, item.clbits))
    return Circuit(body, active, inputs)


def _standard(operation: Instruction) -> Instruction:
    """Return Qiskit's own gate for a gate that the text defines under its name: a device knows gates by name."""
    if isinstance(operation, ControlFlowOp):
        return operation.replace_blocks([_standard_block(block) for block in operation.blocks])
    if not isinstance(operation, Gate):
        return operation
    known = _standard_gates().get(operation.name)
    if known is None or known.num_qubits != operation.num_qubits or isinstance(operation, type(known)):
        return operation
    return type(known)(*operation.params)


def _standard_block(block: QuantumCircuit) -> QuantumCircuit:
    copy = block.copy_empty_like()
    for item in block.data:
        if item.operation.name != "barrier":
            copy.append(CircuitInstruction(_standard(item.operation), item.qubits, item.clbits))
    return copy


@cache
def _standard_gates() -> Mapping[str, Instruction]:
    gates: Mapping[str, Instruction] = get_standard_gate_name_mapping()
    return gates


def has_late_effects(circuit: QuantumCircuit) -> bool:
    """Tell whether anything follows a measurement on the same qubit, depends on a measurement, or resets a qubit."""
    measured: set[Qubit] = set()
    for item in circuit.data:
        if isinstance(item.operation, ControlFlowOp) or item.operation.name in {"reset", "store"}:
            return True
        if any(bit in measured for bit in item.qubits):
            return True
        if item.operation.name == "measure":
            measured.update(item.qubits)
    return False


def measurements(circuit: QuantumCircuit) -> dict[int, int]:
    """Return, for each measured classical bit, the qubit that it is measured from."""
    qubits = _positions(circuit.qubits)
    clbits = _positions(circuit.clbits)
    return {clbits[item.clbits[0]]: qubits[item.qubits[0]] for item in circuit.data if item.operation.name == "measure"}


def _positions(bits: Iterable[Qubit | Clbit]) -> dict[Any, int]:
    return {bit: position for position, bit in enumerate(bits)}
