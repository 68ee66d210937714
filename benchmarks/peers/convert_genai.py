"""The checkpoint for onnxruntime-genai: `convert_genai.py CHECKPOINT FOLDER fp32|int4`.

Its model builder knows the attention of Qwen3 and the fused mixture operators of the CPU, but not the two together.
int4 is the fastest setting of 0.18.0: blocks of 128, 8-bit activations (accuracy level 4) in projections and experts,
float32 routers, and logits of a prompt's last token only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnxruntime_genai.models.builders.qwen import Qwen3Model
from transformers import AutoConfig

BLOCK = 128
INT4 = {"block_size": BLOCK, "qmoe_block_size": BLOCK, "accuracy_level": 4, "prune_lm_head": True}
DTYPES = {"fp32": ir.DataType.FLOAT, "int4": ir.DataType.INT4}


class Qwen3MoeModel(Qwen3Model):
    """Qwen3's attention before a fused mixture of SwiGLU experts."""

    def __init__(self, config, *others) -> None:
        super().__init__(config, *others)
        self.moe_intermediate_size = config.moe_intermediate_size
        normalised = int(config.norm_topk_prob)
        self.moe_attrs |= {"activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": normalised}

    def get_moe_module(self, layer_id, layer):  # noqa: ARG002
        return layer.mlp

    def make_moe_preprocessing(self, layer_id, moe, root_input) -> None:  # noqa: ARG002
        self.make_interleaved_swiglu_moe_preprocessing(layer_id, moe)

    def make_moe_router(self, layer_id, moe, root_input) -> None:
        moe.gate.exclude_from_quantization = True
        name = f"/model/layers.{layer_id}/moe/router"
        scores = self.make_matmul(moe.gate, f"{name}/MatMul", root_input)
        flat = [f"{scores}/output_0", f"/model/constants/INT64/{[-1, self.moe_attrs['num_experts']]}"]
        self.make_reshape(f"{name}/Reshape", flat, dtype=self.io_dtype, shape=self.make_moe_router_shape())

    def make_moe_subgraph(self, layer_id, moe, root_input) -> None:  # noqa: ARG002
        layer, names = f"/model/layers.{layer_id}/moe", self.make_moe_expert_names(layer_id)
        operator = f"{layer}/{self.moe_attrs['op_type']}"
        tensors = {
            f"{short}{number}": names[f"{part}_{kind}"]
            for number, part in ((1, "gate_up"), (2, "down"))
            for short, kind in (("weight", "weight"), ("scales", "scales"), ("bias", "bias"))
        }
        self.make_moe_op(operator, root_input=root_input, router_probs=f"{layer}/router/Reshape/output_0", **tensors)
        self.layernorm_attrs["skip_input"] = f"{operator}/output_0"


@torch.no_grad()
def convert(checkpoint: Path, folder: Path, precision: str) -> None:
    config = AutoConfig.from_pretrained(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        options = dict(INT4) if precision == "int4" else {}
        builder = Qwen3MoeModel(config, ir.DataType.FLOAT, DTYPES[precision], "cpu", scratch, options)
        builder.make_model(str(checkpoint))
        builder.save_model(str(folder))
        builder.model_type = "Qwen3ForCausalLM"  # what the generator has to know of it is the same
        builder.make_genai_config(config, {}, str(folder))
    quicken(folder / "model.onnx")


def quicken(path: Path) -> None:
    """The builder sets the accuracy level of projections; the experts' operator takes it too."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "QMoE":
            node.attribute.append(onnx.helper.make_attribute("accuracy_level", INT4["accuracy_level"]))
    onnx.save(model, path)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
