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

from qrmi_slurm.hooks import watchdog  # noqa: E402

failed = sys.argv[2:]  # how the first Python ended, in the second
watchdog.start(watchdog.LAST_WORDS_S if failed else watchdog.START_S)

from qrmi_slurm.hooks import prolog  # noqa: E402
from qrmi_slurm.slurm import environ  # noqa: E402

environment = environ.of_process(int(sys.argv[1]))
# Exit at once: unloading modules costs 5 ms, and the hook has already flushed and closed its files.
os._exit(prolog.last_words(environment, int(failed[0])) if failed else prolog.prolog(environment))
