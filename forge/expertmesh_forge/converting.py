"""Dense model -> bundle: read, carve, measure, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from expertmesh_common.bundle.manifest import Calibration, Manifest, Precision
from expertmesh_forge.bundling.writing import BundleLabels, require_replaceable, write_bundle
from expertmesh_forge.carve.carved_model import CarvedModel
from expertmesh_forge.carve.carving import carve_model
from expertmesh_forge.carve.forward import run_carved
from expertmesh_forge.carve.settings import CarveSettings, check_settings
from expertmesh_forge.dense_forward import dense_states
from expertmesh_forge.dense_source import open_dense
from expertmesh_forge.gguf_tokenizer import ChatSettings
from expertmesh_forge.input_energy import input_energy
from expertmesh_forge.measuring import perplexity_ratio, window_losses
from expertmesh_forge.texts.sources import load_split
from expertmesh_forge.texts.windows import TextWindows, cut_windows

__all__ = ["ConvertRequest", "Progress", "convert"]

# Mean squares settle long before regressions do.
_ENERGY_WINDOWS = 6

# (stage, steps done, steps in all)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What to convert and how. Windows count per domain of text (prose, technical, python)."""

    source: str
    folder: Path
    carve: CarveSettings
    precisions: tuple[Precision, ...] = ("fp32", "int4")
    name: str | None = None
    window_tokens: int = 512
    calibration_windows: int = 8
    # Enough for a ratio to two digits; the table in the documentation uses more.
    held_out_windows: int = 4
    context_tokens: int | None = None


def convert(request: ConvertRequest, on_progress: Progress = lambda _stage, _done, _total: None) -> Manifest:
    """Convert and return the manifest that was written. Deterministic for one request on one set of packages."""
    source = open_dense(request.source)
    check_settings(request.carve, source.config)
    require_replaceable(request.folder)
    calibration, held_out = _texts(request, source.tokenizer, source.chat)
    model = source.read()
    on_progress("read", 1, 1)
    carved = carve_model(
        model, calibration.tokens, request.carve, lambda done, total: on_progress("carve", done, total)
    )
    if "int4" in request.precisions:
        carved = replace(carved, energy=input_energy(model, _spread(calibration.tokens, _ENERGY_WINDOWS)))
    measured = _measure(carved, calibration, held_out, on_progress)
    labels = BundleLabels(
        name=request.name or source.name,
        precisions=request.precisions,
        context_tokens=min(request.context_tokens or model.config.context_tokens, model.config.context_tokens),
        tokenizer_json=source.tokenizer.to_str(),
        chat=source.chat,
        calibration=measured,
    )
    return write_bundle(carved, labels, request.folder, lambda done, total: on_progress("write", done, total))


def _spread(windows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most `count` windows from all over."""
    return windows[:: max(1, -(-len(windows) // count))]


def _texts(request: ConvertRequest, tokenizer: Tokenizer, chat: ChatSettings) -> tuple[TextWindows, TextWindows | None]:
    split = load_split()
    size, template = request.window_tokens, chat.chat_template
    calibration = cut_windows(
        split.calibration, tokenizer, per_domain=request.calibration_windows, window_tokens=size,
        chat_template=template, per_document=4,
    )  # fmt: skip
    if not request.held_out_windows:
        return calibration, None
    held_out = cut_windows(
        split.held_out, tokenizer, per_domain=request.held_out_windows, window_tokens=size, chat_template=template
    )
    return calibration, held_out


def _measure(
    carved: CarvedModel, calibration: TextWindows, held_out: TextWindows | None, on_progress: Progress
) -> Calibration:
    digest = calibration.sha256 + (held_out.sha256 if held_out else "")
    fitted = Calibration(
        target_share=carved.settings.target_share,
        tokens=calibration.token_count,
        refit=True,
        split_digest=hashlib.sha256(digest.encode()).hexdigest(),
    )
    if held_out is None:
        return fitted
    on_progress("measure", 0, 2)
    run = run_carved(carved, held_out.tokens)
    losses = window_losses(carved.dense, run.states, held_out.tokens)
    on_progress("measure", 1, 2)
    dense_losses = window_losses(carved.dense, dense_states(carved.dense, held_out.tokens), held_out.tokens)
    on_progress("measure", 2, 2)
    ratio = perplexity_ratio(losses, dense_losses).ratio
    update = {"heldout_share": float(np.mean(run.shares)), "perplexity_ratio": ratio}
    return Calibration.model_validate(fitted.model_dump() | update)
