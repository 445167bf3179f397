"""Runs the emulator as a program: `python -m qrmi_emulator --port 0 --backend ibm_demo=FakeSherbrooke`."""

import sys


def main() -> int:
    """Run the emulator; exit status 2 if its extra is not installed."""
    try:
        from qrmi_emulator import command
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: the emulator needs {error.name}; install it with: pip install 'qrmi-slurm[emulator]'\n"
        )
        return 2
    return command.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
