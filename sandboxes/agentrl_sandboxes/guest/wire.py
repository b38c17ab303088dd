"""The protocol on the pipes between host and guest.

Each request has a channel, a number that both sides use for it. A frame is ``kind (1 byte), channel (4
bytes), length of the body (4 bytes), body``. The kinds:

    host -> guest    OPEN json, DATA bytes ..., END
    host -> guest    CANCEL: drop the request and kill what it runs; PING: answered with a PING
    guest -> host    DATA bytes ..., RESULT json, which closes the channel
    either way       CREDIT n: n more bytes of data were consumed

A side may send at most ``WINDOW`` bytes of data that the other side has not consumed yet, counted for each
channel, so that one slow request does not stall the others. Channel 0 carries only the guest's greeting, a
RESULT.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">BII")
OPEN, DATA, END, CREDIT, CANCEL, RESULT, PING = range(7)
NUMBER = struct.Struct(">i")
CHUNK = 1 << 18
"""Maximum number of bytes of data in one frame."""
WINDOW = 1 << 20
MAX_FRAME = 4 << 20
"""Maximum number of bytes in the body of a frame; only an ``OPEN`` gets near it."""
