"""Where keys of the store lie in a server that speaks Redis."""

from __future__ import annotations

# One hash tag, so that scripts may touch several keys in a Redis cluster too.
STORE_PREFIX = "{expertmesh}:"
