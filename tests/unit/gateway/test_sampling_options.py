"""Every wrong option is refused by name, with what is allowed."""

import math

import pytest

from expertmesh_common.errors import InvalidInput
from expertmesh_controller.gateway.sampling.options import GREEDY, SamplingOptions, checked


@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        SamplingOptions(temperature=10, top_k=300, top_p=1e-3, min_p=1, seed=2**64 - 1, repetition_penalty=10),
        SamplingOptions(stop=("x" * 256,) * 16, logprobs=True, top_logprobs=20),
    ],
)
def test_values_at_the_edge_are_accepted(options: SamplingOptions) -> None:
    assert checked(options, 300) is options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SamplingOptions(temperature=-0.1), r"sampling\.temperature is -0\.1: it must be from 0 to 10"),
        (SamplingOptions(temperature=math.nan), r"sampling\.temperature is nan"),
        (SamplingOptions(temperature=math.inf), r"sampling\.temperature is inf"),
        (SamplingOptions(top_k=301), r"sampling\.top_k is 301: it must be from 0 to 300"),
        (SamplingOptions(top_p=0.0), r"sampling\.top_p is 0: it must be from more than 0 to 1"),
        (SamplingOptions(top_p=1.1), r"sampling\.top_p is 1\.1"),
        (SamplingOptions(min_p=-1), r"sampling\.min_p is -1: it must be from 0 to 1"),
        (SamplingOptions(repetition_penalty=0), r"sampling\.repetition_penalty is 0: it must be from more than 0"),
        (SamplingOptions(top_logprobs=21, logprobs=True), r"sampling\.top_logprobs is 21: it must be from 0 to 20"),
        (SamplingOptions(top_logprobs=3), r"sampling\.top_logprobs is 3 but logprobs is false"),
        (SamplingOptions(stop=("a", "")), r"sampling\.stop\[1\] has 0 characters: it must have 1 to 256"),
        (SamplingOptions(stop=("a",) * 17), r"sampling\.stop has 17 strings: at most 16"),
    ],
)
def test_a_wrong_value_is_named(options: SamplingOptions, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        checked(options, 300)
