"""Runs a package's tests many times over, each time with other files: the program inside the sandbox. Standard library and pytest only.

``python3 -S -c <this source>`` reads one JSON object on standard input and answers each job with one JSON line, as soon as it is done.
Every job runs in a fork of this process, in which pytest and the modules that the tests need anyway (but nothing of the package or its
tests) are already imported. That costs milliseconds where a new interpreter costs half a second.

A fork has a deadline, bounded memory and processor time, its own session, and no say about its end: it is killed with all it started.
Then the files it was given are put back as they were, and any other file that it changed, made or removed.
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
from typing import Any  # Any: what came as JSON

MAX_TEXT = 4000
Json = dict[str, Any]


def main() -> None:
    """Answer every job of the request."""
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
    import pytest  # noqa: F401 - what every fork needs

    preload(request.get("preload", ()))
    clean = snapshot(root)
    for job in request["jobs"]:
        answer = run(job, root, request, clean)
        answers.write(json.dumps({"id": job["id"], **answer}) + "\n")
        answers.flush()


def preload(names: list[str]) -> None:
    """Import what the tests were seen to import, as far as it is neither the package's nor the tests'."""
    for name in names:
        with contextlib.suppress(Exception):
            __import__(name)


def run(job: Json, root: str, request: Json, clean: Json) -> Json:
    """Run one job in a fork and return what it found."""
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
    put_back(root, written, clean)
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
    """Return what the fork wrote until it closed its end, and whether it did so before the deadline."""
    data = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            chunk = os.read(reader, 1 << 20)
            if not chunk:
                return bytes(data), True
            data += chunk
    return bytes(data), False


def serve(job: Json, root: str, request: Json, writer: int, scratch: str) -> None:
    """Run pytest in the fork, report through the pipe, and end without any clean-up of the tests' own."""
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
        watch = Watch(root)
        arguments = [*request["args"], "-q", "-rN", "-p", "no:cacheprovider", f"--basetemp={scratch}/tmp"]
        code = int(pytest.main(arguments, plugins=[watch]))
        report = watch.report()
        report["status"] = "done" if code in (0, 1) else "broken"
        if job.get("first"):
            report["modules"] = [name for name in sys.modules if name not in before and foreign(name, root)]
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(report).encode())
    finally:
        os._exit(0)


def foreign(name: str, root: str) -> bool:
    """Whether a loaded module is of the standard library or the tools: safe to import before the package."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    return name == getattr(module, "__name__", "") and (
        file is None or not os.path.abspath(file).startswith(root + os.sep)
    )  # noqa: PTH100


class Watch:
    """A pytest plug-in: an outcome for each test, and how those failed that failed."""

    def __init__(self, root: str) -> None:
        self.root = root + os.sep
        self.tests: dict[str, str] = {}
        self.failures: dict[str, Json] = {}
        self.broken: list[str] = []

    def pytest_configure(self, config: object) -> None:
        """Spare pytest from composing what nobody reads."""
        config.option.tbstyle = "value"  # type: ignore[attr-defined]

    def pytest_collectreport(self, report: object) -> None:
        """Note files that cannot be imported."""
        if report.failed:  # type: ignore[attr-defined]
            self.broken.append(report.nodeid)  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: object) -> None:
        """Note a test's outcome: the worst of its set-up, call and teardown."""
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
        """Note how a test failed."""
        name = getattr(node, "nodeid", "")
        error = call.excinfo.value  # type: ignore[attr-defined]
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if frame.filename.startswith(self.root)]
        try:
            told = str(error)
        except Exception:  # the broken package may break this as well
            told = ""
        self.failures[name] = {
            "type": type(error).__name__,
            "message": told[:MAX_TEXT],
            "frames": [(frame.filename[len(self.root) :], frame.lineno, frame.name) for frame in inside][
                -40:
            ],
        }

    def report(self) -> Json:
        """Return all that was seen."""
        return {"tests": self.tests, "failures": self.failures, "broken": self.broken}


def write(files: Json) -> Json:
    """Write files and return what was there, with its times; a new time each time, so that nothing compiled before is taken for it."""
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


def put_back(root: str, written: Json, clean: Json) -> None:
    """Make the folder as it was: the files of the job, and whatever else it touched."""
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
    """Return size, time and content of every file."""
    found = {}
    for path, (size, when) in stats(root).items():
        with open(path, "rb") as file:  # noqa: PTH123
            found[path] = (size, when, file.read())
    return found


def stats(root: str) -> Json:
    """Return size and time of every file below a folder."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118
            about = os.lstat(path)
            found[path] = (about.st_size, about.st_mtime_ns)
    return found


if __name__ == "__main__":
    main()
