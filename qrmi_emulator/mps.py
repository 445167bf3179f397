"""A matrix product state: the state of a wide circuit with little entanglement.

Aer has one too. Its own singular value decomposition did not end within minutes on the circuits that matter most
here, a linear ansatz over all qubits of a device, and with LAPACK it crashed (Aer 0.18); NumPy's takes a tenth of
a second.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qrmi_emulator.failure import JobFailure

Array = np.ndarray[Any, Any]

# Squared weight that is dropped at a bond: below what double precision can tell from 0.
_CUTOFF = 1e-14
# A decomposition at this bond takes seconds, and there is one for each gate of two qubits.
_MAX_BOND = 512
_SAMPLES_AT_ONCE = 2048  # keeps the sampler's memory at 2048 * bond * 32 bytes

_SWAP = np.eye(4, dtype=complex)[[0, 2, 1, 3]].reshape(2, 2, 2, 2)
PAULIS: Mapping[str, Array] = {
    "X": np.array([[0, 1], [1, 0]], dtype=complex),
    "Y": np.array([[0, -1j], [1j, 0]], dtype=complex),
    "Z": np.array([[1, 0], [0, -1]], dtype=complex),
}


class MatrixProductState:
    """Qubits in a line, all 0 at first.

    Args:
        order: the qubits in the order in which they stand; those that act on each other should be close.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self._site = {qubit: site for site, qubit in enumerate(order)}
        zero = np.zeros((1, 2, 1), dtype=complex)
        zero[0, 0, 0] = 1.0
        self._tensors = [zero.copy() for _ in order]
        self._centre = 0  # left of it the tensors are left-orthonormal, right of it right-orthonormal
        self.max_bond = 1

    def apply(self, matrix: Array, qubits: Sequence[int]) -> None:
        """Apply a gate of one or two qubits; `matrix` is as Qiskit has it, the first qubit the lowest bit.

        Raises:
            JobFailure: the state gets too entangled.
        """
        sites = [self._site[qubit] for qubit in qubits]
        if len(sites) == 1:
            self._tensors[sites[0]] = np.einsum("ab,lbr->lar", matrix, self._tensors[sites[0]])
            return
        first, second = sites
        # Qiskit's index is (second, first); here the left site comes first.
        gate = matrix.reshape(2, 2, 2, 2)
        if first < second:
            gate = gate.transpose(1, 0, 3, 2)
        left, right = min(sites), max(sites)
        for site in range(right - 1, left, -1):
            self._apply_pair(site, _SWAP)
        self._apply_pair(left, gate)
        for site in range(left + 1, right):
            self._apply_pair(site, _SWAP)

    def sample(self, shots: int, rng: np.random.Generator) -> Array:
        """Return measurements of all qubits: booleans, one row a shot, one column a qubit of `order`."""
        self._move_centre(0)
        rows = [self._sample(min(_SAMPLES_AT_ONCE, shots - at), rng) for at in range(0, shots, _SAMPLES_AT_ONCE)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self._tensors)), dtype=bool)

    def columns(self, qubits: Iterable[int]) -> list[int]:
        """Return the columns of `sample` for some qubits."""
        return [self._site[qubit] for qubit in qubits]

    def expectation(self, paulis: Mapping[int, str]) -> float:
        """Return the expectation value of a product of Pauli operators, given for each qubit that has one."""
        at = {self._site[qubit]: PAULIS[pauli] for qubit, pauli in paulis.items()}
        if not at:
            return 1.0
        # Orthonormal tensors left of the first operator and right of the last one contract to the identity.
        first, last = min(at), max(at)
        self._move_centre(first)
        block = np.eye(self._tensors[first].shape[0], dtype=complex)
        for site in range(first, last + 1):
            tensor = self._tensors[site]
            acted = tensor if site not in at else np.einsum("ab,lbr->lar", at[site], tensor)
            half = np.tensordot(block, acted, (1, 0))
            block = np.tensordot(tensor.conj(), half, ((0, 1), (0, 1)))
        return float(np.real(np.trace(block)))

    def _apply_pair(self, site: int, gate: Array) -> None:
        """Apply a gate to a site and its right neighbour; indices of `gate`: left, right, left, right."""
        self._move_centre(site if self._centre <= site else min(self._centre, site + 1))
        pair = np.tensordot(self._tensors[site], self._tensors[site + 1], (2, 0))
        pair = np.einsum("abcd,lcdr->labr", gate, pair)
        left, _, _, right = pair.shape
        u, weights, v = np.linalg.svd(pair.reshape(left * 2, 2 * right), full_matrices=False)
        dropped = np.cumsum((weights**2)[::-1])[::-1]
        bond = max(1, int(np.count_nonzero(dropped > _CUTOFF)))
        if bond > _MAX_BOND:
            raise JobFailure(
                f"The circuit is too entangled for the emulator: {len(self._tensors)} qubits that need a bond "
                f"dimension over {_MAX_BOND}."
            )
        self.max_bond = max(self.max_bond, bond)
        weights = weights[:bond] / np.linalg.norm(weights[:bond])
        self._tensors[site] = u[:, :bond].reshape(left, 2, bond)
        self._tensors[site + 1] = (weights[:, None] * v[:bond]).reshape(bond, 2, right)
        self._centre = site + 1

    def _move_centre(self, site: int) -> None:
        while self._centre < site:
            at = self._centre
            left, _, right = self._tensors[at].shape
            q, r = np.linalg.qr(self._tensors[at].reshape(left * 2, right))
            self._tensors[at] = q.reshape(left, 2, -1)
            self._tensors[at + 1] = np.tensordot(r, self._tensors[at + 1], (1, 0))
            self._centre += 1
        while self._centre > site:
            at = self._centre
            left, _, right = self._tensors[at].shape
            q, r = np.linalg.qr(self._tensors[at].reshape(left, 2 * right).conj().T)
            self._tensors[at] = q.conj().T.reshape(-1, 2, right)
            self._tensors[at - 1] = np.tensordot(self._tensors[at - 1], r.conj().T, (2, 0))
            self._centre -= 1

    def _sample(self, shots: int, rng: np.random.Generator) -> Array:
        bits = np.zeros((shots, len(self._tensors)), dtype=bool)
        rows = np.ones((shots, 1), dtype=complex)  # each shot's state, given the bits drawn so far
        for site, tensor in enumerate(self._tensors):
            both = np.tensordot(rows, tensor, (1, 0))
            weights = (np.abs(both) ** 2).sum(axis=2)
            ones = rng.random(shots) * weights.sum(axis=1) < weights[:, 1]
            bits[:, site] = ones
            rows = both[np.arange(shots), ones.astype(int)]
            rows /= np.linalg.norm(rows, axis=1)[:, None]
        return bits


def best_order(n_qubits: int, pairs: Sequence[tuple[int, int]], candidates: Iterable[Sequence[int]]) -> list[int]:
    """Return the candidate in which gates cross the fewest bonds, at their worst bond first, then in all."""

    def cost(order: Sequence[int]) -> tuple[int, int]:
        site = {qubit: at for at, qubit in enumerate(order)}
        crossings = np.zeros(n_qubits + 1, dtype=int)
        for one, other in pairs:
            low, high = sorted((site[one], site[other]))
            crossings[low:high] += 1
        return int(crossings.max()), int(crossings.sum())

    return min((list(candidate) for candidate in candidates), key=cost)
