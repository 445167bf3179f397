"""Every name that Slurm, QRMI and we share: who sets it, and where that is written.

Slurm's are from prolog_epilog.html and spank(7), checked against recordings of 22.05 to 26.05; QRMI's from
its environment variable reference.
"""

# --- Slurm: Prolog and Epilog (set by slurmd; every one of them may be missing) ------------------------
SLURM_JOB_ID = "SLURM_JOB_ID"
SLURM_JOB_UID = "SLURM_JOB_UID"
SLURM_JOB_USER = "SLURM_JOB_USER"
SLURM_HET_JOB_ID = "SLURM_HET_JOB_ID"  # of each component of a heterogeneous job: the first one's id
SLURM_JOB_NODELIST = "SLURM_JOB_NODELIST"  # from 23.02
SLURM_NODELIST = "SLURM_NODELIST"  # what 22.05 has instead
SLURM_JOB_START_TIME = "SLURM_JOB_START_TIME"  # from 23.02; seconds since the epoch
SLURM_JOB_END_TIME = "SLURM_JOB_END_TIME"  # from 23.02; seconds since the epoch
SLURM_JOB_RESTART_COUNT = "SLURM_JOB_RESTART_COUNT"
SLURM_JOB_ACCOUNT = "SLURM_JOB_ACCOUNT"
SLURM_JOB_PARTITION = "SLURM_JOB_PARTITION"
SLURM_JOB_QOS = "SLURM_JOB_QOS"  # from 26.05
SLURM_JOB_LICENSES = "SLURM_JOB_LICENSES"  # from 23.02
SLURMD_NODENAME = "SLURMD_NODENAME"
SLURM_CLUSTER_NAME = "SLURM_CLUSTER_NAME"
SLURM_CONF = "SLURM_CONF"

# --- Slurm: tasks (set by slurmstepd, or carried there by srun from the submitting process) ------------
SLURM_PROCID = "SLURM_PROCID"
SRUN_DEBUG = "SRUN_DEBUG"

# --- The job's selection ---------------------------------------------------------------------------------
SPANK_PREFIX = "SPANK_"  # slurmd's prefix for the stub's job-control variables in Prolog and Epilog: user's text
SPANK_QRMI_QPU = "SPANK_QRMI_QPU"  # Prolog, Epilog
SLURM_SPANK_QRMI_QPU = "SLURM_SPANK_QRMI_QPU"  # task: the job's selection
QRMI_SLURM_JOB_ID = "QRMI_SLURM_JOB_ID"  # task of a further het component: its own job's id, set by the stub
QRMI_SLURM_QPU = "QRMI_SLURM_QPU"  # task: the step's selection, set by the stub in slurmstepd
QRMI_SLURM_CHOICES = "QRMI_SLURM_CHOICES"  # task: what each choice in --qpu came to, `TERM=NAME,...`
QRMI_SLURM_STATE_DIR = "QRMI_SLURM_STATE_DIR"  # task: --state-dir, set by the stub for scripts/task_prolog.py

QRMI_SLURM_BROKER = "QRMI_SLURM_BROKER"  # task: the node whose loopback the job's credential broker listens on

# What stands in every key, address and path of a credential broker: whoever inherits one from a surrounding job has
# not set it himself.
BROKER_MARK = "qrmi-slurm-broker"

# --- QRMI: what a task reads -----------------------------------------------------------------------------
QRMI_JOB_QPU_RESOURCES = "QRMI_JOB_QPU_RESOURCES"
QRMI_JOB_QPU_TYPES = "QRMI_JOB_QPU_TYPES"
SLURM_JOB_QPU_RESOURCES = "SLURM_JOB_QPU_RESOURCES"  # read by QRMI before 0.13 and by older programs
SLURM_JOB_QPU_TYPES = "SLURM_JOB_QPU_TYPES"
QRMI_JOB_ID = "QRMI_JOB_ID"
QRMI_JOB_UID = "QRMI_JOB_UID"
RUST_LOG = "RUST_LOG"
QRMI_SLURM_RUST_LOG = "QRMI_SLURM_RUST_LOG"  # ours: the level that TaskProlog exported, to know it again

# --- QRMI: a resource's variables, each behind `<name>_` -------------------------------------------------
QRMI_PREFIX = "QRMI_"
JOB_PREFIX = "QRMI_JOB_"  # ours alone: a user's or a surrounding job's value never gets in
ACQUISITION_TOKEN = "QRMI_JOB_ACQUISITION_TOKEN"  # noqa: S105 (the name of a variable)
TIMEOUT_SECONDS = "QRMI_JOB_TIMEOUT_SECONDS"

# Slurm says UNLIMITED: QRMI parses this as i32 in one client and u64 in another; the largest i32 fits both.
UNLIMITED_TIMEOUT_S = 2**31 - 1


def of_resource(resource_name: str, variable: str) -> str:
    """Return the name under which QRMI looks for `variable` of the resource: `<name>_<VARIABLE>`."""
    return f"{resource_name}_{variable}"


# --- ours: files of a job's folder in the state directory ----------------------------------------------
RECORD_FILE = "record.json"
EXPORTS_FILE = "exports"
