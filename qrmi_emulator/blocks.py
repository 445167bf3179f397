"""Blocks: a circuit's gates merged by pairs of qubits, without the swaps that routing added.

Routing a circuit onto a device moves its qubits around. Undoing that restores the neighbors that the user wrote, and
with them the low entanglement that a matrix product state needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_SWAP = np.eye(4, dtype=complex)[[0, 2, 1, 3]]
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Step:
    """A gate, or the product of several.

    Args:
        matrix: in Qiskit's convention: the first wire is the lowest bit.
        wires: one or two.
    """

    matrix: Array
    wires: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The Schmidt rank of a two-wire step: 2 for CX, 4 for SWAP. No bond dimension grows by more than this."""
        return int(np.count_nonzero(_schmidt(self.matrix)[1] > _TOLERANCE))


@dataclass(frozen=True, slots=True)
class Unrouted:
    """A circuit without its swaps.

    Args:
        steps: its gates.
        wire_of: for each qubit, the wire that it ends up on.
    """

    steps: tuple[Step, ...]
    wire_of: tuple[int, ...]

    @property
    def entangling(self) -> list[Step]:
        """The steps on two wires."""
        return [step for step in self.steps if len(step.wires) == 2]


@dataclass(slots=True)
class _Block:
    first: int
    second: int
    matrix: Array = field(default_factory=lambda: np.eye(4, dtype=complex))


def unroute(n_qubits: int, gates: Sequence[Step]) -> Unrouted:
    """Return an equivalent circuit with fewer steps: swapping two qubits relabels their wires instead."""
    blocks, rest = _merge(n_qubits, gates)
    wire_of = list(range(n_qubits))
    steps: list[Step] = []
    for block in blocks:
        matrix = block.matrix
        unswapped = matrix @ _SWAP
        if _entropy(unswapped) < _entropy(matrix) - _TOLERANCE:
            wire_of[block.first], wire_of[block.second] = wire_of[block.second], wire_of[block.first]
            matrix = unswapped
        steps += _steps(matrix, wire_of[block.first], wire_of[block.second])
    steps += [Step(matrix, (wire_of[qubit],)) for qubit, matrix in enumerate(rest)]
    return Unrouted(tuple(steps), tuple(wire_of))


def _merge(n_qubits: int, gates: Sequence[Step]) -> tuple[list[_Block], list[Array]]:
    """Return the merged two-qubit gates, in circuit order, and a one-qubit gate to apply to each qubit at the end."""
    blocks: list[_Block] = []
    latest: list[_Block | None] = [None] * n_qubits
    single = [np.eye(2, dtype=complex) for _ in range(n_qubits)]  # of qubits without a two-qubit gate so far
    for gate in gates:
        if len(gate.wires) == 1:
            (qubit,) = gate.wires
            block = latest[qubit]
            if block is None:
                single[qubit] = gate.matrix @ single[qubit]
            else:
                block.matrix = _extended(gate.matrix, qubit == block.first) @ block.matrix
            continue
        first, second = gate.wires
        block = latest[first]
        if block is None or block is not latest[second]:
            block = _Block(first, second, np.kron(single[second], single[first]))
            single[first] = single[second] = np.eye(2, dtype=complex)
            blocks.append(block)
            latest[first] = latest[second] = block
        same_order = first == block.first
        block.matrix = (gate.matrix if same_order else _SWAP @ gate.matrix @ _SWAP) @ block.matrix
    return blocks, single


def _extended(matrix: Array, is_first: bool) -> Array:
    """Return a one-qubit gate as a two-qubit gate."""
    identity = np.eye(2, dtype=complex)
    return np.kron(identity, matrix) if is_first else np.kron(matrix, identity)


def _schmidt(matrix: Array) -> tuple[Array, Array, Array]:
    """Return a gate's Schmidt decomposition: operators on the second wire, weights, operators on the first."""
    apart = matrix.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    u, weights, v = np.linalg.svd(apart)
    return u, weights, v


def _entropy(matrix: Array) -> float:
    """Return how much a gate entangles: 0 for a product, 1 for CX, 2 for SWAP."""
    weights = _schmidt(matrix)[1] ** 2 / 4
    weights = weights[weights > _TOLERANCE]
    return float(-(weights * np.log2(weights)).sum())


def _steps(matrix: Array, first: int, second: int) -> list[Step]:
    """Return a two-qubit gate as one step, or as two if it is a product."""
    u, weights, v = _schmidt(matrix)
    if weights[1] > _TOLERANCE:
        return [Step(matrix, (first, second))]
    scale = weights[0] ** 0.5
    return [Step(v[0].reshape(2, 2) * scale, (first,)), Step(u[:, 0].reshape(2, 2) * scale, (second,))]
