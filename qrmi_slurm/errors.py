"""The one family of errors that people read: what is wrong, where, and what to do next."""


class QrmiSlurmError(Exception):
    """Something that an admin or a user has to know; never holds a secret.

    Args:
        message: what is wrong, which object, where; one sentence without a final full stop.
        hint: the next command or file to look at; empty where there is none.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class SelectionError(QrmiSlurmError):
    """The text of `--qpu` is not a list of names."""


class ContextError(QrmiSlurmError):
    """Slurm gave the hook less than it needs."""


class PlugstackError(QrmiSlurmError):
    """The plugin's line in plugstack.conf cannot be used."""


class ConfigError(QrmiSlurmError):
    """qrmi_config.json cannot be used."""


class CredentialsError(QrmiSlurmError):
    """The variables that a job brings for a QPU cannot be used."""


class BackendError(QrmiSlurmError):
    """QRMI did not do what was asked of it."""


class CatalogueError(QrmiSlurmError):
    """The catalogue cannot be read or written."""


class BrokerError(QrmiSlurmError):
    """A job's credential broker cannot be started."""


class RecordError(QrmiSlurmError):
    """A job's record cannot be read or written."""


class RecordBusyError(RecordError):
    """Another process holds a job's record."""


class RecordFormatError(RecordError):
    """A record was read, and is none that this program understands."""


class ExportsError(QrmiSlurmError):
    """A job's exports cannot be read or written."""


class SchedulerError(QrmiSlurmError):
    """Slurm cannot be asked."""
