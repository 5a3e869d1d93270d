"""Convolutional networks for images: encoder and decoder with latents at several scales, critic.

Treatment and covariate codes enter every block as a scale and a shift of its feature maps (FiLM:
Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad, pixel_shuffle, pixel_unshuffle, silu
from torch.nn.utils.parametrizations import spectral_norm

from ._networks import latent_normal

if TYPE_CHECKING:
    from torch.distributions import Normal

    from ._config import ImageArchitecture

#: Images are halved until no side is larger than this.
_COARSEST = 8
#: Slope of the critic's rectifier for negative inputs.
_SLOPE = 0.2


class ImageGrid:
    """Resolutions at which networks see images.

    The first resolution is half the image's, whose pixels of 2 × 2 squares become channels; each
    further one is half of the one before, and has twice the channels.

    Parameters
    ----------
    shape
        Channels, height and width of the images.
    architecture
        Width, depth and number of latent scales.
    """

    def __init__(self, shape: tuple[int, int, int], architecture: ImageArchitecture) -> None:
        self.shape = shape
        _, height, width = shape
        n = 1
        while max(height, width) > _COARSEST * 2**n:
            n += 1
        #: Sides after padding to a multiple of the coarsest resolution's pixels.
        self.padded = tuple(-(-side // 2**n) * 2**n for side in (height, width))
        #: Height and width of each resolution, finest first.
        self.sides = [tuple(side // 2 ** (i + 1) for side in self.padded) for i in range(n)]
        #: Channels of each resolution.
        self.channels = [architecture.width * 2**i for i in range(n)]
        #: Resolutions with latent maps, coarsest first.
        self.with_maps = list(range(n))[::-1][: architecture.n_scales - 1]

    def n_latent(self, architecture: ImageArchitecture) -> int:
        """Dimensions of the latent state: the vector and all maps."""
        pixels = sum(self.sides[i][0] * self.sides[i][1] for i in self.with_maps)
        return architecture.n_latent + architecture.n_maps * pixels

    def unfold(self, images: Tensor) -> Tensor:
        """Pad images and turn squares of pixels into channels, at the finest resolution."""
        _, height, width = self.shape
        bottom, right = self.padded[0] - height, self.padded[1] - width
        images = pad(images, (0, right, 0, bottom)) if bottom or right else images
        return pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)

    def fold(self, maps: Tensor) -> Tensor:
        """Inverse of :meth:`unfold`, for any number of channels."""
        _, height, width = self.shape
        return pixel_shuffle(maps, 2)[..., :height, :width]


class _Condition(nn.Module):
    """Features of the codes that all blocks of a network share."""

    def __init__(self, n_codes: int, n_features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_codes, n_features),
            nn.SiLU(),
            nn.Linear(n_features, n_features),
            nn.SiLU(),
        )

    def forward(self, codes: Tensor) -> Tensor:
        return self.body(codes)


class _Film(nn.Module):
    """Scale and shift feature maps by what the codes say."""

    def __init__(self, n_features: int, n_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, 2 * n_channels)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.linear(condition)[:, :, None, None].chunk(2, dim=1)
        return maps * (1 + scale) + shift


class _Block(nn.Module):
    """Residual block of two convolutions, the identity at the start."""

    def __init__(self, n_channels: int, n_features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_channels, n_channels, 3, padding=1)
        self.film = _Film(n_features, n_channels)
        self.second = nn.Conv2d(n_channels, n_channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        hidden = self.film(self.first(silu(maps)), condition)
        return maps + self.second(silu(hidden))


class _Stage(nn.Module):
    """Blocks at one resolution."""

    def __init__(self, n_blocks: int, n_channels: int, n_features: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(n_channels, n_features) for _ in range(n_blocks))

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        for block in self.blocks:
            maps = block(maps, condition)
        return maps


def _stages(grid: ImageGrid, architecture: ImageArchitecture) -> nn.ModuleList:
    """Stages of all resolutions; the finest, where blocks cost most, has one block."""
    depths = [1] + [architecture.depth] * (len(grid.channels) - 1)
    return nn.ModuleList(
        _Stage(depth, channels, architecture.n_condition)
        for depth, channels in zip(depths, grid.channels, strict=True)
    )


class ImageEncoder(nn.Module):
    """q(z | y, x, t) of images: a vector of the whole image and maps at the coarser resolutions.

    Parameters
    ----------
    shape
        Channels, height and width of the images.
    n_codes
        Width of the treatment and covariate codes together.
    architecture
        Width, depth and latent scales.
    """

    def __init__(
        self, shape: tuple[int, int, int], n_codes: int, architecture: ImageArchitecture
    ) -> None:
        super().__init__()
        self.grid = grid = ImageGrid(shape, architecture)
        n_features = architecture.n_condition
        self.condition = _Condition(n_codes, n_features)
        self.first = nn.Conv2d(4 * shape[0], grid.channels[0], 3, padding=1)
        self.stages = _stages(grid, architecture)
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1)
            for fine, coarse in zip(grid.channels[:-1], grid.channels[1:], strict=True)
        )
        height, width = grid.sides[-1]
        self.vector = nn.Linear(grid.channels[-1] * height * width, 2 * architecture.n_latent)
        self.maps = nn.ModuleDict(
            {
                str(i): nn.Conv2d(grid.channels[i], 2 * architecture.n_maps, 1)
                for i in grid.with_maps
            }
        )

    def forward(self, images: Tensor, treatment: Tensor, covariates: Tensor) -> Normal:
        """Return q(z | y, x, t), batch shape ``(n_cells, n_latent)``.

        Parameters
        ----------
        images
            Shape ``(n_cells, channels, height, width)``.
        treatment, covariates
            Codes, shapes ``(n_cells, n_treatment)`` and ``(n_cells, n_covariate)``.
        """
        condition = self.condition(torch.cat([treatment, covariates], dim=-1))
        maps = self.first(self.grid.unfold(images))
        seen = []
        for i, stage in enumerate(self.stages):
            if i:
                maps = self.down[i - 1](silu(maps))
            maps = stage(maps, condition)
            seen.append(silu(maps))
        heads = [self.vector(seen[-1].flatten(1))]
        heads += [self.maps[str(i)](seen[i]).flatten(1) for i in self.grid.with_maps]
        parts = [head.float().chunk(2, dim=1) for head in heads]
        means, raw_sigmas = zip(*parts, strict=True)
        return latent_normal(torch.cat(means, dim=1), torch.cat(raw_sigmas, dim=1))


class ImageDecoder(nn.Module):
    """p(y | z, t) of images: linear predictors of each pixel.

    Blocks go from the coarsest resolution to the finest, and each adds the latent maps of its
    scale.

    Parameters
    ----------
    shape
        Channels, height and width of the images.
    n_codes
        Width of the treatment and covariate codes together.
    n_heads
        Linear predictors per pixel.
    architecture
        Width, depth and latent scales.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_codes: int,
        n_heads: int,
        architecture: ImageArchitecture,
    ) -> None:
        super().__init__()
        self.grid = grid = ImageGrid(shape, architecture)
        self.n_latent, self.n_maps = architecture.n_latent, architecture.n_maps
        self.n_heads = n_heads
        n_features = architecture.n_condition
        self.condition = _Condition(n_codes, n_features)
        height, width = grid.sides[-1]
        self.vector = nn.Linear(self.n_latent, grid.channels[-1] * height * width)
        self.maps = nn.ModuleDict(
            {str(i): nn.Conv2d(self.n_maps, grid.channels[i], 1) for i in grid.with_maps}
        )
        self.stages = _stages(grid, architecture)
        self.up = nn.ModuleList(
            nn.Conv2d(coarse, 4 * fine, 3, padding=1)
            for fine, coarse in zip(grid.channels[:-1], grid.channels[1:], strict=True)
        )
        self.last = nn.Conv2d(grid.channels[0], 4 * shape[0] * n_heads, 3, padding=1)

    def forward(self, z: Tensor, treatment: Tensor, covariates: Tensor) -> Tensor:
        """Return linear predictors, shape ``(n_cells, n_heads, channels, height, width)``.

        Parameters
        ----------
        z
            Latent states, shape ``(n_cells, n_latent)``.
        treatment, covariates
            Codes, shapes ``(n_cells, n_treatment)`` and ``(n_cells, n_covariate)``.
        """
        condition = self.condition(torch.cat([treatment, covariates], dim=-1))
        sides = self.grid.sides
        pieces = [self.n_maps * sides[i][0] * sides[i][1] for i in self.grid.with_maps]
        vector, *latent_maps = z.split([self.n_latent, *pieces], dim=1)
        by_resolution = dict(zip(self.grid.with_maps, latent_maps, strict=True))
        maps = self.vector(vector).unflatten(1, (self.grid.channels[-1], *sides[-1]))
        maps = maps.contiguous(memory_format=torch.channels_last)
        for i in reversed(range(len(sides))):
            if i < len(sides) - 1:
                maps = pixel_shuffle(self.up[i](silu(maps)), 2)
            if i in by_resolution:
                own = by_resolution[i].unflatten(1, (self.n_maps, *sides[i]))
                maps = maps + self.maps[str(i)](own)
            maps = self.stages[i](maps, condition)
        heads = self.grid.fold(self.last(silu(maps))).float()
        return heads.unflatten(1, (self.n_heads, self.grid.shape[0]))


class ImageCritic(nn.Module):
    """Critic of images: strided convolutions, with the codes as scale and shift, and projected.

    All but the last layers have spectral normalisation, as the reference implementation's.

    Parameters
    ----------
    shape
        Channels, height and width of the images.
    n_codes
        Width of the codes that the critic sees.
    n_out
        Number of outputs.
    architecture
        Width of the feature maps.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_codes: int,
        n_out: int,
        architecture: ImageArchitecture,
    ) -> None:
        super().__init__()
        self.grid = grid = ImageGrid(shape, architecture)
        n_features = architecture.n_condition
        # Codes may be absent; a constant then takes their place.
        self.condition = _Condition(max(n_codes, 1), n_features)
        channels = [4 * shape[0], *grid.channels]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(fine, coarse, 4 if i else 3, stride=2 if i else 1, padding=1))
            for i, (fine, coarse) in enumerate(zip(channels[:-1], channels[1:], strict=True))
        )
        self.films = nn.ModuleList(_Film(n_features, n) for n in grid.channels)
        top = grid.channels[-1]
        self.further = spectral_norm(nn.Conv2d(top, top, 3, padding=1))
        self.coarse = spectral_norm(nn.Conv2d(top, top, 3, stride=2, padding=1))
        height, width = (-(-side // 2) for side in grid.sides[-1])
        self.out = nn.Linear(top * height * width, n_out)
        self.projection = nn.Linear(n_features, top * n_out)
        self.n_out = n_out

    def forward(self, features: Tensor, codes: Tensor) -> Tensor:
        """Return the outputs, ``(n_cells, n_out)``.

        Parameters
        ----------
        features
            Flat images, shape ``(n_cells, n_pixels)``.
        codes
            Codes, shape ``(n_cells, n_codes)``.
        """
        if not codes.shape[-1]:
            codes = codes.new_ones(len(codes), 1)
        condition = self.condition(codes)
        maps = self.grid.unfold(features.unflatten(1, self.grid.shape))
        for layer, film in zip(self.layers, self.films, strict=True):
            maps = leaky_relu(film(layer(maps), condition), _SLOPE)
        maps = leaky_relu(self.further(maps), _SLOPE)
        maps = leaky_relu(self.coarse(maps), _SLOPE)
        weights = self.projection(condition).unflatten(1, (self.n_out, -1))
        projected = (weights * maps.mean(dim=(2, 3))[:, None]).sum(dim=-1)
        return (self.out(maps.flatten(1)) + projected).float()
