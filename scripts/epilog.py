#!/bin/sh
# fmt: off
""":"
# Epilog= of slurm.conf: root, once a node and job. Most jobs have no QPU: leave before Python starts.
[ -n "${SPANK_QRMI_QPU+set}" ] || exit 0
self=$0
[ -L "$self" ] && self=$(/usr/bin/readlink -f -- "$self")
[ -x "${self%/*}/python3" ] && exec "${self%/*}/python3" -I -X utf8 "$self"
echo "qrmi-slurm-epilog: error: no python3 beside $self"
exit 0
":"""
# fmt: on
import os
import sys

from qrmi_slurm import hooks

sys.exit(hooks.epilog(os.environ))
