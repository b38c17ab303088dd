"""The guest: the first process inside a sandbox, which serves the host over its standard input and output.

It uses the standard library only (Python 3.8 or later), one event loop and no threads. ``command`` packs the
modules of this package into arguments, so that the interpreter of any image can run it, and nothing has to be
installed inside.

The guest exits, and everything inside with it, when its input ends, when no frame arrived for
``heartbeat_s``, or when ``lifetime_s`` is over. As the first process of its namespace it cannot be killed
from inside. It is also not dumpable, so that no process inside can read or write its pipes.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from functools import cache
from importlib.util import MAGIC_NUMBER
from marshal import dumps
from pathlib import Path
from zlib import compress

from agentrl.types import SandboxSpec

MODULES = (
    "light",
    "wire",
    "loop",
    "processes",
    "server",
    "commands",
    "files",
    "tar",
    "ports",
    "shell",
    "main",
)
"""The modules of the guest; each imports only those before it."""
BOOT = """
import sys
from _frozen_importlib_external import MAGIC_NUMBER
from types import ModuleType
if MAGIC_NUMBER == {magic!r}:
    from binascii import a2b_base64
    from marshal import loads
    from zlib import decompress
    modules = loads(decompress(a2b_base64({code!r})))
else:
    modules = eval(sys.argv[2])
for name, code in modules:
    module = sys.modules[name] = ModuleType(name)
    exec(code, module.__dict__)
module.main()
"""


@cache
def program() -> tuple[str, str]:
    """Return the guest twice: as a script that starts it from bytecode of this interpreter, and as source.

    The source is for images whose interpreter has another bytecode format. Compiling takes more processor
    time than all the rest of a start.
    """
    folder, package = Path(__file__).parent, __name__
    modules = [(package.partition(".")[0], ""), (package, "")]
    modules += [
        (f"{package}.{name}", (folder / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES
    ]
    compiled = [(name, compile(source, name, "exec")) for name, source in modules]
    code = b2a_base64(compress(dumps(compiled)), newline=False)
    return BOOT.format(magic=MAGIC_NUMBER, code=code), repr(modules)


def command(spec: SandboxSpec, *, heartbeat_s: float, python: str = "/usr/bin/python3") -> list[str]:
    """Return the command line that a back end starts as the first process of a sandbox."""
    config = {
        "workdir": spec.workdir,
        "num_files": spec.num_files,
        "lifetime_s": spec.lifetime_s,
        "disk_mib": spec.disk_mib,
    }
    start, source = program()
    return [
        python,
        "-I",
        "-S",
        "-X",
        "utf8",
        "-c",
        start,
        json.dumps({**config, "heartbeat_s": heartbeat_s}),
        source,
    ]
