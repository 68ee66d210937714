"""Which layers' experts a gateway holds itself: `all`, `none`, or ranges as in `0,3,8-11`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from expertmesh_common.bundle.manifest import Manifest
from expertmesh_common.errors import InvalidInput

__all__ = ["ALL", "NONE", "checked_ranges", "cuts_of", "held_layers", "spelled", "stops_of"]

ALL = ""
"""As a spec says it; `all` is what people may write."""
NONE = "none"
"""With numerics `fast`: every expert is on workers, which need not be exact."""
_AROUND = re.compile(r"\s*([,-])\s*")
_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


def checked_ranges(text: str, numerics: str) -> str:
    """`text` without spaces, `ALL` for `all`, `NONE` as it is.

    Raises:
        InvalidInput: it is neither these nor a list of ranges, or numerics are not `fast`.

    """
    found = _AROUND.sub(r"\1", text.strip())
    if found in {ALL, "all"}:
        return ALL
    if numerics != "fast":
        raise InvalidInput(f"local_layers {text[:80]!r}: only numerics `fast` have some, and these are {numerics!r}")
    if found != NONE:
        tuple(_ranges(found))
    return found


def held_layers(manifest: Manifest, numerics: str, text: str) -> frozenset[int]:
    """The layers with experts that a gateway holds itself: none for `exact`, those of `text` for `fast`.

    Raises:
        InvalidInput: `text` cannot be read, names a layer that the model does not have, or none with experts.

    """
    if numerics != "fast":
        return frozenset()
    routed = frozenset(layer.index for layer in manifest.layers if layer.gate is not None)
    ranges = checked_ranges(text, numerics)
    if ranges in {ALL, NONE}:
        return routed if ranges == ALL else frozenset()
    last = len(manifest.layers) - 1
    for _, end in _ranges(ranges):
        if end > last:
            raise InvalidInput(f"local_layers {text!r}: {manifest.name} has layers 0 to {last}, none numbered {end}")
    named = frozenset(layer for first, end in _ranges(ranges) for layer in range(first, end + 1))
    if not named & routed:
        raise InvalidInput(f"local_layers {text!r}: none of these layers of {manifest.name} has experts")
    return named & routed


def stops_of(manifest: Manifest, held: Collection[int]) -> tuple[int, ...]:
    """The layers whose experts are elsewhere, in order."""
    return tuple(layer.index for layer in manifest.layers if layer.gate is not None and layer.index not in held)


def cuts_of(manifest: Manifest, held: Collection[int] | None) -> tuple[int, ...] | None:
    """Where a gateway that holds the layers `held` cuts its trunk; None is at every layer, of `exact` and of `none`.

    Dense layers are cut, too, where nothing is fused: their rows can then be shown.
    """
    if held is None:
        return None
    stops = stops_of(manifest, held)
    return None if stops and not held else stops


def spelled(manifest: Manifest, held: Collection[int]) -> str:
    """The shortest text that `held_layers` reads as `held`: equal layers are written alike."""
    if not stops_of(manifest, held):
        return ALL
    if not held:
        return NONE
    layers = sorted(held)
    firsts = [at for at in layers if at - 1 not in held]
    lasts = [at for at in layers if at + 1 not in held]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def _ranges(text: str) -> Iterator[tuple[int, int]]:
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        first = int(found[1]) if found else 0
        last = int(found[2] or first) if found else -1
        if last < first:
            raise InvalidInput(
                f"local_layers {text[:80]!r}: expected `all`, `none`, or ranges of layers such as 0-7 or 0,3,8-11"
            )
        yield first, last
