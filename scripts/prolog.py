#!/bin/sh
# fmt: off
""":"
# Prolog= of slurm.conf: runs as root, once per node and job. Most jobs have no QPU: exit before Python starts.
[ -n "${SPANK_QRMI_QPU+set}" ] || exit 0
self=$0
[ -L "$self" ] && self=$(/usr/bin/readlink -f -- "$self")
# Not exec: this script must exit 0 even if Python fails, since any other status drains the node. This shell may drop
# variables with invalid names (of a QPU called ibm-x): Python reads them from this process.
python=${self%/*}/python3
# Of many at once, most wait here, and are no Pythons yet (hooks/turnstile.py). Whatever fails here, Python goes on.
lanes='' wait='' more='' room=/run/qrmi-slurm/$SLURM_CLUSTER_NAME/$SLURMD_NODENAME
read -r lanes wait more _ 2>/dev/null <"$room/lanes"
case $lanes:$wait:$more:$SLURM_JOB_UID:$SLURM_JOB_ID in
    :* | 0* | *::* | *: | *[!0-9:]*) ;;
    *)
        lane=$((SLURM_JOB_ID % lanes))
        command exec 9>>"$room/$SLURM_JOB_UID.$lane" && { /usr/bin/flock -w "$wait" 9 || {
            # Too late to begin. To go back into the queue, few at a time ask slurmctld, which may be as busy.
            command exec 9>>"$room/late.$lane" && /usr/bin/flock -w "$more" 9
        }; }
        ;;
esac 2>/dev/null
# Where it fails, it starts once more and leaves word of that.
"$python" -I -X utf8 "$self" "$$" || "$python" -I -X utf8 "$self" "$$" "$?" ||
    echo "qrmi-slurm-prolog: error: exit status $?: $python"
exit 0
":"""
# fmt: on
import gc
import os
import sys

gc.disable()  # it would run 20 times while modules load; the process is short-lived

from qrmi_slurm import stand_ins  # noqa: E402

stand_ins.install()

from qrmi_slurm.hooks import watchdog  # noqa: E402

failed = sys.argv[2:]  # how the first Python ended, in the second
watchdog.start(watchdog.LAST_WORDS_S if failed else watchdog.START_S)

from qrmi_slurm import processes  # noqa: E402
from qrmi_slurm.hooks import prolog  # noqa: E402
from qrmi_slurm.slurm import environ  # noqa: E402

shell = int(sys.argv[1])
environment = environ.of_process(shell)
# Exit at once: unloading modules costs 5 ms, and the hook has already flushed and closed its files.
if failed:
    os._exit(prolog.last_words(environment, int(failed[0])))
os._exit(prolog.prolog(environment, processes.age_s(shell)))
