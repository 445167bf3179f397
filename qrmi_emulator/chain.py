"""The chain: a circuit laid out on a line of qubits, for a matrix product state.

Aer swaps distant qubits together and leaves them where they end up, which entangles more and more of them: one layer of
gates on a device's 127 qubits did not finish within minutes. On this chain it takes a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Gate
from qiskit.circuit.library import SwapGate, UnitaryGate
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from qrmi_emulator.blocks import Step, Unrouted, unroute
from qrmi_emulator.circuits import measurements
from qrmi_emulator.failure import JobFailure


@dataclass(frozen=True, slots=True)
class Chain:
    """A circuit on a chain.

    Args:
        circuit: its two-qubit gates all act on neighbors.
        doublings: the bond dimension of its states is at most 2 to the power of this.
    """

    circuit: QuantumCircuit
    doublings: int


def lay_out(circuit: QuantumCircuit) -> Chain:
    """Return an equivalent circuit on a chain.

    Args:
        circuit: nothing follows its measurements, and what it saves is its final state.

    Raises:
        JobFailure: it has a gate on more than two qubits.
    """
    index = {bit: position for position, bit in enumerate(circuit.qubits)}
    gates: list[Step] = []
    others: list[CircuitInstruction] = []
    for item in circuit.data:
        if not isinstance(item.operation, Gate):
            others.append(item)
        elif len(item.qubits) > 2:
            raise JobFailure("The circuit is too wide for the emulator to run a gate on more than two qubits.")
        else:
            gates.append(Step(item.operation.to_matrix(), tuple(index[bit] for bit in item.qubits)))
    unrouted = unroute(circuit.num_qubits, gates)
    doublings, order = _best_order(circuit, unrouted)
    site_of = {wire: site for site, wire in enumerate(order)}
    chain = circuit.copy_empty_like()
    for step in unrouted.steps:
        _append(chain, step, [site_of[wire] for wire in step.wires])
    for item in others:
        chain.append(item.operation, [site_of[unrouted.wire_of[index[bit]]] for bit in item.qubits], item.clbits)
    return Chain(chain, doublings)


def _append(chain: QuantumCircuit, step: Step, sites: Sequence[int]) -> None:
    """Append a gate; distant qubits are swapped together and back again."""
    left, right = min(sites), max(sites)
    swaps = [(site, site + 1) for site in range(left + 1, right)]
    for pair in reversed(swaps):
        chain.append(SwapGate(), pair)
    together = [left + (site != left) for site in sites]
    chain.append(UnitaryGate(step.matrix, check_input=False), together)
    for pair in swaps:
        chain.append(SwapGate(), pair)


def _best_order(circuit: QuantumCircuit, unrouted: Unrouted) -> tuple[int, list[int]]:
    """Return how often a bond dimension may double, and the order of the wires that keeps it lowest.

    Between such orders, the one with the fewest doublings in total is best.
    """
    weights = [round(log2(step.rank)) for step in unrouted.entangling]

    def cost(order: Sequence[int]) -> tuple[int, int]:
        site = {wire: at for at, wire in enumerate(order)}
        doublings: np.ndarray[Any, Any] = np.zeros(len(order), dtype=int)  # of the bond to the right of each site
        for step, weight in zip(unrouted.entangling, weights, strict=True):
            left, right = sorted(site[wire] for wire in step.wires)
            doublings[left:right] += weight
        size = np.arange(1, len(order) + 1)
        limit = np.minimum(size, size[::-1] - 1)  # what the qubits on the smaller side can hold
        return int(np.minimum(doublings, limit).max()), int(doublings.sum())

    best = min(_orders(circuit, unrouted), key=cost)
    return cost(best)[0], best


def _orders(circuit: QuantumCircuit, unrouted: Unrouted) -> list[list[int]]:
    """Return some orders of the wires that are likely to keep neighbors close."""
    n_wires = circuit.num_qubits
    # Classical bits are often numbered like the qubits of the circuit before it was laid out on the device.
    measured = list(dict.fromkeys(unrouted.wire_of[qubit] for _, qubit in sorted(measurements(circuit).items())))
    rest = [wire for wire in range(n_wires) if wire not in set(measured)]
    orders = [list(range(n_wires)), measured + rest]
    if unrouted.entangling:
        rows, columns = zip(*(step.wires for step in unrouted.entangling), strict=True)
        graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n_wires, n_wires)).tocsr()
        orders.append([int(at) for at in reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True)])
    return orders
