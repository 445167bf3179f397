"""Leaving: what becomes of a job's QPUs when the node that acquired them is taken from the job, which goes on.

A job without a script may give nodes back while it runs: `scontrol update JobId=N NodeList=n2`. Slurm runs Epilog on
each of these.
"""

from qrmi_slurm.hooks import job_environment, release
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.state import exports
from qrmi_slurm.state.record import Record


def leave(record: Record, job: JobContext, run: HookRun) -> None:
    """Leave a job's QPUs to its other nodes; release them where those cannot use them.

    On a state directory that the nodes share, Epilog on the job's new first node releases; otherwise, this node's
    `recover`.

    Args:
        record: the job's.
        job: the job.
        run: of the hook; the folder's lock is held.

    Raises:
        RecordError: the record or the exports cannot be written.
    """
    if record.broker is None:
        run.log.info("left-to-other-nodes", qpus=",".join(entry.name for entry in record.held))
        run.folder.write(record._replace(has_left=True))
        return
    run.log.warning("released-with-its-node", qpus=",".join(entry.name for entry in record.held))
    release.release(record._replace(has_left=True), run, keep_folder=True)
    reason = f"its first node {job.node} was taken from it, and the QPU's credential broker was there"
    run.folder.write_exports(exports.render(job_environment.failed(job, reason)), job.uid)
