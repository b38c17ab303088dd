"""The program inside: the first process of a sandbox, which does there what the host asks for over its standard input and output.

The standard library, Python 3.8 or later, one loop and no threads. ``command`` packs the modules of this package into arguments, so that
any image's interpreter can run it: nothing is installed inside.

The guest ends, and everything with it, when its input ends, when no frame came for ``heartbeat_s``, or when ``lifetime_s`` is over. As the
first process of its namespace it cannot be killed from inside; it is also not dumpable, so that nobody inside reads or writes its pipes.
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

MODULES = ("light", "wire", "loop", "processes", "channels", "files", "tar", "ports", "shell", "main")
"""In the order of their imports."""
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
    """Return the whole guest, as this interpreter's bytecode with what starts it, and as source for images whose bytecode is another.

    Compiling takes more processor time than all the rest of a start.
    """
    folder, package = Path(__file__).parent, __name__
    modules = [(package.partition(".")[0], ""), (package, "")]
    modules += [
        (f"{package}.{name}", (folder / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES
    ]
    compiled = [(name, compile(source, name, "exec")) for name, source in modules]
    return BOOT.format(magic=MAGIC_NUMBER, code=b2a_base64(compress(dumps(compiled)), newline=False)), repr(
        modules
    )


def command(spec: SandboxSpec, *, heartbeat_s: float, python: str = "/usr/bin/python3") -> list[str]:
    """Return what a back end starts as the first process of a sandbox."""
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
