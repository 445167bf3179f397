"""OpenQASM 3 circuits with rz, sx, x and cx, for a line of qubits such as FakeManilaV2's."""

HEADER = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'
BELL = HEADER + "bit[2] c;\nrz(pi/2) $3; sx $3; rz(pi/2) $3;\ncx $3, $4;\nc[0] = measure $3;\nc[1] = measure $4;\n"
BELL_UNMEASURED = BELL.partition("c[0]")[0]


def brickwork(n_qubits, layers, rng, measured=True):
    """Return a circuit on a line, as text; each layer adds entanglement."""
    lines = [HEADER, f"bit[{n_qubits}] c;"]
    for layer in range(layers):
        for qubit in range(n_qubits):
            lines.append(f"rz({rng.uniform(0, 6):.6f}) ${qubit}; sx ${qubit}; rz({rng.uniform(0, 6):.6f}) ${qubit};")
        for qubit in range(layer % 2, n_qubits - 1, 2):
            first, second = (qubit, qubit + 1) if rng.random() < 0.5 else (qubit + 1, qubit)
            lines.append(f"cx ${first}, ${second};")
    if measured:
        lines += [f"c[{qubit}] = measure ${qubit};" for qubit in range(n_qubits)]
    return "\n".join(lines)


def ghz(n_qubits):
    """Return a circuit that entangles a line of qubits and measures them all, as text."""
    lines = [HEADER, f"bit[{n_qubits}] c;", "rz(pi/2) $0; sx $0; rz(pi/2) $0;"]
    lines += [f"cx ${at}, ${at + 1};" for at in range(n_qubits - 1)]
    return "\n".join(lines + [f"c[{at}] = measure ${at};" for at in range(n_qubits)])


def configuration(n_qubits):
    """Return the configuration of a backend whose qubits form a line."""
    pairs = [[a, b] for a in range(n_qubits) for b in (a - 1, a + 1) if 0 <= b < n_qubits]
    return {
        "n_qubits": n_qubits,
        "basis_gates": ["cx", "rz", "sx", "x"],
        "supported_instructions": ["if_else"],
        "gates": [{"name": "cx", "coupling_map": pairs}],
        "max_shots": 20000,
    }
