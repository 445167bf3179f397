"""Serves, on loopback, the quantum service that QRMI calls, and runs its circuits on a simulator."""
