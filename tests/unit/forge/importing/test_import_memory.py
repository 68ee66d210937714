"""An import holds little of a model at once. In a process of its own, or the rest of the tests would count."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from models.hf_checkpoints import write_text_files

HIDDEN, WIDTH, EXPERTS, LAYERS, VOCABULARY = 512, 1024, 8, 8, 24576
LAYER_BYTES = EXPERTS * 3 * HIDDEN * WIDTH * 4  # the routed experts alone, as float32

_PROGRAM = """
import sys
from pathlib import Path
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint
def run(source, out):
    import_checkpoint(ImportRequest(Path(source), Path(out), ("fp32", "int4"), "tiny"))
    status = Path("/proc/self/status").read_text()  # rusage would begin with the peak of whoever started us
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
small = run(sys.argv[1], sys.argv[3] + "/small")
print(run(sys.argv[2], sys.argv[3] + "/large") - small)
"""


def write_large(folder: Path) -> Path:
    """A Mixtral whose embedding is as large as a layer, in bf16 and one file per layer."""
    folder.mkdir()
    config = {
        "model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
        "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    for number in range(LAYERS + 1):
        tensors = _layer(number) if number < LAYERS else _ends()
        file = f"model-{number:05}.safetensors"
        save_file(tensors, folder / file)
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    write_text_files(folder)
    return folder


def _layer(number: int) -> dict[str, np.ndarray]:
    random, at = np.random.default_rng(number), f"model.layers.{number}"
    shapes = {f"{at}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    shapes[f"{at}.block_sparse_moe.gate.weight"] = (EXPERTS, HIDDEN)
    for expert in range(EXPERTS):
        for name, shape in (("w1", (WIDTH, HIDDEN)), ("w3", (WIDTH, HIDDEN)), ("w2", (HIDDEN, WIDTH))):
            shapes[f"{at}.block_sparse_moe.experts.{expert}.{name}.weight"] = shape
    return {name: _noise(random, shape) for name, shape in shapes.items()}


def _ends() -> dict[str, np.ndarray]:
    random = np.random.default_rng(99)
    shape = (VOCABULARY, HIDDEN)
    return {
        "model.embed_tokens.weight": _noise(random, shape), "lm_head.weight": _noise(random, shape),
        "model.norm.weight": _noise(random, (HIDDEN,)),
    }  # fmt: skip


def _noise(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.random(shape, np.float32).astype(ml_dtypes.bfloat16)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads a peak that Linux keeps per process")
def test_memory_stays_within_three_of_the_largest_layer(checkpoint, tmp_path) -> None:
    large = write_large(tmp_path / "large")

    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM, checkpoint("mixtral"), large, tmp_path / "out"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    grown = int(ran.stdout)
    assert 0 < grown <= 3 * LAYER_BYTES
    assert 3 * LAYER_BYTES < LAYERS * LAYER_BYTES / 2
