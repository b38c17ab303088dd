"""The guest's entry point: the operations that it offers, and its start."""

from __future__ import annotations

import gc
import os
import sys

from agentrl_sandboxes.guest.commands import Exec, KillAll
from agentrl_sandboxes.guest.files import Read, Write
from agentrl_sandboxes.guest.light import dumps, loads
from agentrl_sandboxes.guest.ports import Connect
from agentrl_sandboxes.guest.processes import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl, save_memory
from agentrl_sandboxes.guest.server import Guest, Operation
from agentrl_sandboxes.guest.shell import CloseShell, OpenShell, RunInShell
from agentrl_sandboxes.guest.tar import GetTar, PutTar
from agentrl_sandboxes.guest.wire import RESULT

OPERATIONS: dict[str, type[Operation]] = {
    "exec": Exec,
    "kill_all": KillAll,
    "read": Read,
    "write": Write,
    "put_tar": PutTar,
    "get_tar": GetTar,
    "connect": Connect,
    "shell": OpenShell,
    "run": RunInShell,
    "close_shell": CloseShell,
}


def main() -> None:
    """Greet the host, then serve its requests."""
    guest = Guest(loads(sys.argv[1]), OPERATIONS)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        os.makedirs(guest.workdir, exist_ok=True)
        os.chdir(guest.workdir)
    except OSError as problem:
        greeting = {"errno": problem.errno, "error": f"{guest.workdir}: {problem.strerror}"}
    else:
        greeting = {"python": sys.version.split()[0], "pid": os.getpid()}
    guest.send(RESULT, 0, dumps(greeting).encode())
    save_memory()
    gc.freeze()
    try:
        guest.loop.run()
    except Exception as problem:  # a broken guest reports the error, and kills what it started
        guest.send(RESULT, 0, repr(problem)[:4096].encode())
        guest.exit()
        guest.loop.run()
