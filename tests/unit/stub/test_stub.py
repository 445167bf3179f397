"""The SPANK plugin in cli_filter/, built as an admin builds it and driven in every context by a fake Slurm."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from qrmi_slurm.checks import plugin_file
from qrmi_slurm.slurm.plugstack import DEFAULT_STATE_DIR
from qrmi_slurm.state.exports import fingerprint
from qrmi_slurm.state.job_folder import JobFolder

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "cli_filter"
SLURM_VERSION = Path("/usr/include/slurm/slurm_version.h")
FAKE_SLURM = Path(__file__).with_name("fake_slurm.c")

OPTION_ENV = "SLURM_SPANK__SLURM_SPANK_OPTION_spank_qrmi_qpu"
HINT = "; separate QPU names with commas, as in --qpu=ibm_quebec,ibm_sherbrooke."
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all"


@dataclass
class Outcome:
    """The fake Slurm's output for one run of the plugin."""

    lines: list[str]

    def _all(self, word: str) -> list[str]:
        return [line.partition(" ")[2] for line in self.lines if line.split(" ", 1)[0] == word]

    def _environment(self, word: str) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self._all(word))

    @property
    def control(self) -> dict[str, str]:
        return self._environment("control")

    @property
    def step(self) -> dict[str, str]:
        return self._environment("step")

    @property
    def environ(self) -> dict[str, str]:
        return self._environment("environ")

    @property
    def errors(self) -> list[str]:
        return self._all("error")

    @property
    def debug(self) -> list[str]:
        return self._all("debug")

    def rc(self, phase: str) -> list[int]:
        return [int(text.split()[1]) for text in self._all("rc") if text.split()[0] == phase]


def option(value: str | bytes) -> str:
    raw = value.encode() if isinstance(value, str) else value
    return f"option {raw.hex()}"


def job_env(**variables: str) -> list[str]:
    return [f"job_env {f'{name}={value}'.encode().hex()}" for name, value in variables.items()]


@dataclass(frozen=True)
class Stub:
    """A built plugin and its host; `prefix` is a program that checks both, such as valgrind."""

    plugin: Path
    host: Path
    prefix: tuple[str, ...] = ()

    def run(self, context: str, *commands: str, env: dict[str, str] | None = None) -> Outcome:
        script = "\n".join((f"context {context}", *commands, "")).encode()
        done = subprocess.run(
            [*self.prefix, self.host, self.plugin],
            input=script,
            capture_output=True,
            env=env or {},
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return Outcome(done.stdout.decode(errors="surrogateescape").splitlines())


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-C", str(SOURCES), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def build(folder: Path, *, cflags: str | None = None, compiler: str = "cc") -> Stub:
    flags = cflags or "-O2 -g"
    done = make(f"BUILD_DIR={folder}", f"CC={compiler}", *([f"CFLAGS={cflags}", f"LDFLAGS={cflags}"] if cflags else []))
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    host = folder / "fake_slurm"
    subprocess.run(
        [
            compiler,
            *flags.split(),
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-rdynamic",
            "-o",
            host,
            FAKE_SLURM,
            "-ldl",
        ],
        check=True,
        timeout=60,
    )
    return Stub(folder / "spank_qrmi.so", host)


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    return build(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    return build(tmp_path_factory.mktemp("sanitized"), cflags=f"-O1 -g {SANITIZE}")


@pytest.fixture(scope="module")
def watched(stub: Stub) -> Stub:
    valgrind = shutil.which("valgrind")
    assert valgrind, "valgrind is not installed: apt-get install valgrind"
    options = ("--quiet", "--leak-check=full", "--show-leak-kinds=all", "--errors-for-leak-kinds=all")
    return Stub(stub.plugin, stub.host, (valgrind, *options, "--error-exitcode=99"))


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def submit(stub: Stub, *options: str, env: dict[str, str] | None = None, context: str = "allocator") -> Outcome:
    return stub.run(context, "init", "env_option", *options, "post_opt", "dump", "exit", env=env)


# --- the object file ---


def test_exported_symbols(stub: Stub) -> None:
    """The object exports only what Slurm's plugin loader looks for, and no job_prolog or job_epilog."""
    names = {line.split()[-1] for line in output("nm", "-D", "--defined-only", stub.plugin).splitlines()}
    assert names == {
        "plugin_name",
        "plugin_type",
        "plugin_version",
        "spank_plugin_version",
        "slurm_spank_init",
        "slurm_spank_init_post_opt",
        "slurm_spank_task_init",
        "slurm_spank_exit",
    }


def test_needs_only_libc(stub: Stub) -> None:
    """The plugin links only libc, and its relocations are read-only after loading."""
    dynamic = output("readelf", "--wide", "--dynamic", stub.plugin)
    assert re.findall(r"NEEDED.*\[(.+?)\]", dynamic) == ["libc.so.6"]
    assert re.search(r"FLAGS.*NOW", dynamic)
    assert "GNU_RELRO" in output("readelf", "--wide", "--segments", stub.plugin)


def test_is_small(stub: Stub, tmp_path: Path) -> None:
    """Stripped, the plugin is smaller than 48 kB."""
    stripped = tmp_path / "stripped.so"
    output("strip", "-o", stripped, stub.plugin)
    assert stripped.stat().st_size < 48_000


RELEASES = {38: "22.05", 39: "23.02", 40: "23.11", 41: "24.05", 42: "24.11", 43: "25.05", 44: "25.11", 45: "26.05"}


def test_contains_the_releases_that_it_is_for(stub: Stub, tmp_path: Path) -> None:
    """The file says which releases of Slurm it is for, even when stripped."""
    stripped = tmp_path / "stripped.so"
    output("strip", "-o", stripped, stub.plugin)
    known = {tuple(map(int, name.split("."))) for name in RELEASES.values()}
    assert plugin_file.releases(stub.plugin) == plugin_file.releases(stripped) == known


@pytest.mark.parametrize("api", RELEASES)
def test_one_file_is_for_each_release(stub: Stub, api: int) -> None:
    """Slurm compares year and month of the version with its own."""
    year, month = map(int, RELEASES[api].split("."))
    done = stub.run("local", "version", env={"FAKE_API_VERSION": str(api)})
    assert done.lines == [f"version {year << 16 | month << 8:x}"]


@pytest.mark.parametrize("api", [37, 46, 0])
def test_an_unknown_release_refuses_it(stub: Stub, sanitized: Stub, api: int) -> None:
    """With a line in the log that says why there is no --qpu."""
    for one in (stub, sanitized):
        done = one.run("local", "version", env={"FAKE_API_VERSION": str(api)})
        assert done.lines[1:] == ["version 0"]
        [line] = done.errors
        assert line.startswith("spank_qrmi: this file is for Slurm 22.05 23.02 ") and f"API {api}" in line


def test_headers_of_another_slurm(stub: Stub, tmp_path: Path) -> None:
    """The file is the same, byte for byte, whatever version the headers have: it takes nothing of that from them."""
    headers = tmp_path / "include" / "slurm"
    shutil.copytree(SLURM_VERSION.parent, headers)
    text = SLURM_VERSION.read_text()
    (headers / SLURM_VERSION.name).write_text(re.sub(r"(define SLURM_VERSION_NUMBER) \w+", r"\1 0x1a0500", text))
    for name, where in (("one", ()), ("another", (f"SLURM_INCLUDE_DIR={tmp_path / 'include'}",))):
        (tmp_path / name).mkdir()
        assert make(f"BUILD_DIR={tmp_path / name}", *where).returncode == 0
    one, another = (tmp_path / name / "spank_qrmi.so" for name in ("one", "another"))
    assert one.read_bytes() == another.read_bytes()


def test_headers_elsewhere(tmp_path: Path) -> None:
    """SLURM_INCLUDE_DIR is a folder that contains slurm/spank.h, and is searched first."""
    headers = tmp_path / "include" / "slurm"
    headers.mkdir(parents=True)
    (headers / "spank.h").write_text('#error "these headers"\n')
    done = make(f"BUILD_DIR={tmp_path}", f"SLURM_INCLUDE_DIR={tmp_path / 'include'}")
    assert done.returncode != 0
    assert "these headers" in done.stderr


def test_install_and_clean(tmp_path: Path) -> None:
    """make install puts the plugin into DESTDIR and SLURM_PLUGIN_DIR, make clean removes the build products."""
    destination, built = tmp_path / "root", tmp_path / "build"
    built.mkdir()
    where = (f"BUILD_DIR={built}", f"DESTDIR={destination}", "SLURM_PLUGIN_DIR=/opt/slurm/lib")
    assert make("install", *where).returncode == 0
    installed = destination / "opt/slurm/lib/spank_qrmi.so"
    assert installed.stat().st_mode & 0o777 == 0o755
    assert make("clean", *where).returncode == 0
    assert list(built.iterdir()) == []
    assert installed.exists()


def test_example_loads_this_plugin() -> None:
    """plugstack.conf.example has one active line, which loads the plugin."""
    text = (SOURCES / "plugstack.conf.example").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert [line.split()[:2] for line in lines] == [["optional", "spank_qrmi.so"]]


# --- the option ---


@pytest.mark.parametrize("context", ["allocator", "local", "remote"])
def test_option_is_registered(stub: Stub, context: str) -> None:
    """--qpu=names is registered in the allocator, in srun and in slurmstepd, with the documented help text."""
    done = stub.run(context, "init", "exit")
    assert "registered --qpu=names Comma-separated list of QPU resources to use." in done.lines
    assert done.rc("init") == [0]


@pytest.mark.parametrize(("context", "is_told"), [("allocator", True), ("local", True), ("remote", False)])
def test_slurmstepd_is_told_of_no_error(stub: Stub, context: str, is_told: bool) -> None:
    """Another plugin has --qpu, say. With `required`, an error in slurmstepd would drain the node."""
    done = stub.run(context, "fail_register", "init", "post_opt", "exit")
    assert done.rc("init") != [0] if is_told else done.rc("init") == [0]
    assert done.rc("init_post_opt") == [0]


@pytest.mark.parametrize("context", ["slurmd", "job_script"])
def test_nothing_in_slurmd(stub: Stub, context: str) -> None:
    """In slurmd and around its scripts the plugin does nothing and logs nothing."""
    assert stub.run(context, "init", "exit").lines == ["rc init 0", "rc exit 0"]


FAULTS = {
    "": "names no QPU",
    "  ": "names no QPU",
    ",": "contains an empty name",
    "a,,b": "contains an empty name",
    "a,": "contains an empty name",
    ",a": "contains an empty name",
    "a, ,b": "contains an empty name",
    "a=b": "contains '='",
    "a\nb": "contains a control character",
    "a\tb": "contains a control character",
    "a\x7f": "contains a control character",
    b"a\xff": "is not valid UTF-8",
    b"a\xc3": "is not valid UTF-8",
    b"\xc0\x80": "is not valid UTF-8",
    b"\xed\xa0\x80": "is not valid UTF-8",
    b"\xf4\x90\x80\x80": "is not valid UTF-8",
    b"\xe0\x80\x80": "is not valid UTF-8",
    b"\xf0\x80\x80\x80": "is not valid UTF-8",
}


@pytest.mark.parametrize("context", ["allocator", "local"])
def test_malformed_value_is_refused(stub: Stub, sanitized: Stub, context: str) -> None:
    """A malformed --qpu is refused with one sentence in the option's callback, the only place where Slurm heeds it."""
    for value, fault in FAULTS.items():
        for build_of in (stub, sanitized) if context == "allocator" else (stub,):
            done = submit(build_of, option(value), context=context)
            assert done.rc("option") != [0], value
            assert done.errors == [f"spank_qrmi: --qpu {fault}{HINT}"], value
            assert "QRMI_QPU" not in done.control


# Each limit, and the largest value below it.
LIMITS = {
    "has more than 4096 bytes": ("q" * 4097, "q" * 4096),
    "has more than 64 terms": (",".join(f"q{number}" for number in range(65)), ",".join(["a", *"abcd" * 900][:1800])),
    "has more than 8 choices (patterns, any: and least-busy:)": (",".join(["*"] * 9), "*,?,[,any:a,any:a,any:a,a*,b*"),
}


@pytest.mark.parametrize("fault", LIMITS)
def test_more_than_a_job_may_ask_for_is_refused(stub: Stub, sanitized: Stub, fault: str) -> None:
    """A name counts once, a choice each time; tests/contract/test_selection.py has more cases."""
    too_much, enough = LIMITS[fault]
    for one in (stub, sanitized):
        done = submit(one, option(too_much))
        assert done.rc("option") != [0]
        assert done.errors == [f"spank_qrmi: --qpu {fault}; ask for fewer QPUs in one job."]
        assert submit(one, option(enough)).control["QRMI_QPU"] == enough


def test_malformed_environment_is_refused(stub: Stub) -> None:
    """An option from the environment is checked like one from the command line."""
    done = submit(stub, env={OPTION_ENV: "a,"})
    assert done.rc("option") != [0]
    assert done.errors == [f"spank_qrmi: --qpu contains an empty name{HINT}"]


@pytest.mark.parametrize(
    "value", ["ibm_quebec", "a,b", "iqm:x_1", "x y", "ibm_*,q?[01]", "Québec,量子", "a/b+c@d", "a,a", "q" * 4096]
)
def test_name_is_kept_as_it_is(stub: Stub, value: str) -> None:
    """A name may have any character that an environment variable's name can have, and a list may repeat itself."""
    done = submit(stub, option(value))
    assert done.control["QRMI_QPU"] == value
    assert done.errors == []


def test_blanks_around_names_are_dropped(stub: Stub) -> None:
    """Blanks around the commas are not part of a name, blanks inside it are."""
    assert submit(stub, option("  a ,b c  , d ")).control["QRMI_QPU"] == "a,b c,d"


def test_last_value_wins(stub: Stub) -> None:
    """The last --qpu of a command counts, as with Slurm's own options."""
    assert submit(stub, option("a"), option("b")).control["QRMI_QPU"] == "b"


# --- allocator and local: Prolog's variables ---


@pytest.mark.parametrize("context", ["allocator", "local"])
def test_user_variables_are_passed_on(stub: Stub, context: str) -> None:
    """The user's own variables for the selected QPUs are passed on, and no others."""
    env = {
        "a_QRMI_IBM_QRS_ENDPOINT": "https://x",
        "a_QRMI_EMPTY": "",
        "x y_QRMI_KEY": "k",
        "b_QRMI_KEY": "not selected",
        "aa_QRMI_KEY": "another name",
        "a_QRMI_": "no variable",
        "a_OTHER": "not QRMI's",
    }
    done = submit(stub, option("a,x y"), env=env, context=context)
    done.control.pop("_SLURM_SPANK_OPTION_spank_qrmi_qpu", None)
    passed = {name: value for name, value in done.control.items() if not name.startswith("_")}
    assert passed == {
        "QRMI_QPU": "a,x y",
        "a_QRMI_IBM_QRS_ENDPOINT": "https://x",
        "a_QRMI_EMPTY": "",
        "x y_QRMI_KEY": "k",
    }


@pytest.mark.parametrize(
    ("selection", "passed"),
    [
        ("ibm_*", {"ibm_a_QRMI_KEY", "ibm_b_QRMI_KEY", "ibm_a_QRMI_b_QRMI_KEY"}),
        ("ibm_[b-z]", {"ibm_b_QRMI_KEY"}),
        ("least-busy:ibm_?", {"ibm_a_QRMI_KEY", "ibm_b_QRMI_KEY", "ibm_a_QRMI_b_QRMI_KEY"}),
        ("any:iqm-server", {"ibm_a_QRMI_KEY", "ibm_b_QRMI_KEY", "c_QRMI_KEY", "ibm_a_QRMI_b_QRMI_KEY"}),
        ("c,any:ibm_b*", {"ibm_b_QRMI_KEY", "c_QRMI_KEY"}),
        ("any:", set()),
        ("ibm_a_QRMI_b", {"ibm_a_QRMI_b_QRMI_KEY"}),
        ("ibm_\\*", set()),
    ],
)
def test_variables_for_each_qpu_that_a_choice_may_use(
    stub: Stub, sanitized: Stub, selection: str, passed: set[str]
) -> None:
    """Only the compute nodes know which QPUs exist, and a type may stand for any name."""
    env = {name: "k" for name in ("ibm_a_QRMI_KEY", "ibm_b_QRMI_KEY", "c_QRMI_KEY", "ibm_a_QRMI_b_QRMI_KEY")}
    env |= {"ibm_a_QRMI_JOB_ACQUISITION_TOKEN": "stale", "HOME": "/x_QRMI_KEY"}
    for watching in (stub, sanitized):
        control = submit(watching, option(selection), env=env).control
        assert {name for name in control if "_QRMI_" in name} == passed


def test_variables_of_another_job_stay_out(stub: Stub) -> None:
    """Tokens, timeouts and sessions of a surrounding job are never passed on, nor names that Slurm's own would hide."""
    env = {
        "a_QRMI_JOB_ACQUISITION_TOKEN": "stale",
        "a_QRMI_JOB_TIMEOUT_SECONDS": "1",
        "a_QRMI_IBM_QCS_SESSION_ID": "stale",
        "a_QRMI_IBM_QRS_SESSION_ID": "stale",
        "a_QRMI_IBM_QRS_SESSION_MODE": "batch",
        "SPANK_QRMI_QPU": "x",
        "SLURM_SPANK_QRMI_QPU": "x",
    }
    done = submit(stub, option("a,SPANK,SLURM_SPANK"), env=env)
    passed = {name for name in done.control if not name.startswith("_")}
    assert passed == {"QRMI_QPU", "a_QRMI_IBM_QRS_SESSION_MODE"}


@pytest.mark.parametrize("context", ["allocator", "local"])
def test_what_the_site_gave_the_surrounding_job_is_not_the_users(stub: Stub, sanitized: Stub, context: str) -> None:
    """Its fingerprint tells, even if the site has another value by now; what the user set since is passed on."""
    site = {"a_QRMI_KEY": "of the site", "a-b_QRMI_KEY": "Schlüssel", "a_QRMI_EMPTY": ""}
    given = ",".join(fingerprint(name, value) for name, value in site.items())
    env = {**site, "QRMI_SLURM_GIVEN": given, "a_QRMI_URL": "the user's"}
    for one in (stub, sanitized):
        passed = {name for name in submit(one, option("a,a-b"), env=env, context=context).control if "_QRMI_" in name}
        assert passed == {"a_QRMI_URL"}
        own = submit(one, option("a,a-b"), env={**env, "a_QRMI_KEY": "the user's"}, context=context).control
        assert own["a_QRMI_KEY"] == "the user's"
        assert "a-b_QRMI_KEY" not in own
        assert "a_QRMI_KEY" in submit(one, option("a"), env=site, context=context).control


def test_a_new_job_does_not_repeat_what_the_surrounding_job_was_submitted_with(stub: Stub, sanitized: Stub) -> None:
    """Slurm puts the job-control environment into a batch script's environment too, and so into an inner job's."""
    env = {"SLURM_SPANK_a_QRMI_KEY": "old", "SLURM_SPANK_b_QRMI_KEY": "old", "SLURM_SPANK_OTHER": "x", "X": "y_QRMI_="}
    for one in (stub, sanitized):
        assert submit(one, env=env).environ == {"SLURM_SPANK_OTHER": "x", "X": "y_QRMI_="}
        within = submit(one, env={**env, "SLURM_JOB_ID": "7"}, context="local").environ
        assert within["SLURM_SPANK_a_QRMI_KEY"] == "old"


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("a_QRMI_KEY", "SECRET\nexport PATH=/x", "its value contains a control character"),
        ("a_QRMI_KEY", "SECRET\x7f", "its value contains a control character"),
        ("a_QRMI_KEY", "S" * 65537, "its value is longer than 65536 bytes"),
        ("a_QRMI_" + "N" * 243, "SECRET", "its name is longer than 249 bytes"),
    ],
)
def test_unusable_variable_is_refused(stub: Stub, name: str, value: str, fault: str) -> None:
    """A variable that cannot be passed on is refused by name, without its value."""
    done = submit(stub, option("b,a"), env={name: value})
    assert done.rc("option") != [0]
    assert done.errors == [
        f"spank_qrmi: cannot pass the environment variable {name} to the job for --qpu=a: {fault}; fix or unset it."
    ]
    assert "SECRET" not in "\n".join(line for line in done.lines if not line.startswith("environ"))


def test_largest_variable_is_passed_on(stub: Stub) -> None:
    """A value of 65536 bytes and a name of 249 are passed on whole."""
    name = "a_QRMI_" + "N" * 242
    assert submit(stub, option("a"), env={name: "v" * 65536}).control[name] == "v" * 65536


@pytest.mark.parametrize("terms", ["a", "a,a", "any:*"])
def test_more_than_prolog_can_be_started_with_is_refused(stub: Stub, sanitized: Stub, terms: str) -> None:
    """Slurm drains a node whose Prolog cannot be started: no more than 1 MiB is passed on, including names."""
    most = {f"a_QRMI_{number:02}": "v" * 65_000 for number in range(16)}
    for one in (stub, sanitized):
        if terms != "a,a":
            assert len(submit(one, option(terms), env=most).control) == 18
        done = submit(one, option(terms), env=most | {"a_QRMI_MORE": "v" * 10_000})
        assert done.rc("option") != [0]
        sentence = "the <name>_QRMI_* variables for the QPUs in --qpu total more than 1 MiB; unset some."
        assert done.errors == [f"spank_qrmi: {sentence}"]
        assert not [name for name in done.control if name.startswith("a_")]


def test_the_limit_applies_to_a_step_as_well(stub: Stub) -> None:
    """Without PrologFlags=Alloc a step's request starts Prolog."""
    env = {"SLURM_JOB_ID": "1", "SLURM_SPANK_QRMI_QPU": "a"}
    env |= {f"SLURM_SPANK_a_QRMI_{number:02}": "v" * 65_000 for number in range(20)}
    done = submit(stub, option("a"), env=env, context="local")
    assert done.rc("init_post_opt") != [0]
    assert sum(map(len, done.control.values())) < 1024 * 1024


def test_job_without_qpu_gets_nothing(stub: Stub) -> None:
    """A job without --qpu gets no variable, and loses those that mark the job it is submitted from."""
    env = {"QRMI_SLURM_QPU": "a", "SLURM_SPANK_QRMI_QPU": "a", "a_QRMI_KEY": "k"}
    done = submit(stub, env=env)
    assert done.control == {}
    assert done.environ == {"a_QRMI_KEY": "k"}


def test_nested_job_inherits_the_option(stub: Stub) -> None:
    """A job submitted in a QPU job inherits its --qpu through Slurm, unless it has its own."""
    env = {OPTION_ENV: "a, b", "b_QRMI_KEY": "k"}
    done = submit(stub, env=env)
    assert done.control["QRMI_QPU"] == "a,b"
    assert done.control["b_QRMI_KEY"] == "k"
    assert submit(stub, option("c"), env=env).control["QRMI_QPU"] == "c"


def test_an_unwritable_job_control_environment_is_an_error(stub: Stub) -> None:
    """If Slurm does not accept the selection, init_post_opt fails and says so."""
    done = stub.run("allocator", "init", option("a"), "fail_setenv", "post_opt", "exit")
    assert done.rc("init_post_opt") != [0]
    assert done.errors == ["spank_qrmi: cannot pass QRMI_QPU to the job: fake error; tell an admin."]


# --- heterogeneous jobs: one process, one post_opt for each component ---


def component(*options: str) -> tuple[str, ...]:
    return ("env_option", *options, "post_opt", "dump", "set_spank_env")


def components(done: Outcome) -> list[dict[str, str]]:
    """The job-control environment after each component."""
    found: list[dict[str, str]] = []
    for line in done.lines:
        if line.startswith("rc init_post_opt"):
            found.append({})
        elif line.startswith("control "):
            name, _, value = line.partition(" ")[2].partition("=")
            found[-1][name] = value
    return found


HET_ENV = {"a_QRMI_KEY": "1", "b_QRMI_KEY": "2"}


def test_second_component_without_qpu(stub: Stub, watched: Stub) -> None:
    """sbatch --qpu=a : -N1 leaves nothing of a to the second component, although Slurm still has the option."""
    for one in (stub, watched):
        done = one.run("allocator", "init", *component(option("a")), *component(), "exit", env=HET_ENV)
        assert components(done)[0]["QRMI_QPU"] == "a"
        assert components(done)[0]["a_QRMI_KEY"] == "1"
        assert components(done)[1] == {}


def test_second_component_with_its_own(stub: Stub) -> None:
    """Each component has its own selection and its own variables."""
    done = stub.run("allocator", "init", *component(option("a")), *component(option("b")), "exit", env=HET_ENV)
    second = components(done)[1]
    assert (second["QRMI_QPU"], second["b_QRMI_KEY"]) == ("b", "2")
    assert "a_QRMI_KEY" not in second


def test_qpu_after_a_component_without(stub: Stub) -> None:
    """sbatch -N1 : --qpu=b : -N1 gives b to the second component only."""
    done = stub.run("allocator", "init", *component(), *component(option("b")), *component(), "exit", env=HET_ENV)
    assert [one.get("QRMI_QPU") for one in components(done)] == [None, "b", None]


def test_nested_het_job_inherits_for_each_component(stub: Stub) -> None:
    """Inside a job with --qpu=a, a component without its own has a, whatever the previous one asked for."""
    done = stub.run(
        "allocator", "init", *component(option("b")), *component(), "exit", env={**HET_ENV, OPTION_ENV: "a"}
    )
    assert [one["QRMI_QPU"] for one in components(done)] == ["b", "a"]


def test_variables_are_withdrawn_even_from_an_emptied_environment(stub: Stub) -> None:
    """sbatch --export-file empties the environment between components: a's variables are still withdrawn."""
    done = stub.run("allocator", "init", *component(option("a")), "clear_environ", *component(), "exit", env=HET_ENV)
    assert components(done)[1] == {}


def test_srun_passes_each_components_selection_to_slurmstepd(stub: Stub, watched: Stub) -> None:
    """srun passes the components' selections to slurmstepd, since Slurm sends the last option to all."""
    for one in (stub, watched):
        done = one.run(
            "local",
            "init",
            *("env_option", option("a"), "post_opt"),
            *("new_component", "env_option", "post_opt"),
            *("new_component", "env_option", option("b"), "post_opt"),
            *("dump", "exit"),
        )
        assert done.environ["SLURM_QRMI_HET_QPU"] == "a\\n\\nb"
        assert done.control["QRMI_QPU"] == "b"


def test_single_srun_adds_no_variable(stub: Stub) -> None:
    """An srun that is not heterogeneous adds nothing of ours to its environment."""
    assert set(submit(stub, option("a"), context="local").environ) == {"_SLURM_SPANK_OPTION_spank_qrmi_qpu"}


# --- srun within a job ---


def test_step_passes_the_jobs_selection_to_prolog(stub: Stub) -> None:
    """Without PrologFlags=Alloc a step's request starts Prolog, which then has the job's selection and variables."""
    env = {
        "SLURM_JOB_ID": "1",
        "SLURM_SPANK_QRMI_QPU": "a,b",
        OPTION_ENV: "a,b",
        "SLURM_SPANK_b_QRMI_KEY": "submitted",
        "b_QRMI_KEY": "exported by TaskProlog",
        "b_QRMI_BAD": "line\nbreak",
    }
    done = submit(stub, option("a"), env=env, context="local")
    assert done.rc("option") == [0, 0]
    assert done.control["QRMI_QPU"] == "a,b"
    assert done.control["b_QRMI_KEY"] == "submitted"
    assert done.environ["SLURM_SPANK_QRMI_QPU"] == "a,b"


@pytest.mark.parametrize(("commands", "asked"), [([], None), ([option("a")], "1")])
def test_slurmstepd_is_told_where_srun_was_started_and_what_it_was_asked(
    stub: Stub, commands: list[str], asked: str | None
) -> None:
    """Whether the job is its own is only known there: --jobid may name another."""
    stale = {"SLURM_QRMI_SRUN_JOB_ID": "3", "SLURM_QRMI_SRUN_ASKED": "1", OPTION_ENV: "a"}
    told = submit(stub, *commands, env={**stale, "SLURM_JOB_ID": "7"}, context="local").environ
    assert (told["SLURM_QRMI_SRUN_JOB_ID"], told.get("SLURM_QRMI_SRUN_ASKED")) == ("7", asked)
    outside = submit(stub, *commands, env={**stale, "SLURM_SUBMIT_HOST": "x"}, context="local").environ
    assert not {"SLURM_QRMI_SRUN_JOB_ID", "SLURM_QRMI_SRUN_ASKED", "SLURM_SUBMIT_HOST"} & outside.keys()


def test_step_with_qpu_in_a_job_without(stub: Stub) -> None:
    """srun --qpu=a in a job without QPUs does not make the job's Prolog acquire it."""
    done = submit(stub, option("a"), env={"SLURM_JOB_ID": "1"}, context="local")
    assert "QRMI_QPU" not in done.control


# --- remote: the step's variables ---


def launch(stub: Stub, *commands: str) -> Outcome:
    return stub.run("remote", "init", *commands, "post_opt", "dump", "exit")


def test_step_has_its_selection(stub: Stub, watched: Stub, sanitized: Stub) -> None:
    """The step's selection is QRMI_SLURM_QPU, and overrides an inherited one."""
    for one in (stub, watched, sanitized):
        done = launch(one, *job_env(QRMI_SLURM_QPU="a,b", SLURM_JOB_ID="1"), "job_id 1", option("a , c"))
        assert done.step["QRMI_SLURM_QPU"] == "a,c"


def test_step_without_option_loses_an_inherited_selection(stub: Stub) -> None:
    """Without --qpu, an inherited QRMI_SLURM_QPU is removed and nothing is set."""
    inherited = {"QRMI_SLURM_QPU": "a", "QRMI_SLURM_STATE_DIR": "/elsewhere", "QRMI_SLURM_JOB_ID": "9"}
    done = launch(stub, *job_env(**inherited, SLURM_SUBMIT_HOST="h"), "job_id 8")
    assert done.step == {"SLURM_SUBMIT_HOST": "h"}
    assert done.control == {}


def test_step_with_a_selection_knows_the_state_directory(stub: Stub) -> None:
    """QRMI_SLURM_STATE_DIR overrides an inherited one with --state-dir of the plugin's line, or the default."""
    inherited = job_env(QRMI_SLURM_STATE_DIR="/elsewhere")
    assert launch(stub, *inherited, option("a")).step["QRMI_SLURM_STATE_DIR"] == str(DEFAULT_STATE_DIR)
    assert launch(stub, *inherited, option("a"), "state_dir /shared").step["QRMI_SLURM_STATE_DIR"] == "/shared"


def test_malformed_value_in_slurmstepd(stub: Stub) -> None:
    """A malformed value that still reaches slurmstepd is logged, and not put into the environment."""
    done = launch(stub, *job_env(SLURM_SUBMIT_HOST="h"), "job_id 7", option("a,,b"))
    assert done.rc("option") == [0]
    assert done.errors == [f"spank_qrmi: --qpu contains an empty name{HINT}"]
    assert done.rc("init_post_opt") == [0]
    assert done.step == {"SLURM_SUBMIT_HOST": "h"}


@pytest.mark.parametrize(("job_id", "expected"), [(7, "a"), (8, None), (9, "b"), (10, None)])
def test_het_component_has_its_own_selection(stub: Stub, watched: Stub, job_id: int, expected: str | None) -> None:
    """A step that srun started across a heterogeneous job has its component's selection and its component's job id."""
    for one in (stub, watched):
        variables = job_env(SLURM_JOB_ID="7", SLURM_QRMI_HET_QPU="a\n\nb", SLURM_SUBMIT_HOST="h")
        done = launch(one, *variables, f"job_id {job_id}", option("b"))
        assert done.step.get("QRMI_SLURM_QPU") == expected
        assert done.step.get("QRMI_SLURM_JOB_ID") == (None if job_id == 7 else str(job_id))
        assert "SLURM_QRMI_HET_QPU" not in done.step


def test_het_step_in_a_batch_job(stub: Stub) -> None:
    """srun --het-group=1 in a batch job ignores the first component's inherited --qpu, but not its own."""
    variables = job_env(SLURM_JOB_ID="7", SLURM_SPANK_QRMI_QPU="a")
    assert "QRMI_SLURM_QPU" not in launch(stub, *variables, "job_id 8", option("a")).step
    assert launch(stub, *variables, "job_id 8", option("b")).step["QRMI_SLURM_QPU"] == "b"
    assert launch(stub, *variables, "job_id 7", option("a")).step["QRMI_SLURM_QPU"] == "a"


def in_job(job_id: str, **variables: str) -> list[str]:
    """Return what a step of job 7 has of the job in which its srun was started."""
    return job_env(SLURM_JOB_ID="7", SLURM_SUBMIT_HOST="h", SLURM_QRMI_SRUN_JOB_ID=job_id, **variables)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A slurm.conf."""
    path = tmp_path / "slurm.conf"
    path.write_text("SlurmctldHost=h\nClusterName=here\n")
    return path


@pytest.mark.parametrize(
    ("variables", "is_attached"),
    [
        (in_job("7"), False),
        (job_env(SLURM_JOB_ID="7", SLURM_SUBMIT_HOST="h"), False),  # srun has submitted the job itself
        (job_env(SLURM_JOB_ID="7"), True),  # srun --jobid in a login shell
        (job_env(SLURM_JOB_ID="7", SLURM_QRMI_SRUN_JOB_ID="7"), True),  # env -i in the job
        (in_job("6"), True),
        (in_job("7", QRMI_SLURM_JOB_ID="7"), True),  # in the shell of such a step
        (in_job("7", QRMI_SLURM_JOB_ID="6"), False),
        ([*job_env(SLURM_JOB_ID="7"), "batch_step"], False),
    ],
)
def test_a_step_that_was_attached_from_elsewhere_is_told_its_job(
    stub: Stub, sanitized: Stub, conf: Path, variables: list[str], is_attached: bool
) -> None:
    """Its own environment does not tell whether the job has QPUs, so TaskProlog looks for the job's folder."""
    for one in (stub, sanitized):
        done = launch(one, *variables, "job_id 7", f"slurm_conf {conf}", "state_dir /s")
        ours = {name: value for name, value in done.step.items() if "QRMI" in name}
        assert ours == ({"QRMI_SLURM_JOB_ID": "7", "QRMI_SLURM_STATE_DIR": "/s"} if is_attached else {})
        assert done.step.get("SLURM_CLUSTER_NAME") == ("here" if is_attached else None)


@pytest.mark.parametrize(("asked", "selection"), [({}, None), ({"SLURM_QRMI_SRUN_ASKED": "1"}, "a")])
def test_a_step_in_another_job_keeps_no_selection_but_its_own(
    stub: Stub, asked: dict[str, str], selection: str | None
) -> None:
    """srun inherits --qpu from the job in which it was started, which is not that of the step's job."""
    of_another = {"SLURM_SPANK_QRMI_QPU": "a", OPTION_ENV: "a", "SLURM_JOB_RESTART_COUNT": "3"}
    done = launch(stub, *in_job("6", **of_another, **asked), option("a"), "job_id 7")
    assert done.step.get("QRMI_SLURM_QPU") == selection
    assert not {*of_another, "SLURM_QRMI_SRUN_JOB_ID", "SLURM_QRMI_SRUN_ASKED"} & done.step.keys()
    done = launch(stub, *in_job("7", **of_another), option("a"), "job_id 7")
    assert (done.step["QRMI_SLURM_QPU"], done.step["SLURM_SPANK_QRMI_QPU"]) == ("a", "a")


@pytest.mark.parametrize(
    "text",
    [
        "ClusterName=here",
        '# ClusterName=no\nUnkillableStepTimeout=9\n  clustername = "Here" # the name\nClusterNames=no',
        "ClusterName=no\nInclude more.conf\n",
        "Include loop.conf\nInclude nothing.conf\ninclude  {folder}/more.conf ",
    ],
)
def test_the_clusters_name_is_read_as_slurm_reads_it(stub: Stub, sanitized: Stub, tmp_path: Path, text: str) -> None:
    """Upper and lower case, blanks, quotes, comments, includes; the last one counts."""
    conf = tmp_path / "slurm.conf"
    conf.write_text(text.format(folder=tmp_path))
    (tmp_path / "more.conf").write_text("ClusterName=here\n")
    (tmp_path / "loop.conf").write_text("Include loop.conf\n")
    for one in (stub, sanitized):
        done = launch(one, *job_env(SLURM_JOB_ID="7"), "job_id 7", f"slurm_conf {conf}", option("a"))
        assert done.step["SLURM_CLUSTER_NAME"] == "here"


def test_a_step_with_a_selection_has_this_clusters_name(stub: Stub, conf: Path) -> None:
    """Whatever its environment says: the exports' path has it."""
    variables = job_env(SLURM_JOB_ID="7", SLURM_CLUSTER_NAME="elsewhere")
    assert launch(stub, *variables, "job_id 7", f"slurm_conf {conf}", option("a")).step["SLURM_CLUSTER_NAME"] == "here"
    assert launch(stub, *variables, "job_id 7", option("a")).step["SLURM_CLUSTER_NAME"] == "elsewhere"


@pytest.fixture
def array_job(tmp_path: Path) -> Path:
    """The folder that Prolog has made for job 12."""
    folder = tmp_path / "c" / "12"
    folder.mkdir(parents=True)
    return folder


def launch_of_array(stub: Stub, state_dir: Path, *commands: str, cluster: str = "c") -> Outcome:
    variables = job_env(SLURM_JOB_ID="12", SLURM_CLUSTER_NAME=cluster)
    return launch(stub, *variables, f"state_dir {state_dir}", "job_id 12", "array 10 3", *commands)


def test_job_array_ids_are_written_into_the_jobs_folder(
    stub: Stub, watched: Stub, array_job: Path, tmp_path: Path
) -> None:
    """Readable only by root, and written again after a requeue."""
    for one in (stub, watched):
        done = launch_of_array(one, tmp_path, "batch_step", option("a"))
        assert done.step["QRMI_SLURM_QPU"] == "a"
        [path] = array_job.iterdir()
        assert path.read_text() == "10_3\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert JobFolder(tmp_path, "c", 12).array_ids() == (10, 3)


@pytest.mark.parametrize(
    ("commands", "cluster"),
    [
        ([option("a")], "c"),  # an srun step gets the ids from its environment, which users can set
        (["batch_step"], "c"),  # no --qpu
        (["batch_step", "array 0 4294967294", option("a")], "c"),
        (["batch_step", "array 4294967294 3", option("a")], "c"),
        (["batch_step", option("a")], "x/../c"),
        (["batch_step", option("a")], "../c"),
        (["batch_step", option("a")], ""),
        (["batch_step", option("a")], "c" * 300),
        (["batch_step", "job_id 13", option("a")], "c"),
    ],
)
def test_no_job_array_ids_are_written(
    stub: Stub, array_job: Path, tmp_path: Path, commands: list[str], cluster: str
) -> None:
    """Nothing is written without an array, a folder and Slurm's own ids."""
    (tmp_path / "x").mkdir()
    launch_of_array(stub, tmp_path, *commands, cluster=cluster)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_link_in_place_of_the_ids_file_is_not_followed(stub: Stub, array_job: Path, tmp_path: Path) -> None:
    (array_job / "array").symlink_to(tmp_path / "elsewhere")
    launch_of_array(stub, tmp_path, "batch_step", option("a"))
    assert not (tmp_path / "elsewhere").exists()


# --- logging, memory ---


def test_log_has_no_secret(stub: Stub) -> None:
    """At debug level the log has the calls, the selection and variables' names, but no value or plugin argument."""
    env = {"a_QRMI_IAM_APIKEY": "USERSECRET"}
    done = stub.run("allocator", "init", option("a"), "post_opt", "exit", env=env)
    log = "\n".join(done.lines)
    assert "SECRET" not in log
    assert done.errors == []
    for pattern in (
        r"spank_qrmi\(\d+, \d+\): -> slurm_spank_init argc=2 remote=0",
        r"spank_qrmi\(\d+, \d+\): <- slurm_spank_init rc=0",
        r"spank_qrmi: --qpu=\[a\]",
        r"spank_qrmi\(\d+, \d+\): -> slurm_spank_init_post_opt argc=2 remote=0",
        r"spank_qrmi: passing on a_QRMI_IAM_APIKEY",
        r"spank_qrmi\(\d+, \d+\): <- slurm_spank_init_post_opt rc=0",
    ):
        assert any(re.fullmatch(pattern, line) for line in done.debug), pattern


def test_memory_is_clean(watched: Stub, sanitized: Stub) -> None:
    """Neither valgrind nor the sanitizers find a fault or a leak, with the longest selection and many variables."""
    name = "q" * 100
    selection = ",".join([name] * 40)
    env = {f"{name}_QRMI_{number}": "v" * number for number in range(100)}
    for one in (watched, sanitized):
        done = one.run("allocator", "init", *component(option(selection)), *component(option("z")), "exit", env=env)
        assert components(done)[0]["QRMI_QPU"] == selection
        assert components(done)[1].keys() == {"QRMI_QPU", "_SLURM_SPANK_OPTION_spank_qrmi_qpu"}
