"""The error with which a job fails."""


class JobFailure(Exception):
    """A job cannot run; the message tells its owner why, in one sentence."""
