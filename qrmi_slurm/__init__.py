"""Gives Slurm jobs quantum computers through QRMI."""
