"""The one reason why a job fails, as its owner reads it."""


class JobFailure(Exception):
    """A job cannot be run; the message is its reason, one sentence."""
