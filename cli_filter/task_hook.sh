#!/bin/sh -p
# TaskProlog= of slurm.conf. It runs that of the installation in use, and stays where it is when that is upgraded, moved or
# removed: a TaskProlog that is missing fails the tasks of all jobs. `make install` puts it here.
PATH=/usr/bin:/bin LC_ALL=C
if [ -z "${SLURM_SPANK_QRMI_QPU-}${QRMI_SLURM_QPU-}" ]; then
    # Variables of a surrounding QPU job have to go; or the job of a step that was attached may have QPUs.
    [ -n "${QRMI_JOB_ID+set}${QRMI_SLURM_JOB_ID-}" ] || exit 0
fi
newline='
'
said=$(QRMI_SLURM_END=print /opt/qrmi-slurm/bin/qrmi-slurm-task-prolog)
status=$?
[ -z "$said" ] || printf '%s\n' "$said"
# The last line is missing where the program is: slurmstepd does not mind a line that it does not know.
case "$newline$said" in
    *"${newline}end") exit $status ;;
esac
[ -n "${SLURM_SPANK_QRMI_QPU-}${QRMI_SLURM_QPU-}" ] ||
    [ -d "${QRMI_SLURM_STATE_DIR-}/${SLURM_CLUSTER_NAME-cluster}/${QRMI_SLURM_JOB_ID-none}" ] || exit 0
echo "print qrmi-slurm: no QPU: TaskProlog cannot run /opt/qrmi-slurm/bin/qrmi-slurm-task-prolog; please tell an admin"
exit 1
