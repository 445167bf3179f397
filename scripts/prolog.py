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
import sys

from qrmi_slurm import environ, hooks

sys.exit(hooks.prolog(environ.of_process(int(sys.argv[1]))))
