#!/bin/bash
#SBATCH --job-name=bell
#SBATCH --ntasks=1
#SBATCH --time=00:05:00
#SBATCH --output=%x-%j.out

# Submit it with a QPU of your choice:   sbatch --qpu=ibm_demo bell.sh

echo "job $SLURM_JOB_ID runs on ${SLURMD_NODENAME:-$(hostname)} and holds ${QRMI_JOB_QPU_RESOURCES:-no QPU}"

# Show the variables that qrmi-slurm has set, with *** for every value that could be a secret.
shown='RESOURCES|TYPES|QRMI_JOB_ID|QRMI_JOB_UID|RUST_LOG|ENDPOINT|CRN|SESSION_MODE|MAX_TTL|TIMEOUT_SECONDS'
env | grep -E 'QRMI_(JOB|IBM_QCS)_|^RUST_LOG=' | sort | sed -E "/^[^=]*($shown)=/!s/=.*/=***/"

python3 "$SLURM_SUBMIT_DIR/bell.py"
