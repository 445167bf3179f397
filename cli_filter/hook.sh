#!/bin/sh
# @SETTING@= of slurm.conf. It runs the hook of the installation in use, stays where it is when that is upgraded, moved or
# removed, and always exits 0: a hook that is missing or fails drains its node. `make install` puts it here.
[ -n "${SPANK_QRMI_QPU+set}" ] || exit 0
/opt/qrmi-slurm/bin/qrmi-slurm-@HOOK@ && exit 0
said="error: job $SLURM_JOB_ID: exit status $?: /opt/qrmi-slurm/bin/qrmi-slurm-@HOOK@"
echo "qrmi-slurm-@HOOK@: $said"
[ ! -x /usr/bin/logger ] || /usr/bin/timeout 1 /usr/bin/logger -t qrmi-slurm-@HOOK@ -p user.err "$said"
exit 0
