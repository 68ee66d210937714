"""Imported and served, a model says what transformers says: every logit of a prompt and of 16 greedy steps."""

import pytest

from models import hf_checkpoints as hf
from models.altered_checkpoints import alter_config, alter_tensors
from models.mxfp4_packing import pack_experts
from parity.agreement import VISIBLE, assert_equal_prompt_and_steps, share_apart
from parity.conftest import IDS
from parity.variants import VARIANTS

TRAINED_TOKENS = 32
LONG = hf.rope_parameters("phimoe") | {"original_max_position_embeddings": TRAINED_TOKENS}


@pytest.mark.parametrize("family", hf.FAMILIES)
def test_prompts_and_greedy_steps_are_those_of_transformers(family: str, checkpoint, serve) -> None:
    folder = checkpoint(family)

    assert_equal_prompt_and_steps(serve(folder), folder, IDS)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_family_are_equal_too(name: str, checkpoint, serve) -> None:
    family, changes = VARIANTS[name]
    folder = checkpoint(family, **changes)

    assert_equal_prompt_and_steps(serve(folder), folder, IDS)


def test_texts_longer_than_trained_turn_by_the_long_factors_of_longrope(checkpoint, copied, serve) -> None:
    folder = checkpoint("phimoe", rope_parameters=LONG)
    assert len(IDS) > TRAINED_TOKENS
    # PhiMoE in transformers 5 multiplies by the long magnitude, but asks its own function of the frequencies without
    # the text's length, and so always gets the short ones. Where the short ones are the long ones it is right.
    reference = copied(folder)
    alter_config(reference, rope_parameters=LONG | {"short_factor": LONG["long_factor"]})

    served = serve(folder, context_tokens=96)

    assert_equal_prompt_and_steps(served, reference, IDS)
    assert share_apart(served.prompt_logits(IDS), hf.reference_logits(folder, IDS)) > VISIBLE


def test_packed_experts_of_gpt_oss_are_served_as_transformers_unpacks_them(checkpoint, copied, serve) -> None:
    folder = copied(checkpoint("gpt_oss"))
    alter_tensors(folder, pack_experts)
    alter_config(folder, quantization_config={"quant_method": "mxfp4"})

    assert_equal_prompt_and_steps(serve(folder), folder, IDS)
