"""What a token may do, and which call needs what: the one table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from expertmesh_common.errors import InvalidInput


class Scope(StrEnum):
    """Rights that a token carries. PEER is never given out: parts of the mesh have it towards each other."""

    INFER = "infer"
    OPERATE = "operate"
    ADMIN = "admin"
    JOIN = "join"
    PEER = "peer"


GIVEN_OUT = (Scope.INFER, Scope.OPERATE, Scope.ADMIN, Scope.JOIN)

INCLUDED: dict[Scope, frozenset[Scope]] = {
    Scope.INFER: frozenset({Scope.INFER}),
    Scope.OPERATE: frozenset({Scope.OPERATE, Scope.INFER}),
    Scope.ADMIN: frozenset(Scope),
    Scope.JOIN: frozenset({Scope.JOIN, Scope.PEER}),
    Scope.PEER: frozenset({Scope.PEER}),
}

_API = "/expertmesh_api.v1."
_REFLECTION = ("/grpc.reflection.v1alpha.ServerReflection/", "/grpc.reflection.v1.ServerReflection/")

# Reading what the mesh looks like is `operate`: it names machines, addresses and load, which a client has no use for.
METHODS: dict[str, Scope] = {
    "Inference/Generate": Scope.INFER,
    "Inference/Score": Scope.INFER,
    "Inference/Tokenize": Scope.INFER,
    "Inference/ListModels": Scope.INFER,
    "Gating/Route": Scope.INFER,
    "Gating/Explain": Scope.INFER,
    "Gating/ExplainText": Scope.INFER,
    "Operations/ListNodes": Scope.OPERATE,
    "Operations/ListExperts": Scope.OPERATE,
    "Operations/WaitReady": Scope.OPERATE,
    "Operations/ListServed": Scope.OPERATE,
    "Operations/ServeModel": Scope.ADMIN,
    "Operations/UnserveModel": Scope.ADMIN,
    "Jobs/Start": Scope.OPERATE,
    "Jobs/List": Scope.OPERATE,
    "Jobs/Get": Scope.OPERATE,
    "Jobs/Watch": Scope.OPERATE,
    "Jobs/Cancel": Scope.OPERATE,
    "Access/CreateToken": Scope.ADMIN,
    "Access/ListTokens": Scope.ADMIN,
    "Access/RevokeToken": Scope.ADMIN,
    "Access/ListAudit": Scope.ADMIN,
    "Access/Watch": Scope.JOIN,
    "Membership/Join": Scope.JOIN,
    "Routes/Watch": Scope.JOIN,
    "Routes/WatchBundles": Scope.JOIN,
    "Routes/Report": Scope.JOIN,
    "Blobs/Fetch": Scope.PEER,
    "Experts/Open": Scope.PEER,
    "Experts/Execute": Scope.PEER,
    "Experts/Stat": Scope.PEER,
}


def needed_scope(path: str) -> Scope | None:
    """What a call of `path` (`/package.Service/Method`) needs: None is any token; a call nobody decided on, ADMIN."""
    if path.startswith(_REFLECTION):
        return None
    return METHODS.get(short_name(path), Scope.ADMIN)


def short_name(path: str) -> str:
    """`Access/Watch` of `/expertmesh_api.v1.Access/Watch`."""
    return path.removeprefix(_API).removeprefix("/")


def granted(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """The scopes with all that they include."""
    return frozenset().union(*(INCLUDED[scope] for scope in scopes))


def read_scopes(names: Iterable[str]) -> tuple[Scope, ...]:
    """Scopes by their names, in the order of the table, each once.

    Raises:
        InvalidInput: none, or one that cannot be given out.

    """
    asked, known = set(names), {scope.value for scope in GIVEN_OUT}
    if not asked or asked - known:
        wrong = ", ".join(sorted(repr(name[:64]) for name in asked - known)) or "none"
        raise InvalidInput(f"scopes: {wrong} given; allowed are {', '.join(scope.value for scope in GIVEN_OUT)}")
    return tuple(scope for scope in GIVEN_OUT if scope.value in asked)
