"""Measuring every arm at every share on held-out documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_forge.carve.carving import split_windows
from expertmesh_forge.carve.refitting import refit_down, refit_target
from expertmesh_forge.carve.settings import CarveSettings, check_settings
from expertmesh_forge.curve.arms import ARMS, Arm, LayerInput
from expertmesh_forge.dense_forward import Rope, attention, dense_step, embed, hidden_neurons, rms_norm
from expertmesh_forge.dense_model import DenseModel, Floats
from expertmesh_forge.errors import CarveError
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import read_model
from expertmesh_forge.gguf_tokenizer import read_chat_settings, read_tokenizer
from expertmesh_forge.locating import find_gguf
from expertmesh_forge.measuring import Losses, PerplexityRatio, perplexity_ratio, window_losses
from expertmesh_forge.texts.documents import DOMAINS, Domain
from expertmesh_forge.texts.sources import load_split
from expertmesh_forge.texts.windows import TextWindows, cut_windows

__all__ = ["Curve", "CurveRequest", "Point", "Texts", "measure_arm", "measure_curve", "prepare_texts"]

_WINDOW_TOKENS = 512


@dataclass(frozen=True, slots=True)
class CurveRequest:
    """What to measure; windows count per domain of text."""

    source: str
    shares: tuple[float, ...]
    held_out_windows: int
    calibration_windows: int


@dataclass(frozen=True, slots=True)
class Texts:
    """Calibration windows (those for thresholds last), then held-out windows, in one array.

    `dense` float32 [layers, fit windows, tokens, hidden] are the dense model's states after each layer.
    """

    tokens: npt.NDArray[np.int64]
    fit_windows: int
    calibration_windows: int
    held_out: TextWindows
    dense: Floats


@dataclass(frozen=True, slots=True)
class Point:
    """One arm at one share. `heldout_share` is what it really evaluated; `losses` are per held-out document."""

    arm: str
    target_share: float
    heldout_share: float
    losses: Losses
    overall: PerplexityRatio
    by_domain: dict[Domain, PerplexityRatio]


@dataclass(frozen=True, slots=True)
class Curve:
    """All points with what they are relative to."""

    model_name: str
    dense_perplexity: float
    dense_by_domain: dict[Domain, float]
    held_out_tokens: int
    calibration_tokens: int
    held_out_sha256: str
    points: tuple[Point, ...]


def measure_curve(request: CurveRequest, on_progress: Callable[[str, int, int], None]) -> Curve:
    """Measure all arms at all shares; minutes per point on two cores."""
    file = GgufFile(find_gguf(request.source))
    model, template = read_model(file), read_chat_settings(file).chat_template
    for share in request.shares:
        check_settings(CarveSettings(target_share=share), model.config)
    tokenizer, split = read_tokenizer(file), load_split()
    calibration = cut_windows(
        split.calibration, tokenizer, per_domain=request.calibration_windows, window_tokens=_WINDOW_TOKENS,
        chat_template=template, per_document=4,
    )  # fmt: skip
    held_out = cut_windows(
        split.held_out, tokenizer, per_domain=request.held_out_windows, window_tokens=_WINDOW_TOKENS,
        chat_template=template,
    )  # fmt: skip
    if len(calibration.tokens) < 6:
        raise CarveError("a curve needs at least 2 calibration windows per domain: one in six only sets thresholds")
    on_progress("dense", 0, 1)
    texts, dense_losses = prepare_texts(model, calibration, held_out)
    on_progress("dense", 1, 1)
    jobs = [(arm, share) for share in request.shares for arm in ARMS if _tells_apart(arm, share)]
    points = []
    for done, (arm, share) in enumerate(jobs, start=1):
        points.append(measure_arm(model, texts, dense_losses, arm, CarveSettings(target_share=share)))
        on_progress("arms", done, len(jobs))
    return Curve(
        model_name=model.source.file_name,
        dense_perplexity=float(np.exp(dense_losses.mean())),
        dense_by_domain={domain: float(np.exp(dense_losses[held_out.rows_of(domain)].mean())) for domain in DOMAINS},
        held_out_tokens=held_out.token_count,
        calibration_tokens=calibration.token_count,
        held_out_sha256=held_out.sha256,
        points=tuple(points),
    )


def _tells_apart(arm: Arm, share: float) -> bool:
    """False where the arm repeats static pruning: no expert is ever picked, and the shared neurons are the same."""
    return not arm.shares_by_importance or CarveSettings(target_share=share).routed_share > 0


def prepare_texts(model: DenseModel, calibration: TextWindows, held_out: TextWindows) -> tuple[Texts, Losses]:
    """Run the dense model once over everything; returns the texts and its losses on the held-out documents."""
    ordered, fit = split_windows(calibration.tokens)
    tokens = np.concatenate([ordered, held_out.tokens])
    rope = Rope(model.config, tokens.shape[1])
    states = embed(model, tokens)
    trajectory = np.empty((model.config.layers, fit, *states.shape[1:]), np.float32)
    for index, layer in enumerate(model.layers):
        states = dense_step(model.config, layer, rope, states)
        trajectory[index] = states[:fit]
    losses = window_losses(model, states[len(ordered) :], held_out.tokens)
    return Texts(tokens, fit, len(ordered), held_out, trajectory), losses


def measure_arm(model: DenseModel, texts: Texts, dense_losses: Losses, arm: Arm, settings: CarveSettings) -> Point:
    """Convert with one arm and measure it, calibration and held-out windows side by side through the layers."""
    config, window = model.config, texts.tokens.shape[1]
    rope = Rope(config, window)
    states = embed(model, texts.tokens)
    calibration = texts.calibration_windows * window
    shares = []
    for index, layer in enumerate(model.layers):
        states += attention(config, layer, rope, states)
        flat = states.reshape(-1, config.hidden)
        rows = rms_norm(flat, layer.ffn_norm, config.norm_eps)
        given = LayerInput(layer, rows, hidden_neurons(layer, rows), texts.fit_windows * window, calibration)
        mask = arm.mask(given, settings)
        shares.append(float(mask[calibration:].mean()))
        missing = texts.dense[index].reshape(-1, config.hidden) - flat[: given.fit]
        flat += _converted_output(given, mask, missing, settings, refit=arm.refit)
    losses = window_losses(model, states[texts.calibration_windows :], texts.held_out.tokens)
    rows_of = {domain: texts.held_out.rows_of(domain) for domain in DOMAINS}
    return Point(
        arm=arm.name,
        target_share=settings.target_share,
        heldout_share=float(np.mean(shares)),
        losses=losses,
        overall=perplexity_ratio(losses, dense_losses),
        by_domain={d: perplexity_ratio(losses[rows], dense_losses[rows]) for d, rows in rows_of.items()},
    )


def _converted_output(
    given: LayerInput, mask: npt.NDArray[np.bool_], missing: Floats, settings: CarveSettings, *, refit: bool
) -> Floats:
    down = given.layer.down
    gated = np.multiply(given.neurons, mask)
    if refit:
        dense_output = given.neurons[: given.fit] @ down.T
        target = refit_target(dense_output, missing, settings.drift_correction)
        down = refit_down(gated[: given.fit], target, down, settings.refit_ridge)
    output: Floats = gated @ down.T
    return output
