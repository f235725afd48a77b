"""One transformer for pictures, sequences, clips and tokens: DiT (Peebles & Xie 2023) with the parts that followed it.

An example becomes a row of sites, each a vector of `width` numbers: patches of real numbers through a linear layer, or
tokens through a table. Blocks of attention and feed-forward then let all sites see each other. As in DiT, the embedding
of noise level and label shifts, scales and gates every branch, and starts with all gates shut (adaLN-Zero). As in newer
transformers (JiT, Li & He 2025), norms are root-mean-square norms (Zhang & Sennrich 2019), queries and keys are
normed and rotated by their positions (Su et al. 2024), and the feed-forward layer is gated (SwiGLU, Shazeer 2020).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.core.errors import require
from diffgen.nets.base import MODELS, DataShape
from diffgen.nets.layers import Embedding, attend, linear

NOISE_CHANNELS = 256
"""Of the sinusoidal embedding, at every width (Peebles & Xie 2023)."""


class RMSNorm(nn.Module):
    """x / rms(x) times a weight, over the last axis; in float32 at least, whatever autocast says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[..., channels] -> the same."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(x, self.weight.shape, self.weight, eps=1e-6)


def rotations(grid: Sequence[int], channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, one part of the channels for each axis of a grid (Su et al. 2024).

    Args:
        grid: Sites along each axis. Axes share the pairs of channels evenly, three axes as 2:3:3.
        channels: Of a head.
        device: Where they are needed.

    Returns:
        [N, channels / 2] each, for the N sites in the order of memory.
    """
    angles = []
    places = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    for place, pairs in zip(places, pairs_by_axis(channels, len(grid)), strict=True):
        frequencies = 10_000 ** (-torch.arange(pairs, device=device, dtype=torch.float32) / pairs)
        angles.append(place.reshape(-1, 1) * frequencies)
    angle = torch.cat(angles, 1)
    return angle.cos(), angle.sin()


def pairs_by_axis(channels: int, axes: int) -> list[int]:
    """How many pairs of a head's channels turn with each axis."""
    shares = [2, 3, 3] if axes == 3 else [1] * axes
    ends = [channels // 2 * sum(shares[: i + 1]) // sum(shares) for i in range(axes)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + channels / 2) of [..., N, channels] by the angle of its site."""
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Self-attention over all sites."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """[B, N, width] -> the same."""
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = rotate(self.norm_q(q), rotation).to(v), rotate(self.norm_k(k), rotation).to(v)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: two layers in, whose product goes out; 8/3 of the width makes it cost as much as two layers of 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3
        self.gate, self.value = linear(width, hidden), linear(width, hidden)
        self.out = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> the same."""
        return self.out(F.silu(self.gate(x)) * self.value(x))


class Block(nn.Module):
    """Attention, then the feed-forward layer, each between a modulated norm and a gate."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm0, self.attention = RMSNorm(width), Attention(width, heads)
        self.norm1, self.feed_forward = RMSNorm(width), FeedForward(width)

    def forward(self, x: Tensor, modulation: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """(x [B, N, width], modulation [B, 6 width], rotation of the N sites) -> [B, N, width]."""
        shift0, scale0, gate0, shift1, scale1, gate1 = modulation[:, None].chunk(6, dim=2)
        h = self.attention(self.norm0(x) * (1 + scale0) + shift0, rotation)
        x = x + gate0 * F.dropout(h, self.dropout, self.training)
        h = self.feed_forward(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate1 * F.dropout(h, self.dropout, self.training)


class Patches(nn.Module):
    """Both ends of the network for real numbers [B, C, *sides]; a site is a patch, of a size along every side."""

    def __init__(self, shape: DataShape, width: int, patch: list[int], bottleneck: int | None, inputs: int) -> None:
        """Args: inputs: How many examples are stacked along the channels; 2 where the estimate is one."""
        super().__init__()
        sides, axes = shape.size[1:], len(shape.size) - 1
        for side, along in zip(sides, patch, strict=True):
            cut = f"patch={patch[-1]}, patch_time={patch[0]}" if axes == 3 else f"patch={along}"
            whole = 1 <= along <= 64 and side % along == 0
            require(whole, f"{cut} must divide the sides of the data, {'x'.join(map(str, sides))}")
        self.size, self.width, self.patch = shape.size, width, patch
        self.grid = [side // along for side, along in zip(sides, patch, strict=True)]
        at = range(2, 2 + 2 * axes, 2)  # of the sites in [B, C, site, within, site, within, ...]
        self.order = [0, *at, 1, *(axis + 1 for axis in at)]
        values = shape.channels * math.prod(patch)
        taken = (inputs * shape.channels + shape.given) * math.prod(patch)
        narrow = [nn.Linear(taken, bottleneck, bias=False)] if bottleneck else []
        self.stem = nn.Sequential(*narrow, linear(bottleneck or taken, width))
        self.head = zero_linear(width, values)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs C + given, *sides] -> [B, N, width]."""
        cut = x.reshape(x.shape[0], -1, *(n for pair in zip(self.grid, self.patch, strict=True) for n in pair))
        sites = cut.permute(self.order).reshape(x.shape[0], math.prod(self.grid), -1)
        positions = torch.cat(rotations(self.grid, self.width, x.device), 1)
        return self.stem(sites) + positions

    def back(self, h: Tensor) -> Tensor:
        """[B, N, width] -> [B, C, *sides]."""
        cut = self.head(h).reshape(h.shape[0], *self.grid, self.size[0], *self.patch)
        return cut.permute(sorted(range(len(self.order)), key=self.order.__getitem__)).reshape(-1, *self.size)


class Tokens(nn.Module):
    """Both ends of the network for tokens int64 [B, *size]; each is a site."""

    def __init__(self, shape: DataShape, width: int) -> None:
        super().__init__()
        self.size, self.grid = shape.size, [side for side in shape.size if side > 1] or [1]
        self.stem = nn.Embedding(shape.vocabulary + 1, width)  # the last stands for a masked token
        self.places = nn.Parameter(torch.zeros(math.prod(shape.size), width))
        self.head = zero_linear(width, shape.vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """int64 [B, *size] -> [B, N, width].

        Rotary positions alone would not do: where all tokens are masked, what a site sees of the others is the same
        whatever its place. So each place has a vector of its own, learned from zero.
        """
        return self.stem(x.flatten(1)) + self.places

    def back(self, h: Tensor) -> Tensor:
        """[B, N, width] -> logits [B, *size, vocabulary]."""
        return self.head(h).unflatten(1, self.size)


def zero_linear(c_in: int, c_out: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(c_in, c_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@MODELS.register("dit")
class DiT(nn.Module):
    """Transformer with adaLN-Zero blocks over patches or tokens."""

    takes_tokens = True

    def __init__(
        self,
        shape: DataShape,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        patch_time: int | None,
        attention: Literal["full", "factorised"],
        bottleneck: int | None,
        dropout: float,
        class_tokens: int,
        class_tokens_from: int,
        self_condition: bool,
    ) -> None:
        """Build the network.

        Args:
            shape: Of the data: real numbers [C, *sides], or tokens of any size.
            width: Numbers that describe a site.
            depth: Blocks.
            heads: Attention heads; they divide the width into even parts.
            patch: Side of a patch, along every side of the data; tokens are a site each.
            patch_time: Frames of a patch, of clips alone; null: `patch`.
            attention: Of clips: `full`, all sites see each other, or `factorised`, in turn those of a frame and those
                of a place (Ma et al. 2024, Latte).
            bottleneck: Width between the two layers that take patches in (JiT); null: one layer.
            dropout: Probability at the end of every branch.
            class_tokens: Sites beside the example's that hold the embedding (JiT's in-context tokens).
            class_tokens_from: The block, from 0, that sees them first.
            self_condition: Whether the network also sees the last estimate of x0 (Chen et al. 2023).
        """
        super().__init__()
        _check_sizes(width, depth, heads, dropout, bottleneck)
        _check_tokens(depth, class_tokens, class_tokens_from)
        _check_shape(shape, width, heads, self_condition=self_condition)
        clips = len(shape.size) == 4 and not shape.vocabulary
        told = f"attention=factorised is for clips without class tokens, and the data is {shape}: attention=full"
        require(attention == "full" or (clips and not class_tokens), told)
        require(attention == "full" or depth > 1, "depth=1 leaves no block along time: attention=full, or depth=2")
        self.channels, self.self_condition, self.class_tokens_from = width // heads, self_condition, class_tokens_from
        self.embedding = Embedding(NOISE_CHANNELS, width, shape)
        if shape.vocabulary:
            self.ends: Patches | Tokens = Tokens(shape, width)
        else:
            self.ends = Patches(shape, width, _patch(shape, patch, patch_time), bottleneck, inputs=1 + self_condition)
        self.factorised = attention == "factorised"
        self.class_tokens = nn.Parameter(0.02 * torch.randn(class_tokens, width)) if class_tokens else None
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(depth)])
        # of the blocks, but not in them: Muon takes the matrices in blocks, and these are Adam's
        self.modulations = nn.ModuleList([zero_linear(width, 6 * width) for _ in range(depth)])
        self.norm, self.modulation = RMSNorm(width), zero_linear(width, 2 * width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        label: Tensor,
        augment: Tensor | None = None,
        estimate: Tensor | None = None,
        span: Tensor | None = None,
    ) -> Tensor:
        """F(x), or the logits of tokens.

        Args:
            x: [B, *size], and behind its channels those that tell what is known (`DataShape.given`); int64 in
                [0, vocabulary] for tokens, where `vocabulary` stands for a masked one.
            condition: The schedule's noise_cond, [B].
            label: int64 [B], negative for none.
            augment: What was done to the training examples, [B, augment_labels]; None for untouched ones.
            estimate: The last estimate of x0, [B, *size], where the network is built for it; None: none yet.
            span: How far the step goes, [B], where the network is built for it; None: nowhere.

        Returns:
            [B, *size]; for tokens [B, *size, vocabulary].
        """
        embedding = self.embedding(condition, label, augment, span)
        if self.self_condition:
            x = torch.cat([x, torch.zeros_like(x[:, : self.ends.size[0]]) if estimate is None else estimate], 1)
        h = self.ends(x)
        sites = h.shape[1]
        rotation = rotations(self.ends.grid, self.channels, x.device)
        for number, (block, modulation) in enumerate(zip(self.blocks, self.modulations, strict=True)):
            if self.class_tokens is not None and number == self.class_tokens_from:
                h = torch.cat([embedding[:, None] + self.class_tokens, h], 1)
                rotation = unturned(rotation, len(self.class_tokens))
            if self.factorised:
                h = self._apart(h, block, modulation(embedding), rotation, over_time=number % 2 == 1)
            else:
                h = block(h, modulation(embedding), rotation)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        return self.ends.back(self.norm(h[:, -sites:]) * (1 + scale) + shift)

    def _apart(
        self, h: Tensor, block: nn.Module, modulation: Tensor, rotation: tuple[Tensor, Tensor], *, over_time: bool
    ) -> Tensor:
        """A block over the sites of each frame alone, or of each place alone: [B, N, width] -> the same.

        Within a frame, or at a place, the axes that do not change turn queries and keys alike, and so nothing.
        """
        frames = self.ends.grid[0]
        sites = h.unflatten(1, (frames, -1))
        sites = sites.transpose(1, 2) if over_time else sites
        turned = tuple(each.unflatten(0, (frames, -1)) for each in rotation)
        own = tuple(each[:, 0] if over_time else each[0] for each in turned)
        groups = block(sites.flatten(0, 1), modulation.repeat_interleave(sites.shape[1], 0), own)
        sites = groups.unflatten(0, (h.shape[0], -1))
        return (sites.transpose(1, 2) if over_time else sites).flatten(1, 2)


def _patch(shape: DataShape, patch: int, patch_time: int | None) -> list[int]:
    """The size of a patch along each side."""
    axes = len(shape.size) - 1
    return [patch if patch_time is None else patch_time, patch, patch] if axes == 3 else [patch] * axes


def unturned(rotation: tuple[Tensor, Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Rotations of sites, after n that are not turned."""
    cos, sin = rotation
    return F.pad(cos, (0, 0, n, 0), value=1.0), F.pad(sin, (0, 0, n, 0))


def _check_sizes(width: int, depth: int, heads: int, dropout: float, bottleneck: int | None) -> None:
    require(4 <= width <= 65536, f"width={width} must be in [4, 65536]")
    require(1 <= depth <= 256, f"depth={depth} must be in [1, 256]")
    require(
        1 <= heads <= 256 and width % (2 * heads) == 0,
        f"heads={heads} must be in [1, 256] and divide width={width} into even parts",
    )
    require(0 <= dropout < 1, f"dropout={dropout} must be in [0, 1)")
    require(
        bottleneck is None or 1 <= bottleneck <= width, f"bottleneck={bottleneck} must be in [1, width={width}] or null"
    )


def _check_tokens(depth: int, class_tokens: int, class_tokens_from: int) -> None:
    require(0 <= class_tokens <= 1024, f"class_tokens={class_tokens} must be in [0, 1024]")
    require(
        0 <= class_tokens_from < depth,
        f"class_tokens_from={class_tokens_from} must be a block, in [0, {depth - 1}]",
    )


def _check_shape(shape: DataShape, width: int, heads: int, *, self_condition: bool) -> None:
    if shape.vocabulary:
        require(not self_condition, "self_condition=true takes real numbers, and the data is tokens")
    else:
        require(
            len(shape.size) > 1,
            f"name=dit takes pictures, sequences, clips or tokens, and the data is {shape}: choose model=mlp",
        )
    axes = sum(side > 1 for side in shape.size) if shape.vocabulary else len(shape.size) - 1
    require(
        all(pairs_by_axis(width // heads, axes)),
        f"heads={heads} leaves {width // heads} of width={width} to each, too few to tell {axes} axes apart",
    )
