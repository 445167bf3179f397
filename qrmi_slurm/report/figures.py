"""The figures of a report: moments, durations and shares, as people read them."""

from datetime import datetime


def moment(epoch_s: float) -> str:
    """Return a moment in local time, as in `23 Nov 2026 14:05:09`."""
    return datetime.fromtimestamp(epoch_s).strftime("%-d %b %Y %H:%M:%S")


def duration(seconds: float) -> str:
    """Return seconds as Slurm's commands write them: `[days-]hours:minutes:seconds`."""
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def percent(part: float) -> str:
    """Return a share, given as 0 to 1, in percent; a tiny share never looks like nothing."""
    if 0 < part < 0.001:
        return "<0.1 %"
    return f"{part * 100:.1f} %" if 0 < part < 0.0995 else f"{part * 100:.0f} %"
