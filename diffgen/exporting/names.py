"""Weights under the names of diffusers' UNet2DModel, and back: one table for both ways.

The two differ in names and in attention alone, where diffusers has a linear layer for each of q, k and v, and diffgen
one convolution of a pixel for all three.
"""

from collections.abc import Mapping
from typing import Any

import torch

from diffgen.storage.tensor_file import Tensors

Layers = dict[str, tuple[str, ...]]
"""A layer of diffgen's U-Net: the layer of UNet2DModel, or three of them."""

ENDS = {
    "embedding.layer0": "time_embedding.linear_1",
    "embedding.layer1": "time_embedding.linear_2",
    "stem": "conv_in",
    "norm": "conv_norm_out",
    "head": "conv_out",
}

BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "embed": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}

ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "proj": ("to_out.0",)}

EARLIER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What diffusers called attention before version 0.14, and what most public files still do."""


def layers_of(settings: Mapping[str, Any]) -> Layers:
    """Every layer that a U-Net of these settings may have; they are sound, so that there are few."""
    levels, blocks = len(settings["channel_mult"]), settings["blocks"]
    table: Layers = {ours: (theirs,) for ours, theirs in ENDS.items()}
    number = 0
    for level in range(levels):
        if level > 0:
            table[f"encoder.{number}.conv"] = (f"down_blocks.{level - 1}.downsamplers.0.conv",)
            number += 1
        for block in range(blocks):
            table |= _block(f"encoder.{number}", f"down_blocks.{level}", block)
            number += 1
    table |= _block("middle.0", "mid_block", 0) | _block("middle.1", "mid_block", 1)
    number = 0
    for level in range(levels):
        for block in range(blocks + 1):
            table |= _block(f"decoder.{number}", f"up_blocks.{level}", block)
            number += 1
        if level < levels - 1:
            table[f"decoder.{number}.conv"] = (f"up_blocks.{level}.upsamplers.0.conv",)
            number += 1
    return table


def _block(ours: str, theirs: str, number: int) -> Layers:
    block: Layers = {f"{ours}.{a}": (f"{theirs}.resnets.{number}.{b}",) for a, b in BLOCK.items()}
    for a, parts in ATTENTION.items():
        block[f"{ours}.attention.{a}"] = tuple(f"{theirs}.attentions.{number}.{part}" for part in parts)
    return block


def to_theirs(weights: Tensors, table: Layers) -> Tensors:
    """diffgen's weights under diffusers' names."""
    renamed = {}
    for name, weight in weights.items():
        layer, _, end = name.rpartition(".")
        if ".attention." in layer and weight.ndim == 4:
            weight = weight[:, :, 0, 0]  # a convolution of one pixel is a linear layer
        places = table[layer]
        for place, part in zip(places, weight.chunk(len(places)), strict=True):
            renamed[f"{place}.{end}"] = part
    return renamed


def to_ours(weights: Tensors, table: Layers) -> Tensors:
    """diffusers' weights under diffgen's names; those of no layer keep their own."""
    left, renamed = {_todays(name): weight for name, weight in weights.items()}, {}
    for layer, places in table.items():
        for end in ("weight", "bias"):
            names = [f"{place}.{end}" for place in places]
            if all(name in left for name in names):
                weight = torch.cat([left.pop(name) for name in names])
                linear = ".attention." in layer and weight.ndim == 2
                renamed[f"{layer}.{end}"] = weight[:, :, None, None] if linear else weight
    return left | renamed


def _todays(name: str) -> str:
    for earlier, today in EARLIER.items():
        name = name.replace(earlier, today)
    return name
