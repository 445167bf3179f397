#!/bin/sh
# fmt: off
""":"
# Prolog= of slurm.conf: root, once a node and job. Most jobs have no QPU: leave before Python starts.
[ -n "${SPANK_QRMI_QPU+set}" ] || exit 0
self=$0
[ -L "$self" ] && self=$(/usr/bin/readlink -f -- "$self")
# Not exec: whatever becomes of Python, this exits with 0, since any other status DRAINs the node. And this shell
# may pass no variable on whose name is none to it (a QPU called ibm-x): Python reads them from this process.
"${self%/*}/python3" -I -X utf8 "$self" "$$" || echo "qrmi-slurm-prolog: error: exit status $?: ${self%/*}/python3"
exit 0
":"""
# fmt: on
import gc
import os
import sys

gc.disable()  # it would look for cycles 20 times while modules load; what there is goes with the process

from qrmi_slurm.hooks import prolog  # noqa: E402
from qrmi_slurm.slurm import environ  # noqa: E402

# Gone at once: taking modules down one by one costs 5 ms, and the hook has closed and flushed what it wrote.
os._exit(prolog.prolog(environ.of_process(int(sys.argv[1]))))
