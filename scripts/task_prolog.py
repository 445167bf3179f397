#!/bin/sh
# fmt: off
""":"
# TaskProlog= of slurm.conf: the user, before each task. What it prints is read by slurmstepd.
if [ -z "${SLURM_SPANK_QRMI_QPU-}${QRMI_SLURM_QPU-}${QRMI_SLURM_JOB_ID-}" ]; then
    # No QPU here; only what a surrounding QPU job left behind has to go.
    [ -n "${QRMI_JOB_ID+set}" ] || exit 0
    wanted=
elif [ "${QRMI_JOB_ID-}" = "${QRMI_SLURM_JOB_ID-$SLURM_JOB_ID}" ] && [ "${SRUN_DEBUG-3}" = 3 ] &&
    [ "${QRMI_SLURM_QPU-}" = "${SLURM_SPANK_QRMI_QPU-}" ] && [ -n "${QRMI_JOB_QPU_RESOURCES-}" ]; then
    # A step of a batch job: the environment came along with it, unless the job's own shell may have lost variables
    # whose names are none to it (a QPU called ibm-x).
    case ",$QRMI_JOB_QPU_RESOURCES" in
        *[!A-Za-z0-9_,]* | *,[0-9]*) wanted=qpu ;;
        *) exit 0 ;;
    esac
else
    wanted=qpu
fi
self=$0
[ -L "$self" ] && self=$(/usr/bin/readlink -f -- "$self")
# Not exec: this shell drops such variables as well; Python reads them from this process.
"${self%/*}/python3" -I -X utf8 "$self" "$$"
status=$?
# 64: it has said why the task must not run. A surprise in Python would be 1, and must not end a job without QPU.
[ $status = 0 ] && exit 0
[ -n "$wanted" ] || exit 0
[ $status = 64 ] && exit 1
echo "print qrmi-slurm: no QPU: TaskProlog cannot run ${self%/*}/python3 (exit status $status); please tell an admin"
exit 1
":"""
# fmt: on
import os
import sys

from qrmi_slurm import environ, task_hook

outcome = task_hook.task_prolog(environ.of_process(int(sys.argv[1])))
# All at once and then gone: slurmstepd writes the output of a TaskProlog that was killed into slurmd.log and the job's
# standard error (slurmstepd/task.c, _run_script_and_set_env()), and there are credentials in it.
sys.stdout.buffer.write("".join(f"{line}\n" for line in outcome.lines).encode("utf-8", "surrogateescape"))
sys.stdout.flush()
os._exit(64 if outcome.exit_code else 0)
