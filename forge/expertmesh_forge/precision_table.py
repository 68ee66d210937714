"""What each precision costs in quality: perplexity on held-out documents with decoded weights in the dense forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from expertmesh_common.bundle.parts import PRECISIONS, Precision
from expertmesh_common.graphs.matrices import common_block
from expertmesh_forge.dense_forward import dense_states
from expertmesh_forge.dense_model import DenseLayer, DenseModel, Floats
from expertmesh_forge.formats import decode_matrix, encode_embedding, encode_matrix
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_model
from expertmesh_forge.gguf_tokenizer import read_chat_settings, read_tokenizer
from expertmesh_forge.input_energy import InputEnergy, input_energy
from expertmesh_forge.locating import find_gguf
from expertmesh_forge.measuring import Losses, PerplexityRatio, perplexity_ratio, window_losses
from expertmesh_forge.texts.documents import DOMAINS
from expertmesh_forge.texts.sources import load_split
from expertmesh_forge.texts.windows import TextWindows, cut_windows

__all__ = ["Measured", "Row", "measure_precisions", "precision_page", "publish_precisions", "with_precision"]

_WINDOW_TOKENS = 512
_CALIBRATION_WINDOWS = 2
_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Row:
    """One precision; `block` is 0 where values have no scales. `bytes_per_weight` counts scales too.

    Scales of a calibrated row were chosen knowing the energy of the inputs.
    """

    precision: Precision
    block: int
    bytes_per_weight: float
    ratio: PerplexityRatio
    is_calibrated: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """The whole table."""

    model_name: str
    perplexity: float
    windows: int
    held_out_tokens: int
    held_out_sha256: str
    rows: tuple[Row, ...]
    calibration_tokens: int = 0


def measure_precisions(
    source: str, windows: int, on_progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None
) -> Measured:
    """Measure every precision on `windows` held-out documents per domain; some minutes on two cores.

    int4 is measured without calibration and with it, on documents that are not held out.
    """
    file = GgufFile(find_gguf(source))
    model, held_out, calibration = read_model(file), _held_out(file, windows), _calibration(file)
    energy, exact = input_energy(model, calibration.tokens), _losses(model, held_out)
    rows = []
    for done, (precision, block, is_calibrated) in enumerate(forms := _forms(model), start=1):
        made = with_precision(model, precision, block, energy if is_calibrated else None)
        losses = exact if precision == "fp32" else _losses(made, held_out)
        size = _bytes_per_weight(model.layers[0].down, precision, block)
        rows.append(Row(precision, block, size, perplexity_ratio(losses, exact), is_calibrated))
        on_progress("precisions", done, len(forms))
    return Measured(
        model_name=model.source.file_name,
        perplexity=float(np.exp(exact.mean())),
        windows=len(held_out.tokens),
        held_out_tokens=held_out.token_count,
        held_out_sha256=held_out.sha256,
        rows=tuple(rows),
        calibration_tokens=calibration.token_count,
    )


def with_precision(
    model: DenseModel, precision: Precision, block: int = 32, energy: InputEnergy | None = None
) -> DenseModel:
    """The model with the embedding and every matrix as `precision` keeps them; norms stay float32, as in a bundle."""

    def kept(weights: Floats, importance: Floats | None) -> Floats:
        # Inner sizes that the block does not divide have the smaller one, as in a bundle.
        own = block if weights.shape[1] % (block or 1) == 0 else common_block(weights.shape[1])
        return np.ascontiguousarray(decode_matrix("w", encode_matrix("w", weights, precision, own, importance)))

    layers: list[DenseLayer] = []
    for index, layer in enumerate(model.layers):
        inputs = {n: energy.layers[index].of(n) if energy else None for n in _MATRICES}
        layers.append(replace(layer, **{n: kept(getattr(layer, n), inputs[n]) for n in _MATRICES}))
    head = kept(model.head, energy.head if energy else None)
    embedding = encode_embedding(model.embedding, precision).astype(np.float32, copy=False)
    return replace(model, layers=tuple(layers), head=head, embedding=embedding)


def precision_page(found: Measured) -> str:
    """The page in Markdown."""
    rows = "\n".join(
        f"| {_form(row)} | {row.block or '-'} | {row.bytes_per_weight:.2f} | {_ratio(row)} |" for row in found.rows
    )
    return f"""# What a precision costs in quality

Perplexity of {found.model_name}, all matrices at one precision, over that at fp32 ({found.perplexity:.2f}), on
{found.held_out_tokens:,} held-out tokens in {found.windows} documents (State of the Union addresses, the Python
language reference, the standard library's source; every fourth window as a chat turn). The embedding is as a bundle
has it: in 16 bits at every precision but fp32. Brackets hold the 95 % interval of a paired bootstrap over documents
(2,000 resamples).

| precision | block | bytes per weight | perplexity / fp32 |
|---|---|---|---|
{rows}

The weights are decoded into the dense float32 forward pass: this is the error of the weights. The kernels of int8 and
int4 also compute with int8 activations, one scale per row and block, which is not in these figures. The source file is
itself quantised, in another grid; fp32 means its dequantised weights. Where 128 does not divide a matrix's inner size,
its blocks are of 32: in the model of the demo everywhere but in the down projections.

Calibrated scales are those that hurt a matrix's products least, judged by the mean square of each input on
{found.calibration_tokens:,} tokens of other documents; the others are chosen by the weights alone, which is all there
is where no text has been run.

Reproduce with `expertmesh model precisions --held-out {found.windows // len(DOMAINS)}`. Held-out windows: sha256
`{found.held_out_sha256}`; another Python patch release has another standard
library, hence other windows.
"""


def publish_precisions(found: Measured, folder: Path) -> Path:
    """Write `precisions.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "precisions.md"
    path.write_text(precision_page(found), encoding="utf-8")
    return path


def _ratio(row: Row) -> str:
    ratio = row.ratio
    return f"{ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"


def _form(row: Row) -> str:
    return f"{row.precision}, calibrated" if row.is_calibrated else row.precision


def _forms(model: DenseModel) -> list[tuple[Precision, int, bool]]:
    """Every precision; with scales at blocks of 32, and of 128 where they fit some matrix; int4 also calibrated."""
    inner = {getattr(model.layers[0], name).shape[1] for name in _MATRICES}
    blocks = (32, 128) if any(size % 128 == 0 for size in inner) else (32,)
    forms = [(p, block, False) for p in PRECISIONS for block in (blocks if p in {"int8", "int4"} else (0,))]
    return [*forms, *(("int4", block, True) for block in blocks)]


def _bytes_per_weight(weights: Floats, precision: Precision, block: int) -> float:
    tensors = encode_matrix("w", weights, precision, block)
    return sum(tensor.nbytes for tensor in tensors.values()) / weights.size


def _held_out(file: GgufFile, windows: int) -> TextWindows:
    template = read_chat_settings(file).chat_template
    return cut_windows(
        load_split().held_out, read_tokenizer(file), per_domain=windows, window_tokens=_WINDOW_TOKENS,
        chat_template=template,
    )  # fmt: skip


def _calibration(file: GgufFile) -> TextWindows:
    template = read_chat_settings(file).chat_template
    return cut_windows(
        load_split().calibration, read_tokenizer(file), per_domain=_CALIBRATION_WINDOWS, window_tokens=_WINDOW_TOKENS,
        chat_template=template,
    )  # fmt: skip


def _losses(model: DenseModel, held_out: TextWindows) -> Losses:
    return window_losses(model, dense_states(model, held_out.tokens), held_out.tokens)
