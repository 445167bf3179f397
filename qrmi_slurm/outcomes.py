"""The outcomes: what each hook returns to Slurm, and why it is never anything else.

Slurm's own reactions are in prolog_epilog.html: a Prolog or an Epilog that fails DRAINs the node and a Prolog
also requeues the job held; a TaskProlog that fails ends its task. A QPU, a user or a network at fault must not
take a node out of service, so only the third may say no.
"""

from typing import Final

PROLOG_EXIT: Final = 0
EPILOG_EXIT: Final = 0
TASK_MAY_RUN_EXIT: Final = 0
TASK_MUST_NOT_RUN_EXIT: Final = 1
