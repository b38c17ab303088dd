"""The program inside the sandbox: runs a package's tests many times, each time with other files.

It needs only the standard library and pytest. ``python3 -S -c <this source>`` reads one JSON object from
standard input, and answers each job with one JSON line as soon as the job is done. Every job runs in a fork
of this process, in which pytest and other modules that the tests use (but no module of the package or its
tests) are already imported. A fork costs milliseconds; a new interpreter costs half a second.

A fork has a deadline, limits on memory and processor time, and its own session. At its end it is killed with
all its child processes. Then the files that the job replaced are restored, and so is every other file that it
changed, made or removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any  # Any: JSON

MAX_TEXT = 4000
Json = dict[str, Any]


def main() -> None:
    """Read the request from standard input, and answer each of its jobs with a line on standard output."""
    request = json.loads(sys.stdin.buffer.read())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    root = os.path.abspath(request["folder"])  # noqa: PTH100 - no pathlib: the tests may break it
    os.chdir(root)
    sys.path[:0] = [os.path.join(root, request["path"]), *request["tools"]]  # noqa: PTH118
    sys.path[:] = [os.path.abspath(entry) for entry in sys.path if entry]  # noqa: PTH100
    sys.pycache_prefix = request["compiled"]
    sys.argv = ["pytest"]
    os.environ["PYTHONPATH"] = os.pathsep.join([request["path"], *request["tools"]])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    import pytest  # noqa: F401 - so that every fork has it

    preload(request.get("preload", ()))
    clean = snapshot(root)
    for job in request["jobs"]:
        answer = run(job, root, request, clean)
        answers.write(json.dumps({"id": job["id"], **answer}) + "\n")
        answers.flush()


def preload(names: list[str]) -> None:
    """Import modules, so that every fork has them; skip those that cannot be imported.

    ``names`` are modules that the tests import and that belong neither to the package nor to the tests.
    """
    for name in names:
        with contextlib.suppress(Exception):
            __import__(name)


def run(job: Json, root: str, request: Json, clean: Json) -> Json:
    """Run one job in a fork, restore the files, and return the results.

    ``clean`` is the snapshot of the folder ``root`` before any job.
    """
    written = write(job.get("files", {}))
    scratch = tempfile.mkdtemp(prefix="job-")
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        serve(job, root, request, writer, scratch)
    os.close(writer)
    data, ended = collect(reader, started + job["timeout_s"])
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, _, usage = os.wait4(child, 0)
    wall = time.monotonic() - started
    restore(root, written, clean)
    shutil.rmtree(scratch, ignore_errors=True)
    answer = {"status": "hung", "tests": {}, "failures": {}}
    if ended:
        answer["status"] = "crashed"
        with contextlib.suppress(ValueError):
            answer.update(json.loads(data))
    if usage.ru_utime + usage.ru_stime >= job["timeout_s"] and not answer["tests"]:
        answer["status"] = "hung"
    return {**answer, "wall_s": round(wall, 4), "cpu_s": round(usage.ru_utime + usage.ru_stime, 4)}


def collect(reader: int, deadline: float) -> tuple[bytes, bool]:
    """Return the fork's output, and whether it closed the pipe before the deadline."""
    data = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            chunk = os.read(reader, 1 << 20)
            if not chunk:
                return bytes(data), True
            data += chunk
    return bytes(data), False


def serve(job: Json, root: str, request: Json, writer: int, scratch: str) -> None:
    """Run pytest in this fork, report through the pipe, and exit without running the tests' clean-up."""
    try:
        os.setsid()
        os.set_inheritable(writer, False)
        resource.setrlimit(resource.RLIMIT_AS, (request["memory_mib"] << 20,) * 2)
        seconds = int(job["timeout_s"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.dont_write_bytecode = not job.get("first", False)
        sink = os.open(os.devnull, os.O_RDWR)
        os.dup2(sink, 2)
        import pytest

        before = set(sys.modules)
        recorder = ResultRecorder(root)
        arguments = [*request["args"], "-q", "-rN", "-p", "no:cacheprovider", f"--basetemp={scratch}/tmp"]
        code = int(pytest.main(arguments, plugins=[recorder]))
        report = recorder.report()
        report["status"] = "done" if code in (0, 1) else "broken"
        if job.get("first"):
            report["modules"] = [name for name in sys.modules if name not in before and foreign(name, root)]
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(report).encode())
    finally:
        os._exit(0)


def foreign(name: str, root: str) -> bool:
    """Whether a loaded module is outside the repository, so that it is safe to import before the package."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    outside = file is None or not os.path.abspath(file).startswith(root + os.sep)  # noqa: PTH100
    return name == getattr(module, "__name__", "") and outside


class ResultRecorder:
    """A pytest plug-in that records the outcome of each test, and the details of each failure."""

    def __init__(self, root: str) -> None:
        self.root = root + os.sep
        self.tests: dict[str, str] = {}
        self.failures: dict[str, Json] = {}
        self.broken: list[str] = []

    def pytest_configure(self, config: object) -> None:
        """Turn off pytest's tracebacks, because nobody reads them and composing them takes time."""
        config.option.tbstyle = "value"  # type: ignore[attr-defined]

    def pytest_collectreport(self, report: object) -> None:
        """Record a file that cannot be imported."""
        if report.failed:  # type: ignore[attr-defined]
            self.broken.append(report.nodeid)  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: object) -> None:
        """Record a test's outcome: the worst of the outcomes of its set-up, call and teardown."""
        outcome = report.outcome  # type: ignore[attr-defined]
        expected = hasattr(report, "wasxfail")
        word = {
            "passed": "XPASS" if expected else "PASSED",
            "skipped": "XFAIL" if expected else "SKIPPED",
        }.get(outcome, "FAILED")
        if outcome == "failed" and report.when != "call":  # type: ignore[attr-defined]
            word = "ERROR"
        order = ["PASSED", "XFAIL", "SKIPPED", "XPASS", "FAILED", "ERROR"]
        name = report.nodeid  # type: ignore[attr-defined]
        self.tests[name] = max(self.tests.get(name, "PASSED"), word, key=order.index)

    def pytest_exception_interact(self, node: object, call: object, report: object) -> None:
        """Record how a test failed: the exception and the traceback's entries inside the repository."""
        name = getattr(node, "nodeid", "")
        error = call.excinfo.value  # type: ignore[attr-defined]
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if frame.filename.startswith(self.root)]
        try:
            message = str(error)
        except Exception:  # the bug may also break an exception's __str__
            message = ""
        self.failures[name] = {
            "type": type(error).__name__,
            "message": message[:MAX_TEXT],
            "frames": [(frame.filename[len(self.root) :], frame.lineno, frame.name) for frame in inside][
                -40:
            ],
        }

    def report(self) -> Json:
        """Return everything that was recorded, as a value for JSON."""
        return {"tests": self.tests, "failures": self.failures, "broken": self.broken}


def write(files: Json) -> Json:
    """Overwrite files; return their earlier content, modification time and mode, by path.

    The new modification time is later than the old one, so that a compiled file of the old content is not
    mistaken for a current one.
    """
    before = {}
    for path, text in files.items():
        with open(path, "rb") as file:  # noqa: PTH123
            found = os.stat(path)  # noqa: PTH116
            before[path] = (file.read(), found.st_mtime_ns, found.st_mode)
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(text.encode())
        later = found.st_mtime_ns + 10_000_000_000
        os.utime(path, ns=(later, later))
    return before


def restore(root: str, written: Json, clean: Json) -> None:
    """Restore the folder ``root``: the files that were replaced for the job, and all that its tests touched.

    ``written`` is what `write` returned, and ``clean`` is the snapshot of the folder before any job.
    """
    for path, (data, when, _) in written.items():
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(data)
        os.utime(path, ns=(when, when))
    now = stats(root)
    for path in now.keys() - clean.keys():
        os.remove(path)  # noqa: PTH107
    for path, (size, when, data) in clean.items():
        if now.get(path) != (size, when):
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(data)
            os.utime(path, ns=(when, when))


def snapshot(root: str) -> Json:
    """Return the size, modification time and content of every file below a folder, by path."""
    found = {}
    for path, (size, when) in stats(root).items():
        with open(path, "rb") as file:  # noqa: PTH123
            found[path] = (size, when, file.read())
    return found


def stats(root: str) -> Json:
    """Return the size and modification time of every file below a folder, by path."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118
            about = os.lstat(path)
            found[path] = (about.st_size, about.st_mtime_ns)
    return found


if __name__ == "__main__":
    main()
