"""Tokens and store passwords appear in no message."""

import pytest

from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import Security
from expertmesh_controller.control.store.redis_store import redacted
from expertmesh_controller.settings import read_settings

SECRETS = {"EXPERTMESH_TOKEN": "s3cret", "EXPERTMESH_STORE": "redis://:hunter2@127.0.0.1:6379/0"}


@pytest.mark.parametrize("flags", [{}, {"model": "m", "slots": -1}, {"model": "m", "token": 17}])
def test_a_wrong_setting_is_named_without_showing_any_secret(flags):
    with pytest.raises(InvalidInput) as caught:
        read_settings(flags, SECRETS, None)
    assert "setting" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("s3cret", "hunter2", "17"))


def test_a_store_is_named_without_its_password():
    assert redacted("redis://user:hunter2@db:6379/3") == "redis://db:6379/3"
    assert redacted("unix:///run/valkey.sock") == "unix:///run/valkey.sock"


@pytest.mark.parametrize("token", ["", "клю\u0447", "two\nlines"])
def test_a_token_that_cannot_travel_in_a_header_is_refused(token):
    with pytest.raises(InvalidInput, match="printable"):
        Security(token=token)
