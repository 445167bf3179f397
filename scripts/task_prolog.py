#!/bin/sh -p
# fmt: off
""":"
# TaskProlog= of slurm.conf: runs as the user before each task; slurmstepd reads its output. It has the user's whole
# environment. With -p bash takes no functions and no options from it; dash finds commands by PATH before its own.
# --task-prolog= of the plugin's line: the plugin runs it once for all tasks of a step on a node. Then it has only the
# variables that this shell reads, and the step's environment in a descriptor. The last line that it prints is `end`.
PATH=/usr/bin:/bin LC_ALL=C
fd=${QRMI_SLURM_ENVIRONMENT_FD-}
job_id=${QRMI_SLURM_JOB_ID-$SLURM_JOB_ID}
leave() {
    [ -z "$fd" ] || echo end
    exit "$1"
}
# With both, this is the second time.
[ -n "$fd" ] || [ "${QRMI_SLURM_TASK_PROLOG-}" != "${job_id:-none}" ] || exit 0
job_dir="${QRMI_SLURM_STATE_DIR-}/${SLURM_CLUSTER_NAME-cluster}/$job_id"
wanted=qpu
if [ -z "${SLURM_SPANK_QRMI_QPU-}${QRMI_SLURM_QPU-}" ] &&
    { [ -z "${QRMI_SLURM_JOB_ID-}" ] || [ ! -d "$job_dir" ]; }; then
    # No QPU here; only variables of a surrounding QPU job have to be unset.
    if [ -z "${QRMI_JOB_ID+set}" ]; then
        [ -z "${QRMI_SLURM_JOB_ID-}" ] || printf 'unset %s\n' QRMI_SLURM_JOB_ID QRMI_SLURM_STATE_DIR
        leave 0
    fi
    wanted=
elif [ "${QRMI_JOB_ID-}" = "$job_id" ] && [ "${QRMI_SLURM_QPU-}" = "${SLURM_SPANK_QRMI_QPU-}" ] &&
    [ -n "${QRMI_JOB_QPU_RESOURCES-}" ] && [ "${SRUN_DEBUG-3}" = 3 ] &&
    [ "${QRMI_SLURM_BROKER:-${SLURMD_NODENAME-}}" = "${SLURMD_NODENAME-}" ] && [ ! -e "$job_dir/renewed" ]; then
    # A step of a batch job inherits the environment, unless its session has been replaced since, or the job's shell may
    # have dropped variables with invalid names (of a QPU called ibm-x).
    case ",$QRMI_JOB_QPU_RESOURCES" in
        *[!A-Za-z0-9_,]* | *,[0-9]*) ;;
        *) leave 0 ;;
    esac
fi

# Most tasks end above, and a shell reads a script only as far as it runs it.

ask_python() {
    trap - EXIT
    self=$0
    [ -L "$self" ] && self=$(/usr/bin/readlink -f -- "$self")
    # Not exec: this shell drops variables with invalid names too; Python reads them from this process. They are not its
    # own: the loader and the C library would read some.
    /usr/bin/env -i "${self%/*}/python3" -I -X utf8 "$self" "$$" "$fd"
    status=$?
    # 64: Python printed why the task must not run. An unexpected failure is 1, and must not end a job without QPUs.
    [ $status = 0 ] && leave 0
    [ -n "$wanted" ] || leave 0
    [ $status = 64 ] && leave 1
    echo "print qrmi-slurm: no QPU: TaskProlog cannot run ${self%/*}/python3 (exit $status); please tell an admin"
    leave 1
}

# Prints the job's exports in one write if they are complete, ready, of this run, owned by this user, and have all that
# the step asked for; fails if Python has to examine them. They are assignments because a shell reads a script in
# blocks, but with `read` byte by byte, and 64 tasks on a node run this 64 times. The file is opened once, so it cannot
# be swapped between check and use. Users who forge QRMI_SLURM_STATE_DIR fool only themselves.
print_exports() {
    file=/proc/self/fd/3
    [ -f $file ] && [ -O $file ] && IFS= read -r head <&3 && [ "$head" = '# qrmi-slurm exports 3' ] || return 1
    by=''
    trap ask_python EXIT # a syntax error in an incomplete file would end this shell
    . $file 2>/dev/null
    trap - EXIT
    # The last line tells whether a shell may print it. Tasks of srun outside a job do not have the job's selection.
    [ "$by" = shell ] && [ "$job $outcome" = "$job_id ready" ] &&
        [ "$restart" = "${SLURM_JOB_RESTART_COUNT-$restart}" ] &&
        [ "${start:-${SLURM_JOB_START_TIME-}}" = "${SLURM_JOB_START_TIME-$start}" ] &&
        [ "${QRMI_SLURM_QPU:-$held}" = "${SLURM_SPANK_QRMI_QPU:-$held}" ] || return 1
    [ "${SLURM_PROCID:-0}" = 0 ] || notes=''
    printf '%s' "$notes$lines$level"
}

# A batch script, or a task of srun or salloc, without variables of another job and with the default log level.
if [ -n "${QRMI_SLURM_QPU-}${QRMI_SLURM_JOB_ID-}" ] && [ -z "${QRMI_JOB_ID+set}${RUST_LOG+set}" ] &&
    [ "${SRUN_DEBUG-3}" = 3 ]; then
    exports="$job_dir/exports"
    [ -f "$exports" ] && [ -r "$exports" ] && [ ! -e "$job_dir/renewed" ] && print_exports 3<"$exports" && leave 0
fi
ask_python
":"""
# fmt: on
import gc
import os
import sys

gc.disable()  # it would run 20 times while modules load; the process is short-lived

from qrmi_slurm.hooks import task_prolog  # noqa: E402
from qrmi_slurm.slurm import environ  # noqa: E402

shell, descriptor = sys.argv[1:]
environment = environ.of_descriptor(int(descriptor)) if descriptor else environ.of_process(int(shell))
outcome = task_prolog.task_prolog(environment)
# Write everything at once and exit: if a TaskProlog is killed, slurmstepd copies its output, which contains
# credentials, to slurmd.log and the job's standard error (slurmstepd/task.c, _run_script_and_set_env()).
sys.stdout.buffer.write("".join(f"{line}\n" for line in outcome.lines).encode("utf-8", "surrogateescape"))
sys.stdout.flush()
os._exit(64 if outcome.exit_code else 0)
