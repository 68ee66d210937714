"""The curve as a table in Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from expertmesh_forge.curve.measuring import Curve, Point
from expertmesh_forge.texts.documents import DOMAINS

__all__ = ["publish_curve", "quality_table"]

_LABELS = {
    "carved": "carved: router + refit",
    "carved-no-refit": "carved, no refit",
    "oracle": "oracle routing + refit",
    "static-refit": "static pruning + refit",
    "static": "static pruning",
    "random": "random split + router + refit",
}
_STYLES = {
    "carved": ("#0b6e4f", "-", "o", 2.6),
    "carved-no-refit": ("#0b6e4f", ":", "o", 1.4),
    "oracle": ("#555555", "--", "^", 1.4),
    "static-refit": ("#c8553d", "-", "s", 1.6),
    "static": ("#c8553d", ":", "s", 1.4),
    "random": ("#7a6c9d", "-", "x", 1.4),
}
# Ratios past this are all equally useless, and would flatten the part that matters.
_HIGHEST_SHOWN = 8.0


def publish_curve(curve: Curve, folder: Path) -> tuple[Path, Path]:
    """Write `quality.md` and `images/quality-curve.png` under `folder`; returns both paths."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table, image = folder / "quality.md", folder / "images" / "quality-curve.png"
    table.write_text(quality_table(curve), encoding="utf-8")
    _plot(curve, image)
    return table, image


def quality_table(curve: Curve) -> str:
    """The whole page."""
    domains = ", ".join(f"{domain} {curve.dense_by_domain[domain]:.2f}" for domain in DOMAINS)
    return f"""# What carving costs in quality

Perplexity of {curve.model_name} carved into 8 shared + 8 routed experts per layer, over that of the dequantised dense
model, on {curve.held_out_tokens:,} held-out tokens (State of the Union addresses, the Python language reference, the
standard library's source; every fourth window as a chat turn). Split by document and by content hash; fitted on
{curve.calibration_tokens:,} other tokens. The dense model's perplexity is {curve.dense_perplexity:.2f} ({domains}).

Share is the part of the feed-forward neurons really evaluated per held-out token, all layers; brackets hold the 95 %
interval of a paired bootstrap over documents (2,000 resamples).

![Perplexity ratio against share](images/quality-curve.png)

{_rows(curve.points)}

Every arm evaluates as many neurons at one target. `static` keeps the neurons with the largest rms activation times
output norm for every token and has no router; with `refit` its down projections are refitted exactly as the carved
ones, so the difference between the two is what routing brings. `oracle` picks experts by their true output length,
which costs as much as evaluating them: it bounds what a router that predicts lengths can reach. At 50 % only the
shared experts are left: the arms that share by importance are then static pruning and are not repeated.

Reproduce with `expertmesh model curve`. Held-out windows: sha256 `{curve.held_out_sha256}`; another Python patch
release has another standard library, hence other windows.
"""


def _rows(points: Sequence[Point]) -> str:
    head = [
        "| target | arm | share | all text | " + " | ".join(DOMAINS) + " |",
        "|---|---|---|---|" + "---|" * len(DOMAINS),
    ]
    return "\n".join(head + [_row(point) for point in points])


def _row(point: Point) -> str:
    by_domain = " | ".join(f"{point.by_domain[domain].ratio:.3f}" for domain in DOMAINS)
    share = f"{point.heldout_share:.1%}"
    return f"| {point.target_share:.1%} | {_LABELS[point.arm]} | {share} | {point.overall} | {by_domain} |"


def _plot(curve: Curve, path: Path) -> None:
    # A drawing library that touches no display and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for arm, (colour, line, marker, width) in _STYLES.items():
        own = sorted((point for point in curve.points if point.arm == arm), key=lambda point: point.heldout_share)
        if not own:
            continue
        shares = [100 * point.heldout_share for point in own] + [100.0]
        ratios = [point.overall.ratio for point in own] + [1.0]
        low = [point.overall.low for point in own] + [1.0]
        high = [point.overall.high for point in own] + [1.0]
        axes.plot(shares, ratios, color=colour, linestyle=line, marker=marker, linewidth=width, label=_LABELS[arm])
        axes.fill_between(shares, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(
        xlabel="feed-forward neurons evaluated per token (%)", ylabel="perplexity / dense perplexity", yscale="log"
    )
    axes.set_xlim(101, 48)
    axes.set_ylim(0.97, _HIGHEST_SHOWN)
    ticks = [1, 1.1, 1.25, 1.5, 2, 3, 5, 8]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(f"{curve.model_name}: quality against work", loc="left")
    figure.savefig(path)
