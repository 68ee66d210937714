"""Matrices in 8-bit floats with a scale per block, made by torch."""

import torch

CONFIG = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
}  # fmt: skip
LARGEST = 448  # of E4M3
Tensors = dict[str, torch.Tensor]


def spread(scales: torch.Tensor, shape: tuple[int, ...], block: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """Every block's scale at every weight of the block."""
    rows, columns = shape[-2:]
    return scales.repeat_interleave(block[0], -2)[..., :rows, :].repeat_interleave(block[1], -1)[..., :columns]


def quantised(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix, the largest of every block at the largest code."""
    scales = torch.stack([torch.stack([p.abs().max() for p in r.split(128, 1)]) for r in weights.split(128)]) / LARGEST
    return (weights / spread(scales, weights.shape)).to(torch.float8_e4m3fn), scales


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random) * torch.rand(shape[-1], generator=random) ** 4
