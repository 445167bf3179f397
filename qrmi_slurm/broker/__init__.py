"""The credential broker: the process that stands between a job and its QPUs' services, so that it never sees a key."""
