"""Tokens, scopes and the doorkeeper: who is let in, for what, and for how long."""

import importlib
import pkgutil

import pytest

import expertmesh_api.v1
from expertmesh.cli import tokens as cli_tokens
from expertmesh_common.access.doorkeeper import Doorkeeper
from expertmesh_common.access.identity import Identity, caller_name, enter_call, peer_host
from expertmesh_common.access.scopes import METHODS, Scope, granted, needed_scope, read_scopes
from expertmesh_common.access.tokens import accepted, new_token, split_token
from expertmesh_common.clock import ManualClock
from expertmesh_common.errors import InvalidInput, Refused, Unauthenticated, Unavailable
from expertmesh_common.security import Security


def api_methods():
    for module in pkgutil.iter_modules(expertmesh_api.v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"expertmesh_api.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                yield from (f"{service.name}/{method.name}" for method in service.methods)


def test_every_method_of_the_api_has_a_scope():
    undecided = set(api_methods()) - METHODS.keys()
    assert not undecided, f"decide in access/scopes.py what these need: {sorted(undecided)}"


def test_a_call_that_nobody_decided_on_needs_admin():
    assert needed_scope("/expertmesh_api.v1.Inference/Generate") is Scope.INFER
    assert needed_scope("/expertmesh_api.v1.Inference/Unheard") is Scope.ADMIN
    assert needed_scope("/other.package.Inference/Generate") is Scope.ADMIN
    assert needed_scope("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") is None


def test_admin_includes_all_operate_includes_infer_and_join_neither():
    assert granted([Scope.ADMIN]) == frozenset(Scope)
    assert granted([Scope.OPERATE]) == {Scope.OPERATE, Scope.INFER}
    assert granted([Scope.JOIN]) == {Scope.JOIN, Scope.PEER}
    assert granted([Scope.INFER]) == {Scope.INFER}


@pytest.mark.parametrize("names", [[], ["root"], ["infer", "peer"]])
def test_scopes_that_are_unknown_or_internal_cannot_be_given_out(names):
    with pytest.raises(InvalidInput, match="allowed are infer, operate, admin, join"):
        read_scopes(names)


def test_a_token_keeps_its_id_and_hides_its_secret():
    token = new_token()
    parts = split_token(token)
    assert token == f"em_{parts.id}_{parts.secret}"
    assert len(parts.secret) >= 32
    assert parts.secret not in repr(parts)
    assert new_token() != token
    for text in ("em__x", "em_a_short", "secret", "em_A1_" + "x" * 40, "em_a1_" + "x" * 31 + "é"):
        assert split_token(text) is None


def test_the_command_line_makes_tokens_of_the_form_that_servers_read(capsys):
    cli_tokens.new()

    made = capsys.readouterr().out.strip()
    parts, own = split_token(made), split_token(new_token())
    assert parts is not None
    assert own is not None
    assert (len(parts.id), len(parts.secret)) == (len(own.id), len(own.secret))


def test_what_a_server_keeps_of_a_token_does_not_contain_it():
    token = new_token()
    kept = accepted(token, "ci", [Scope.INFER])
    assert split_token(token).secret.encode() not in kept.salt + kept.digest
    assert kept.matches(split_token(token).secret)
    assert not kept.matches(split_token(new_token()).secret)
    assert accepted(token, "ci", [Scope.INFER]).digest != kept.digest  # another salt
    assert accepted("chosen by a person", "x", [Scope.INFER]) is None


def doorkeeper_with(*scopes, own="s3cret", clock=None, until=None):
    token = new_token()
    kept = accepted(token, "ci", scopes)
    if until is not None:
        kept = type(kept)(kept.id, kept.name, kept.scopes, kept.salt, kept.digest, until)
    keeper = Doorkeeper(own, clock)
    keeper.publish([kept])
    return keeper, token


def test_a_token_may_do_what_its_scopes_say_and_the_refusal_names_what_is_missing():
    keeper, token = doorkeeper_with(Scope.INFER)
    assert keeper.check(token, Scope.INFER, "10.0.0.7") == Identity("ci", split_token(token).id, "10.0.0.7")
    with pytest.raises(Refused, match=r"token 'ci' has the scope infer; this call needs admin"):
        keeper.check(token, Scope.ADMIN)


def test_the_processs_own_token_may_do_everything():
    keeper, _ = doorkeeper_with(Scope.INFER)
    assert keeper.check("s3cret", Scope.ADMIN).name == "bootstrap"


def test_no_token_an_unknown_one_and_a_wrong_secret_are_unauthenticated_without_being_shown():
    keeper, token = doorkeeper_with(Scope.INFER)
    for wrong in (None, "", "other", new_token(), token[:-1] + ("x" if token[-1] != "x" else "y")):
        with pytest.raises(Unauthenticated) as caught:
            keeper.check(wrong, None)
        assert not wrong or wrong not in str(caught.value)


def test_a_token_ends_when_its_time_is_over():
    clock = ManualClock()
    keeper, token = doorkeeper_with(Scope.INFER, clock=clock, until=10.0)
    keeper.check(token, Scope.INFER)
    clock.advance(10.0)
    with pytest.raises(Unauthenticated):
        keeper.check(token, Scope.INFER)


def test_taking_a_token_back_ends_its_running_calls_and_nobody_elses():
    keeper, token = doorkeeper_with(Scope.INFER)
    other = accepted(new_token(), "other", [Scope.INFER])
    kept = keeper._accepted[split_token(token).id]
    keeper.publish([kept, other])
    ended, gone = [], []
    keeper.on_revoked(gone.append)
    ci, somebody = Identity("ci", kept.id), Identity("other", other.id)
    with keeper.running(ci, lambda: ended.append("ci")), keeper.running(somebody, lambda: ended.append("other")):
        keeper.publish([other])
    assert ended == ["ci"]
    assert gone == [{kept.id}]
    with pytest.raises(Unauthenticated):
        keeper.check(token, None)


def test_a_good_looking_token_is_not_refused_for_good_before_the_list_is_known():
    keeper = Doorkeeper("s3cret")
    keeper.await_list()
    with pytest.raises(Unavailable):
        keeper.check(new_token(), None)
    with pytest.raises(Unauthenticated):
        keeper.check("guess", None)
    keeper.publish([])
    with pytest.raises(Unauthenticated):
        keeper.check(new_token(), None)


def test_a_process_started_with_a_revocable_token_stops_accepting_it_when_the_list_says_so():
    own = new_token()
    keeper = Doorkeeper(own)
    assert keeper.check(own, Scope.PEER).token_id == split_token(own).id
    keeper.publish([])
    with pytest.raises(Unauthenticated):
        keeper.check(own, Scope.PEER)


def test_without_a_token_of_its_own_everybody_is_let_in_and_named_by_host():
    assert Doorkeeper(None).check(None, Scope.ADMIN, "10.0.0.7").name == "10.0.0.7"
    assert Doorkeeper(None).check("whatever", Scope.ADMIN).name == "anonymous"


def test_the_caller_of_a_call_is_known_by_token_name_else_by_host():
    assert caller_name() == "anonymous"
    enter_call(Identity("ci", "a1", "10.0.0.7"))
    assert caller_name() == "ci"
    enter_call(Identity(peer="10.0.0.7"))
    assert caller_name() == "10.0.0.7"
    enter_call(Identity())


@pytest.mark.parametrize(
    ("peer", "host"),
    [("ipv4:10.0.0.7:51", "10.0.0.7"), ("ipv6:%5B::1%5D:80", "::1"), ("unix:/run/a", "local"), ("unix:", "local")],
)
def test_the_host_of_a_peer(peer, host):
    assert peer_host(peer) == host


def test_no_token_is_shown_by_the_repr_of_what_holds_it():
    assert "s3cret" not in repr(Security(token="s3cret"))


def test_a_door_that_is_no_grpc_server_asks_for_a_scope():
    keeper, token = doorkeeper_with(Scope.JOIN)
    security = Security(token="s3cret", doorkeeper=keeper)
    assert not security.accepts(token)
    assert security.accepts(token, Scope.JOIN)
    assert security.accepts("s3cret")
    assert not security.accepts(None)
