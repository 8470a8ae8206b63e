from __future__ import annotations

from hypothesis import settings

# No deadline: the machine's speed is no property of the code. A failure prints what replays it.
settings.register_profile("cacheservice", deadline=None, print_blob=True)
settings.load_profile("cacheservice")
