"""The errors that people read: what is wrong, where, and what to do next."""


class QrmiSlurmError(Exception):
    """An error for an admin or a user to read; never contains a secret.

    Args:
        message: what is wrong, with which object, and where; one sentence without a final period.
        hint: the next command to run or file to look at; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class SelectionError(QrmiSlurmError):
    """The value of `--qpu` is not a list of names."""


class ContextError(QrmiSlurmError):
    """Slurm did not tell the hook what it needs."""


class PlugstackError(QrmiSlurmError):
    """The plugin's line in plugstack.conf cannot be used."""


class ConfigError(QrmiSlurmError):
    """qrmi_config.json cannot be used."""


class CredentialsError(QrmiSlurmError):
    """The variables of a job for a QPU cannot be used."""


class BackendError(QrmiSlurmError):
    """QRMI could not be called, or failed."""


class CatalogueError(QrmiSlurmError):
    """The catalogue cannot be read or written."""


class BrokerError(QrmiSlurmError):
    """A job's credential broker cannot be started."""


class NodeBusyError(QrmiSlurmError):
    """Too many hooks work on this node for one more; a later start of the job may find it otherwise."""


class RecordError(QrmiSlurmError):
    """A job's record cannot be read or written."""


class RecordBusyError(RecordError):
    """Another process holds the lock of a job's record."""


class RecordFormatError(RecordError):
    """A record is not in a format that this version understands."""


class NewerRecordError(RecordError):
    """A record was written by a newer version: only that one may change it."""


class ExportsError(QrmiSlurmError):
    """A job's exports cannot be read or written."""


class SchedulerError(QrmiSlurmError):
    """Slurm did not answer."""
