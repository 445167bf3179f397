"""The names of the variables and files that Slurm, QRMI and this suite share, and who sets each of them.

Slurm's names come from prolog_epilog.html and spank(7) and were checked against recordings of 22.05 to 26.05; QRMI's
come from its environment variable reference.
"""

# --- Slurm: Prolog and Epilog (set by slurmd; any of them may be missing) ------------------------------
SLURM_JOB_ID = "SLURM_JOB_ID"
SLURM_JOB_UID = "SLURM_JOB_UID"
SLURM_JOB_USER = "SLURM_JOB_USER"
SLURM_JOB_GID = "SLURM_JOB_GID"
SLURM_HET_JOB_ID = "SLURM_HET_JOB_ID"  # in each component of a heterogeneous job: the id of the first
SLURM_JOB_NODELIST = "SLURM_JOB_NODELIST"  # from 23.02
SLURM_NODELIST = "SLURM_NODELIST"  # the same in 22.05
SLURM_JOB_NUM_NODES = "SLURM_JOB_NUM_NODES"  # of all nodes, where the list has only those that are taken from the job
SLURM_JOB_START_TIME = "SLURM_JOB_START_TIME"  # from 23.02; seconds since the epoch
SLURM_JOB_END_TIME = "SLURM_JOB_END_TIME"  # from 23.02; seconds since the epoch
SLURM_JOB_RESTART_COUNT = "SLURM_JOB_RESTART_COUNT"
SLURM_JOB_ACCOUNT = "SLURM_JOB_ACCOUNT"
SLURM_JOB_PARTITION = "SLURM_JOB_PARTITION"
SLURM_JOB_QOS = "SLURM_JOB_QOS"  # from 26.05
SLURM_JOB_LICENSES = "SLURM_JOB_LICENSES"  # from 23.02
SLURM_JOB_WORK_DIR = "SLURM_JOB_WORK_DIR"  # the user's text
SLURMD_NODENAME = "SLURMD_NODENAME"
SLURM_CLUSTER_NAME = "SLURM_CLUSTER_NAME"
SLURM_CONF = "SLURM_CONF"

# --- Slurm: tasks (set by slurmstepd, or carried there by srun from the submitting process) ------------
SLURM_PROCID = "SLURM_PROCID"
SRUN_DEBUG = "SRUN_DEBUG"

# --- The job's selection ---------------------------------------------------------------------------------
SPANK_PREFIX = "SPANK_"  # slurmd's prefix for job-control variables in Prolog and Epilog; values are user text
SPANK_QRMI_QPU = "SPANK_QRMI_QPU"  # Prolog, Epilog
SLURM_SPANK_QRMI_QPU = "SLURM_SPANK_QRMI_QPU"  # task: the job's selection
# Task whose environment does not tell whether its job has QPUs: the job's id, set by the stub. Its step was attached
# from elsewhere (`srun --jobid`), or runs in a later component of a heterogeneous job.
QRMI_SLURM_JOB_ID = "QRMI_SLURM_JOB_ID"
QRMI_SLURM_QPU = "QRMI_SLURM_QPU"  # task: the step's selection, set by the stub in slurmstepd
QRMI_SLURM_CHOICES = "QRMI_SLURM_CHOICES"  # task: the QPU chosen for each term of --qpu, `TERM=NAME,...`
QRMI_SLURM_STATE_DIR = "QRMI_SLURM_STATE_DIR"  # task: --state-dir, set by the stub for scripts/task_prolog.py

# Task: the job for which the stub has run TaskProlog, so that Slurm's TaskProlog= has nothing to do.
QRMI_SLURM_TASK_PROLOG = "QRMI_SLURM_TASK_PROLOG"
# Only for a TaskProlog that the stub runs: how long it waits for it, in seconds.
QRMI_SLURM_TIME_LIMIT = "QRMI_SLURM_TIME_LIMIT"

QRMI_SLURM_BROKER = "QRMI_SLURM_BROKER"  # task: the node on whose loopback the credential broker listens

# Task, with the resource's name in front: the number of seconds to which a value of the user's was capped for this job.
# A job that is submitted from within it inherits both, and has a limit of its own.
QRMI_SLURM_CAPPED_AT = "QRMI_SLURM_CAPPED_AT"

# Task: fingerprints of the site's values that it was given, so that a job which is submitted from within it does not
# take them for the user's own.
QRMI_SLURM_GIVEN = "QRMI_SLURM_GIVEN"

# Part of every key, address and path of a credential broker, so that a value inherited from a surrounding job is not
# mistaken for the user's own.
BROKER_MARK = "qrmi-slurm-broker"

# --- QRMI: what a task reads -----------------------------------------------------------------------------
QRMI_JOB_QPU_RESOURCES = "QRMI_JOB_QPU_RESOURCES"
QRMI_JOB_QPU_TYPES = "QRMI_JOB_QPU_TYPES"
SLURM_JOB_QPU_RESOURCES = "SLURM_JOB_QPU_RESOURCES"  # read by QRMI before 0.13 and by older programs
SLURM_JOB_QPU_TYPES = "SLURM_JOB_QPU_TYPES"
QRMI_JOB_ID = "QRMI_JOB_ID"
QRMI_JOB_UID = "QRMI_JOB_UID"
RUST_LOG = "RUST_LOG"
QRMI_SLURM_RUST_LOG = "QRMI_SLURM_RUST_LOG"  # ours: the level that TaskProlog exported, to tell it from the user's

# --- QRMI: a resource's variables, each prefixed with `<name>_` ------------------------------------------
QRMI_PREFIX = "QRMI_"
JOB_PREFIX = "QRMI_JOB_"  # only the suite sets these: values of users or surrounding jobs are dropped
SLURM_PREFIX = "QRMI_SLURM_"  # the same, for marks of ours that QRMI does not read
ACQUISITION_TOKEN = "QRMI_JOB_ACQUISITION_TOKEN"  # noqa: S105 (the name of a variable)
TIMEOUT_SECONDS = "QRMI_JOB_TIMEOUT_SECONDS"
QPU_SLOTS = "QRMI_JOB_QPU_SLOTS"  # only where a license counts them; QRMI's acquire also gets it without the name

# Stands for UNLIMITED: QRMI parses it as i32 in one client and u64 in another; the largest i32 fits both.
UNLIMITED_TIMEOUT_S = 2**31 - 1


def of_resource(resource_name: str, variable: str) -> str:
    """Return the name under which QRMI looks for `variable` of the resource: `<name>_<VARIABLE>`."""
    return f"{resource_name}_{variable}"


# --- Files in a job's folder in the state directory -----------------------------------------------------
RECORD_FILE = "record.json"
EXPORTS_FILE = "exports"
SESSIONS_FILE = "sessions"  # what a credential broker has opened in place of sessions that had ended
RENEWED_FILE = "renewed"  # the job's steps have another session; what the next one prints about it
