"""Runs the emulator by itself: `python -m qrmi_slurm.emulator --port 0 --backend ibm_demo=FakeSherbrooke`."""

import sys

from qrmi_slurm.emulator.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
