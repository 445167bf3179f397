#!/bin/sh
# fmt: off
""":"
# TaskProlog= of slurm.conf: the user, before each task. What it prints is read by slurmstepd.
job_id=${QRMI_SLURM_JOB_ID-$SLURM_JOB_ID}
wanted=qpu
if [ -z "${SLURM_SPANK_QRMI_QPU-}${QRMI_SLURM_QPU-}${QRMI_SLURM_JOB_ID-}" ]; then
    # No QPU here; only what a surrounding QPU job left behind has to go.
    [ -n "${QRMI_JOB_ID+set}" ] || exit 0
    wanted=
elif [ "${QRMI_JOB_ID-}" = "$job_id" ] && [ "${QRMI_SLURM_QPU-}" = "${SLURM_SPANK_QRMI_QPU-}" ] &&
    [ -n "${QRMI_JOB_QPU_RESOURCES-}" ] && [ "${SRUN_DEBUG-3}" = 3 ] &&
    [ "${QRMI_SLURM_BROKER:-${SLURMD_NODENAME-}}" = "${SLURMD_NODENAME-}" ]; then
    # A step of a batch job: the environment came along with it, unless the job's own shell may have lost variables
    # whose names are none to it (a QPU called ibm-x).
    case ",$QRMI_JOB_QPU_RESOURCES" in
        *[!A-Za-z0-9_,]* | *,[0-9]*) ;;
        *) exit 0 ;;
    esac
fi

# Most tasks have come no further, and a shell reads no further than it runs.

ask_python() {
    trap - EXIT
    self=$0
    [ -L "$self" ] && self=$(/usr/bin/readlink -f -- "$self")
    # Not exec: this shell drops such variables as well; Python reads them from this process.
    "${self%/*}/python3" -I -X utf8 "$self" "$$"
    status=$?
    # 64: it has said why the task must not run. A surprise would be 1, and must not end a job without QPU.
    [ $status = 0 ] && exit 0
    [ -n "$wanted" ] || exit 0
    [ $status = 64 ] && exit 1
    echo "print qrmi-slurm: no QPU: TaskProlog cannot run ${self%/*}/python3 (exit $status); please tell an admin"
    exit 1
}

# Prints the job's exports, all at once, where they are this run's, whole, this user's, ready, and for all that the step
# asked for; fails where Python has to look at them. They are assignments: a shell reads a script in blocks, and with
# `read` byte by byte; 64 tasks on a node are 64 of these. One file is looked at and read, whatever becomes of its
# name: this user's own, with our first line. Who forges QRMI_SLURM_STATE_DIR fools only himself.
print_exports() {
    file=/proc/self/fd/3
    [ -f $file ] && [ -O $file ] && IFS= read -r head <&3 && [ "$head" = '# qrmi-slurm exports 2' ] || return 1
    by=''
    trap ask_python EXIT # a script that is cut off would end this one
    . $file 2>/dev/null
    trap - EXIT
    # The last line says who may print it; srun outside a job does not tell its tasks what the job was submitted with.
    [ "$by" = shell ] && [ "$job $outcome" = "$job_id ready" ] &&
        [ "$restart" = "${SLURM_JOB_RESTART_COUNT-$restart}" ] &&
        [ "$QRMI_SLURM_QPU" = "${SLURM_SPANK_QRMI_QPU:-$held}" ] || return 1
    [ "${SLURM_PROCID:-0}" = 0 ] || notes=''
    printf '%s' "$notes$lines$level"
}

# A batch script, or a task of srun and salloc, with nothing of another job and no log level of its own.
if [ -n "${QRMI_SLURM_QPU-}" ] && [ -z "${QRMI_JOB_ID+set}${RUST_LOG+set}" ] && [ "${SRUN_DEBUG-3}" = 3 ]; then
    exports="${QRMI_SLURM_STATE_DIR-}/${SLURM_CLUSTER_NAME-cluster}/$job_id/exports"
    [ -f "$exports" ] && [ -r "$exports" ] && print_exports 3<"$exports" && exit 0
fi
ask_python
":"""
# fmt: on
import gc
import os
import sys

gc.disable()  # it would look for cycles 20 times while modules load; what there is goes with the process

from qrmi_slurm.hooks import task_prolog  # noqa: E402
from qrmi_slurm.slurm import environ  # noqa: E402

outcome = task_prolog.task_prolog(environ.of_process(int(sys.argv[1])))
# All at once and then gone: slurmstepd writes the output of a TaskProlog that was killed into slurmd.log and the job's
# standard error (slurmstepd/task.c, _run_script_and_set_env()), and there are credentials in it.
sys.stdout.buffer.write("".join(f"{line}\n" for line in outcome.lines).encode("utf-8", "surrogateescape"))
sys.stdout.flush()
os._exit(64 if outcome.exit_code else 0)
