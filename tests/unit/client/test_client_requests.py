"""Arguments become requests, or clear refusals; retry decisions are pure."""

from __future__ import annotations

import pytest

from expertmesh import Client, InvalidRequest, NotFound, Overloaded, ResumePolicy, Unavailable, Unsupported
from expertmesh.errors import Internal
from expertmesh.local_access import leave_token, local_token
from expertmesh.options import generate_request
from expertmesh.requests import score_request
from expertmesh.resuming import Failure, resume_delay_s


def test_every_option_lands_in_its_field():
    request = generate_request(
        "hi", None, None,
        {"model": "m", "max_tokens": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.125, "seed": 7,
         "repetition_penalty": 1.5, "stop": ["a", "b"], "ignore_eos": True, "top_logprobs": 2,
         "request_id": "r"},
    )  # fmt: skip
    sampling = request.sampling
    assert (request.model, request.prompt, request.max_tokens, request.logprobs) == ("m", "hi", 5, True)
    assert request.request_id == "r"
    assert (sampling.temperature, sampling.top_k, sampling.min_p, sampling.seed) == (0.5, 3, 0.125, 7)
    assert (round(sampling.top_p, 3), sampling.repetition_penalty) == (0.9, 1.5)
    assert (list(sampling.stop), sampling.ignore_eos, sampling.top_logprobs) == (["a", "b"], True, 2)


def test_one_stop_string_is_not_taken_apart():
    assert list(generate_request("x", None, None, {"stop": "END"}).sampling.stop) == ["END"]


def test_options_that_were_left_out_are_unset_on_the_wire():
    sampling = generate_request("x", None, None, {}).sampling
    assert not sampling.HasField("top_p")
    assert not sampling.HasField("repetition_penalty")


@pytest.mark.parametrize("arguments", [(None, None, None), ("a", [1], None), ("a", None, [])])
def test_exactly_one_input_is_wanted(arguments):
    with pytest.raises(InvalidRequest, match="exactly one"):
        generate_request(*arguments, {})


def test_every_request_without_an_id_gets_one_of_its_own():
    scores = [score_request("x", None, None, None, model="", top_logprobs=0, request_id="") for _ in range(2)]
    ids = {request.request_id for request in (generate_request("x", None, None, {}), *scores)}
    assert len(ids) == 3
    assert all(ids)


def test_an_empty_prompt_is_still_a_prompt():
    assert generate_request("", None, None, {}).WhichOneof("input") == "prompt"


@pytest.mark.parametrize("options", [{"temprature": 1}, {"max_tokens": -1}, {"seed": "x"}, {"top_k": 1.5}])
def test_wrong_options_are_refused_before_anything_is_sent(options):
    with Client("unix:/nowhere") as client, pytest.raises(InvalidRequest):
        client.generate("x", **options)


@pytest.mark.parametrize("arguments", [{}, {"text": "a", "ids": [1]}, {"text": "a", "prompt": "b", "prompt_ids": [1]}])
def test_a_score_is_asked_for_one_text_after_at_most_one_prompt(arguments):
    with Client("unix:/nowhere") as client, pytest.raises(InvalidRequest, match="give"):
        client.score(**arguments)


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan")])
def test_a_deadline_that_is_over_before_it_begins_is_refused(deadline_s):
    with Client("unix:/nowhere") as client, pytest.raises(InvalidRequest, match="deadline_s"):
        client.tokenize("x", deadline_s=deadline_s)


def test_a_message_without_role_is_refused():
    with Client("unix:/nowhere") as client, pytest.raises(InvalidRequest, match="role"):
        client.chat([{"content": "x"}])


def delay(error, failures=1, *, started=True, remaining_s=100.0, **known):
    return resume_delay_s(ResumePolicy(), error, Failure(failures, started, remaining_s, **known))


def test_waits_double_up_to_the_limit_and_chance_shortens_them():
    broken = Unavailable("x")
    assert [delay(broken, n) for n in (1, 2, 3, 4, 5, 6)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert delay(broken, 2, chance=0.5) == pytest.approx(0.15)


def test_it_gives_up_sooner_before_the_first_token():
    assert delay(Unavailable("x"), 3, started=False) is None
    assert delay(Unavailable("x"), 3, started=True) is not None
    assert delay(Unavailable("x"), 12, started=True) is None


def test_it_gives_up_when_the_wait_would_outlast_the_deadline():
    assert delay(Unavailable("x"), remaining_s=0.05) is None
    assert delay(Overloaded("x", 700), remaining_s=0.6) is None


def test_load_is_waited_out_as_long_as_the_server_asks():
    assert delay(Overloaded("x", 700)) == 0.7
    assert delay(Overloaded("x", 700), started=False) == 0.7
    assert delay(Overloaded("x", 700), 3, started=False) is None


def test_another_address_is_asked_at_once_and_costs_no_attempt():
    assert delay(Unavailable("x"), 0, elsewhere=True) == 0.0
    assert delay(Overloaded("x", 700), 0, elsewhere=True) == 0.0


def test_a_call_that_may_have_been_carried_out_is_asked_again_only_if_that_does_no_harm():
    assert delay(Unavailable("x"), repeatable=False) is None
    assert delay(Unavailable("x"), repeatable=False, elsewhere=True) is None
    assert delay(Overloaded("x", 700), repeatable=False) == 0.7


@pytest.mark.parametrize("kind", [Unsupported, NotFound])
def test_what_one_gateway_does_not_know_is_asked_of_the_others_only(kind):
    assert delay(kind("x"), 0, elsewhere=True) == 0.0
    assert delay(kind("x")) is None


def test_bugs_are_never_retried():
    assert delay(Internal("x")) is None


def test_a_left_token_is_found_for_its_port_only_and_only_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTMESH_HOME", str(tmp_path))
    path = leave_token(7070, "secret")
    assert (path.stat().st_mode & 0o777) == 0o600
    assert local_token("localhost:7070") == local_token("127.0.0.1:7070") == "secret"
    assert local_token("localhost:7071") is None
    assert local_token("example.org:7070") is None
    assert local_token("unix:/tmp/7070") is None
