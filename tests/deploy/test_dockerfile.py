"""The images, without a Docker: what the Dockerfile says is checked, and its own install steps are carried out."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from eorouter.__main__ import COMMANDS
from eorouter.jobs import certificates

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"
TARGETS = ("api", "worker")
# What Debian's slim image brings because apt itself needs it, beside glibc's own.
SYSTEM_LIBRARIES = re.compile(r"^(ld-linux-.*|lib(c|dl|m|pthread|resolv|rt|util|gcc_s|stdc\+\+|z))\.so\b")
PACKAGE_OF = {"libexpat.so.1": "libexpat1"}
NOT_USED = {"libgomp.so.1.0.0", "libtbb.so.12", "libgomp.so.1"}  # numba's threading layers: kernels are never parallel


class Step:
    """An instruction with its words; `stage` names whose it is."""

    def __init__(self, stage: str, text: str) -> None:
        self.stage = stage
        self.name, _, self.rest = text.partition(" ")

    @property
    def words(self) -> list[str]:
        return json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)


def steps() -> list[Step]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE))
    found: list[Step] = []
    stage = ""
    for line in filter(None, map(str.strip, joined.splitlines())):
        if line.startswith("FROM "):
            stage = line.split(" AS ")[1]
        found.append(Step(stage, re.sub(r" +", " ", line)))
    return found


STEPS = steps()
BASES = {step.stage: step.words[0] for step in STEPS if step.name == "FROM"}


def lineage(stage: str) -> list[str]:
    """The stages whose instructions a stage has, first to last."""
    return [*(lineage(BASES[stage]) if BASES.get(stage) in BASES else []), stage]


def of(target: str, name: str) -> list[Step]:
    return [step for stage in lineage(target) for step in STEPS if step.stage == stage and step.name == name]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out; the last pattern that matches it or a folder above it wins."""
    ignored = False
    parents = [path, *(parent.as_posix() for parent in Path(path).parents if parent != Path())]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        anywhere = pattern.removeprefix("**/") if pattern.startswith("**/") else None
        hit = any(
            fnmatchcase(Path(each).name, anywhere)
            if anywhere
            else ("/" not in each or "/" in pattern) and fnmatchcase(each, pattern)
            for each in parents
        )
        if hit:
            ignored = not line.startswith("!")
    return ignored


def sources() -> list[tuple[str, str]]:
    """What is copied from the repository, and where to."""
    copies = [step.words for step in STEPS if step.name == "COPY" and not step.rest.startswith("--from")]
    return [(source, words[-1]) for words in copies for source in words[:-1]]


def test_every_source_of_a_copy_is_in_the_repository_and_in_the_context():
    assert {"pyproject.toml", "constraints.txt", "src", "compute", "kernels"} <= {source for source, _ in sources()}
    for source, _ in sources():
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source


def test_context_holds_what_the_wheel_is_built_of_and_nothing_else():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    kept = {path.split("/")[0] for path in tracked if not is_ignored(path)}
    assert kept == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "kernels", "compute", "src", "deploy"}
    assert [path for path in tracked if path.startswith("deploy/") and not is_ignored(path)] == ["deploy/health.py"]
    for stray in (
        ".git/config",
        ".venv/bin/python",
        "src/eorouter/.env",
        "eorouter-data/secret",
        "src/x/__pycache__/a.pyc",
    ):
        assert is_ignored(stray), stray


@pytest.mark.parametrize("target", TARGETS)
def test_target_runs_as_a_numeric_user_that_is_not_root(target):
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", of(target, "USER")[-1].rest)
    uid = of(target, "USER")[-1].rest.split(":")[0]
    assert any(f"--uid {uid} " in step.rest for step in of(target, "RUN"))
    last = [step.name for step in STEPS if step.stage == target]
    assert "RUN" not in last[last.index("USER") :]


@pytest.mark.parametrize("target", TARGETS)
def test_target_starts_a_command_that_exists(target):
    (entry,), (command,) = of(target, "ENTRYPOINT"), of(target, "CMD")
    assert entry.words == ["eorouter"]
    assert command.words == [target]
    assert target in {name for _, name in COMMANDS}


@pytest.mark.parametrize("target", TARGETS)
def test_target_says_whether_it_is_well_without_curl(target):
    (check,) = of(target, "HEALTHCHECK")
    command = json.loads(check.rest.split(" CMD ")[1])
    assert command[:3] == ["python", "-I", "/opt/eorouter/health.py"]
    assert ("deploy/health.py", "/opt/eorouter/health.py") in sources()


@pytest.mark.parametrize("target", TARGETS)
def test_target_says_what_it_is_and_is_of_this_release(target):
    labels = dict(word.split("=", 1) for step in of(target, "LABEL") for word in step.words)
    release = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert release is not None
    assert labels["org.opencontainers.image.version"] == release[1]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {"org.opencontainers.image.title", "org.opencontainers.image.description"} <= labels.keys()


@pytest.mark.parametrize("target", TARGETS)
def test_target_writes_to_volumes_only(target):
    volumes = of(target, "VOLUME")[-1].words
    variables = dict(word.split("=", 1) for step in of(target, "ENV") for word in step.words)
    assert {variables["NUMBA_CACHE_DIR"], variables["EOROUTER_DATA_DIR"], variables["HOME"], "/tmp"} == set(volumes)


def test_base_is_pinned_and_can_be_pinned_to_a_digest():
    arguments = dict(step.rest.split("=", 1) for step in STEPS if step.name == "ARG")
    assert BASES["base"] == "python:${PYTHON_TAG}${PYTHON_DIGEST}"
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", arguments["PYTHON_TAG"])
    assert arguments["PYTHON_DIGEST"] == ""
    assert {base for stage, base in BASES.items() if stage != "base"} <= BASES.keys()


def test_packages_are_pinned_by_the_constraints():
    installs = [step for step in STEPS if step.name == "RUN" and " pip install " in step.rest]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in step.rest for step in installs)


def test_no_layer_holds_a_secret():
    names = [step.rest for step in STEPS if step.name in {"ENV", "ARG", "LABEL"}]
    assert not [name for name in names if re.search(r"SECRET|TOKEN|PASSWORD|DATABASE|AWS_|_KEY", name)]
    assert not [source for source, _ in sources() if re.search(r"\.(pem|key|crt|env)$|secret", source)]


# ---------------------------------------------------------------------------------------------------------------------
# The install steps, carried out


def installed(target: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Carry out the build steps of a target below a folder; returns its virtual environment and its variables."""
    venv, cache, context = folder / "opt", folder / "cache", folder / "src"
    context.mkdir()
    for source, into in sources():
        if into.startswith("/"):
            continue
        place = context / (into if (ROOT / source).is_dir() else source)
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / source, place, ignore=ignore) if (ROOT / source).is_dir() else shutil.copy(
            ROOT / source, place
        )
    moved = {"/opt/eorouter": str(venv), "/var/cache/eorouter": str(cache), "/var/lib/eorouter": str(folder / "lib")}

    def here(text: str) -> str:
        for old, new in moved.items():
            text = text.replace(old, new)
        return text

    declared = dict(word.split("=", 1) for step in of(target, "ENV") for word in step.words)
    arguments = dict(step.rest.split("=", 1) for step in STEPS if step.name == "ARG")
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EOROUTER_", "VIRTUAL"))
    }
    variables = plain | {
        name: here(re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], value))
        for name, value in declared.items()
        if name != "PATH"
    }
    for step in of(f"build-{target}", "RUN"):
        if "apt-get" in step.rest:
            continue
        command = here(step.rest).replace("python -m venv", f"{sys.executable} -m venv")
        ran = subprocess.run(
            ["sh", "-ec", command], cwd=context, env=variables, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return venv, variables


def missing_libraries(venv: Path) -> dict[str, str]:
    """Shared libraries that wheels take from the system, with a file that does."""
    files = [*venv.rglob("*.so"), *venv.rglob("*.so.*")]
    bundled = {path.name for path in files}
    needed: dict[str, str] = {}
    for path in files:
        told = subprocess.run(["readelf", "-d", str(path)], check=True, capture_output=True, text=True).stdout
        for name in re.findall(r"NEEDED.*\[(.*)\]", told):
            if name not in bundled and not SYSTEM_LIBRARIES.match(name) and name not in NOT_USED:
                needed[name] = path.name
    return needed


class Image:
    """What the build steps of a target made, run as a container with a read-only root is."""

    def __init__(self, target: str, folder: Path) -> None:
        self.folder = folder
        self.venv, self.variables = installed(target, folder)
        self.writable = folder / "writable"
        # As the chart does it: the cache is copied to where it can be written.
        shutil.copytree(folder / "cache", self.writable / "cache")
        for name in ("lib", "tmp"):
            (self.writable / name).mkdir()
        self.variables |= {
            "NUMBA_CACHE_DIR": str(self.writable / "cache"),
            "EOROUTER_DATA_DIR": str(self.writable / "lib"),
            "HOME": str(self.writable / "lib"),
            "TMPDIR": str(self.writable / "tmp"),
        }

    @contextmanager
    def start(self, *command: str, **variables: str) -> "Iterator[subprocess.Popen[str]]":
        program = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
        alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
        with subprocess.Popen(
            [*alone, "sh", "-ec", program, str(self.writable), *command],
            env=self.variables | variables,
            cwd=self.writable,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *command: str, **variables: str) -> str:
        with self.start(*command, **variables) as process:
            out, told = process.communicate()
            assert process.returncode == 0, told[-4000:]
        return out

    def program(self, name: str) -> str:
        return str(self.venv / "bin" / name)

    def is_well(self, process: "subprocess.Popen[str]", *arguments: str) -> bool:
        """Ask as the HEALTHCHECK does, again and again while the process lives."""
        while process.poll() is None:
            asked = [self.program("python"), "-I", str(ROOT / "deploy/health.py"), *arguments]
            if subprocess.run(asked, check=False).returncode == 0:
                return True
            threading.Event().wait(0.5)
        return False


@pytest.fixture(scope="module")
def image(request, tmp_path_factory):
    return Image(request.param, tmp_path_factory.mktemp(request.param))


def _ended(process: "subprocess.Popen[str]") -> str:
    """Tell a process to stop; returns what it wrote to standard error."""
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()
    assert process.returncode == 0, told[-4000:]
    return told


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("image", TARGETS, indirect=True, ids=TARGETS)
class TestInstallSteps:
    """One installation per target; it takes minutes."""

    def test_packages_are_those_of_the_target(self, image, request):
        packages = {path.name for path in (image.venv / "lib").rglob("site-packages/*")}
        assert ("sqlalchemy" in packages) == ("api" in request.node.name)
        assert "distributed" in packages
        apt = next(step.rest for step in of("base", "RUN") if "apt-get" in step.rest)
        for library, file in missing_libraries(image.venv).items():
            assert PACKAGE_OF.get(library, library) in apt, f"{file} needs {library}"

    def test_kernels_are_found_and_none_is_compiled_again(self, image):
        cache = image.writable / "cache"
        before = {path.relative_to(cache): path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}
        assert len(before) > 100
        image.run(image.program("python"), "-c", "import eorouter_kernels; eorouter_kernels.warm_up()")
        assert {path.relative_to(cache): path.stat().st_mtime_ns for path in cache.rglob("*.nb?")} == before

    def test_parts_run_on_a_read_only_disk(self, image, request, tmp_path, least):
        certificates.make(tmp_path / "tls", [])
        if "api" in request.node.name:
            self.api_and_dispatcher_run(image, tmp_path, least)
        else:
            self.scheduler_and_worker_run(image, tmp_path, least)

    def api_and_dispatcher_run(self, image, tmp_path, least):
        assert "The schema is version" in image.run(image.program("eorouter"), "migrate")
        url = f"http://127.0.0.1:{(port := _free_port())}"
        with image.start(image.program("eorouter"), "api", EOROUTER_PORT=str(port)) as api:
            path = least.pods["api"]["spec"]["containers"][0]["startupProbe"]["httpGet"]["path"]
            assert image.is_well(api, "http", url + path)
            _ended(api)
        # No scheduler answers it; it is there all the same, and says so.
        metrics = f"127.0.0.1:{_free_port()}"
        given = _given(least, "dispatcher", tmp_path) | {
            "EOROUTER_SCHEDULER_ADDRESS": f"tls://127.0.0.1:{_free_port()}",
            "EOROUTER_METRICS_ADDRESS": metrics,
        }
        for of_the_store in ("EOROUTER_OBJECTS_URL", "AWS_REGION"):
            del given[of_the_store]
        with image.start(image.program("eorouter"), "dispatcher", **given) as dispatcher:
            path = least.pods["dispatcher"]["spec"]["containers"][0]["startupProbe"]["httpGet"]["path"]
            assert image.is_well(dispatcher, "http", f"http://{metrics}{path}")
            assert dispatcher.stderr is not None
            assert any("cluster.scheduler.unreachable" in line for line in dispatcher.stderr)
            _ended(dispatcher)

    def scheduler_and_worker_run(self, image, tmp_path, least):
        port = _free_port()
        given = _given(least, "worker", tmp_path) | {"EOROUTER_SCHEDULER_ADDRESS": f"tls://127.0.0.1:{port}"}
        eorouter = image.program("eorouter")
        with (
            image.start(eorouter, "scheduler", **given) as scheduler,
            image.start(eorouter, "worker", **given) as worker,
        ):
            assert image.is_well(worker, "connected", str(port))
            assert worker.stderr is not None
            assert any("worker.started" in line for line in worker.stderr)  # reads on until it comes, or the end
            assert "worker.drained" in _ended(worker)
            _ended(scheduler)


def _given(least, part: str, folder: Path) -> dict[str, str]:
    """The plain variables that the chart gives to a part, with certificates of a folder."""
    (container,) = least.pods[part]["spec"]["containers"]
    return {
        each["name"]: each["value"].replace("/etc/eorouter/tls", str(folder / "tls"))
        for each in container["env"]
        if "value" in each and each["name"] != "EOROUTER_DATA_DIR"
    }
