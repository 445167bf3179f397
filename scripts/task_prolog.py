#!/bin/sh
# fmt: off
""":"
# TaskProlog= of slurm.conf: the user, before each task. What it prints is read by slurmstepd.
if [ -z "${SLURM_SPANK_QRMI_QPU-}${QRMI_SLURM_QPU-}" ]; then
    # No QPU here; only what a surrounding QPU job left behind would have to go.
    [ -n "${QRMI_JOB_ID+set}" ] || exit 0
elif [ "${QRMI_JOB_ID-}" = "$SLURM_JOB_ID" ] && [ "${QRMI_SLURM_QPU-}" = "${SLURM_SPANK_QRMI_QPU-}" ] &&
    [ "${SRUN_DEBUG-3}" = 3 ]; then
    # A step of a batch job: the environment came along with it.
    exit 0
fi
self=$0
[ -L "$self" ] && self=$(/usr/bin/readlink -f -- "$self")
[ -x "${self%/*}/python3" ] && exec "${self%/*}/python3" -I -X utf8 "$self"
echo "print qrmi-slurm: no QPU: there is no python3 beside $self on this node; please tell an admin"
exit 1
":"""
# fmt: on
import os
import sys

from qrmi_slurm import hooks

outcome = hooks.task_prolog(os.environ)
sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
sys.stdout.write("".join(f"{line}\n" for line in outcome.lines))
sys.exit(outcome.exit_code)
