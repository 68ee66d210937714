"""An explanation on the screen: a summary of every token, or every score of one layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from expertmesh.cli.output import counted
from expertmesh.errors import InvalidRequest
from expertmesh.inspecting import ExpertChoice, Explanation, LayerExplanation


def only(found: Explanation, layer: int | None, token: int | None) -> Explanation:
    """The asked part of an explanation.

    Raises:
        InvalidRequest: there is no such layer or token.

    """
    layers = found.layers
    if layer is not None:
        layers = tuple(entry for entry in layers if entry.layer == layer)
        if not layers:
            raise InvalidRequest(f"layer {layer} does not exist: {found.model} has layers 0 to {len(found.layers) - 1}")
    if token is None:
        return replace(found, layers=layers)
    if token >= len(found.pieces):
        raise InvalidRequest(f"token {token} does not exist: there are {len(found.pieces)}, numbered from 0")
    return replace(
        found,
        token_ids=found.token_ids[token : token + 1],
        pieces=found.pieces[token : token + 1],
        layers=tuple(replace(entry, tokens=entry.tokens[token : token + 1]) for entry in layers),
    )


def show(screen: Console, found: Explanation, *, every_score: bool) -> None:
    """Print it; `every_score` is for one layer."""
    screen.print(f"{found.model}: {counted(len(found.pieces), 'token')}", style="bold")
    if every_score:
        for layer in found.layers:
            _show_scores(screen, found, layer)
    elif len(found.pieces) == 1:
        _show_token(screen, found)
    else:
        _show_summary(screen, found)


def _show_summary(screen: Console, found: Explanation) -> None:
    """How many experts each token took per layer, and what was decided by a hair."""
    table = _table(("token", "text", "experts per layer", "mean", "closest decision"))
    for token, piece in enumerate(found.pieces):
        counts = [sum(e.picked for e in layer.tokens[token]) for layer in found.layers]
        mean = sum(counts) / max(len(counts), 1)
        digits = "".join(str(count) if count < 10 else "+" for count in counts)
        table.add_row(str(token), _quoted(piece), digits, f"{mean:.1f}", _closest(found, token))
    screen.print(table)
    screen.print("  a digit per layer: the experts the token went to (+: ten or more)")
    screen.print("  more of one token: --at N; every score of one layer: --layer N")


def _show_token(screen: Console, found: Explanation) -> None:
    table = _table(("layer", "rule", "experts (score, margin, workers)"))
    for layer in found.layers:
        picked = ", ".join(_described(e) for e in layer.tokens[0] if e.picked) or "none"
        table.add_row(str(layer.layer), layer.rule, picked)
    screen.print(f"  {_quoted(found.pieces[0])}")
    screen.print(table)


def _show_scores(screen: Console, found: Explanation, layer: LayerExplanation) -> None:
    screen.print(f"layer {layer.layer}: {layer.rule}")
    table = _table(("token", "text", "expert", "score", "margin", "weight", "picked", "workers"))
    for piece, (number, experts) in zip(found.pieces, enumerate(layer.tokens), strict=True):
        for e in sorted(experts, key=lambda e: -e.score):
            first = e.score == max(other.score for other in experts)
            head = (str(number), _quoted(piece)) if first else ("", "")
            table.add_row(
                *head, str(e.index), f"{e.score:.4f}", _signed(e.margin), f"{e.weight:.3g}" if e.picked else "",
                "yes" if e.picked else "no", ", ".join(e.worker_ids) or "nobody",
            )  # fmt: skip
    screen.print(table)


def _closest(found: Explanation, token: int) -> str:
    """The decision that a small change of the row would have turned."""
    margins = [(abs(e.margin), layer.layer, e) for layer in found.layers for e in layer.tokens[token]]
    finite = [entry for entry in margins if math.isfinite(entry[0])]
    if not finite:
        return "-"
    margin, layer, expert = min(finite, key=lambda entry: entry[0])
    return f"{margin:.2g} (layer {layer}, expert {expert.index}, {'taken' if expert.picked else 'left out'})"


def _described(expert: ExpertChoice) -> str:
    holders = "+".join(expert.worker_ids) or "nobody"
    return f"{expert.index} ({expert.score:.3f}, {_signed(expert.margin)}, {holders})"


def _signed(margin: float) -> str:
    return f"{margin:+.3f}" if math.isfinite(margin) else "always" if margin > 0 else "never"


def _quoted(piece: str) -> str:
    return repr(piece)


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
