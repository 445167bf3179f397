"""Measure a Bell pair on the first of the job's QPUs. Nothing here depends on Slurm."""

from qiskit.circuit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from qrmi import QRMIService
from qrmi.primitives.ibm import SamplerV2, get_backend

SHOTS = 1000

qpu = QRMIService().resources()[0]

bell = QuantumCircuit(2)
bell.h(0)
bell.cx(0, 1)
bell.measure_all()

for_this_qpu = generate_preset_pass_manager(optimization_level=1, backend=get_backend(qpu))
job = SamplerV2(qpu).run([for_this_qpu.run(bell)], shots=SHOTS)
counts = job.result()[0].data.meas.get_counts()

outcomes = " ".join(f"{bits}={counts.get(bits, 0)}" for bits in ("00", "01", "10", "11"))
print(f"{SHOTS} shots on {qpu.resource_id()}: {outcomes}")
