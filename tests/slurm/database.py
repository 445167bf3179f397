"""What slurmdbd needs: a MariaDB server in one folder, reachable only through its socket."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

MARIADBD = "/usr/sbin/mariadbd"
# What mariadb-install-db would read; the first is MariaDB 10's, the second 11's.
SQL = ("/usr/share/mysql/mysql_system_tables{}.sql", "/usr/share/mariadb/mariadb_system_tables{}.sql")
NAME = "slurm_acct"
MAKE_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Database:
    """One MariaDB server.

    Args:
        folder: holds its data and its socket; made by `make`.
    """

    folder: Path

    @property
    def socket(self) -> Path:
        """Its only socket."""
        return self.folder / "socket"

    def make(self) -> None:
        """Create the data folder with the system tables."""
        self.socket.unlink(missing_ok=True)
        data = self.folder / "data"
        if data.exists():
            return
        data.mkdir(parents=True)
        [sql] = [path for path in SQL if Path(path.format("")).exists()]
        tables = "".join(Path(sql.format(part)).read_text() for part in ("", "_data"))
        subprocess.run(
            [*self._options(), "--bootstrap"],
            # slurmdbd would make its database itself, but libmariadb 3.4.10 (Debian 13) cannot query after a refusal.
            input=f"create database {NAME};\ncreate database mysql;\nuse mysql;\n{tables}",
            capture_output=True,
            text=True,
            check=True,
            timeout=MAKE_DEADLINE_S,
        )

    def command(self) -> list[str]:
        """Return the server's command line: no network, no grant tables, none of the machine's settings."""
        return [*self._options(), f"--socket={self.socket}", "--skip-networking", "--skip-grant-tables"]

    def client_env(self) -> dict[str, str]:
        """Return the environment for its client library."""
        return {"MYSQL_UNIX_PORT": str(self.socket)}

    def _options(self) -> list[str]:
        # The data is disposable: no syncing, the smallest logs.
        fast = ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--innodb-log-file-size=8M"]
        small = ["--innodb-buffer-pool-size=16M", "--skip-log-bin", f"--pid-file={self.folder}/pid"]
        return [MARIADBD, "--no-defaults", "--user=root", f"--datadir={self.folder}/data", *fast, *small]


def slurmdbd_conf(folder: Path, port: int) -> str:
    """Return slurmdbd.conf for a cluster's folder."""
    settings = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge/socket",
        "DbdHost": "localhost",
        "DbdPort": str(port),
        "SlurmUser": "root",
        "PidFile": f"{folder}/slurmdbd.pid",
        "LogFile": f"{folder}/log/slurmdbd.log",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",
        "StorageUser": "root",
        "StorageLoc": NAME,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())
