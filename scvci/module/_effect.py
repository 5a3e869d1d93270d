"""The default backbone: a baseline plus a treatment effect that is zero for the control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._backbone import ArmCodes, Backbone
from ._growth import Columns, Growth, lay_out
from ._networks import EffectDecoder, Encoder, effect_blocks

if TYPE_CHECKING:
    from typing import Self


class EffectBackbone(Backbone):
    """Networks whose decoder is a mixed model of effects over strata.

    The code of an arm is the relative dose of each member, zero for the control, and a column of
    its own for each arm but the members alone at their largest dose, for what it does beyond its
    members.
    """

    name = "effect"

    @staticmethod
    def encode_arms(doses: np.ndarray) -> ArmCodes:
        """See :meth:`Backbone.encode_arms`."""
        n_arms, n_members = doses.shape
        alone_at_largest = ((doses > 0).sum(axis=1) == 1) & (doses == 1).any(axis=1)
        beyond = np.eye(n_arms)[:, doses.any(axis=1) & ~alone_at_largest]
        return ArmCodes(np.hstack([doses, beyond]), members=slice(0, n_members))

    def build_encoder(self) -> Encoder:
        """See :meth:`Backbone.build_encoder`."""
        architecture = self.architecture
        return Encoder(
            self.sizes.n_genes,
            self.codes.table.shape[1],
            self.sizes.n_covariate,
            architecture.n_latent,
            architecture.n_hidden,
            architecture.n_layers,
            dropout=architecture.dropout,
        )

    def build_decoder(self, n_heads: int) -> EffectDecoder:
        """See :meth:`Backbone.build_decoder`."""
        sizes, architecture = self.sizes, self.architecture
        return EffectDecoder(
            architecture.n_latent,
            self.codes.table.shape[1],
            sizes.n_covariate if architecture.decoder_covariates else sizes.n_batches,
            sizes.n_genes,
            n_heads,
            architecture.n_hidden,
            architecture.n_layers,
            interaction=architecture.interaction,
            n_members=sizes.doses.shape[1],
            n_batches=sizes.n_batches,
            order=int((sizes.doses > 0).sum(axis=1).max()),
        )

    def growth(self, old: Self) -> dict[str, Growth]:
        """See :meth:`Backbone.growth`.

        Weights of hidden layers for what is new start at the mean of the known ones. Effects of
        what is new start at zero, with the prior of the others.
        """
        before, after = old._widths(), self._widths()
        covariates = [part for part in after if part.startswith("covariate")]
        covariates += ["continuous", "batch"]
        own = covariates if self.architecture.decoder_covariates else ["batch"]

        def columns(*parts: str) -> Columns:
            return lay_out([(before[part], after[part]) for part in parts])

        first = "fc_layers.Layer 0.0.weight"
        effects = self._effect_columns(old)
        return {
            f"encoder.body.{first}": Growth(columns("genes", "members", "beyond", *covariates)),
            f"decoder.baseline.{first}": Growth(columns("latent", *own)),
            f"decoder.interaction.{first}": Growth(columns("latent", "members")),
            "response.log_ec50": Growth(columns("members")),
            "response.log_slope": Growth(columns("members")),
            "decoder.effects.weight": Growth(effects, fill="zero"),
            "decoder.prior_variance": Growth(effects),
        }

    def _widths(self) -> dict[str, int]:
        """Columns of each part of the networks' inputs."""
        sizes = self.sizes
        n_members = sizes.doses.shape[1]
        return {
            "genes": sizes.n_genes,
            "latent": self.architecture.n_latent,
            "members": n_members,
            "beyond": self.codes.table.shape[1] - n_members,
            "continuous": sizes.n_continuous,
            "batch": sizes.n_batches,
            **{f"covariate {i}": n for i, n in enumerate(sizes.n_levels)},
        }

    def _effect_widths(self) -> list[int]:
        """Widths of the covariates that effects depend on."""
        if not self.architecture.decoder_covariates:
            return []
        return [*self.sizes.n_levels, self.sizes.n_continuous]

    def _effect_columns(self, old: Self) -> Columns:
        """Columns of the blocks m, a, s, e and r of the mixed model; e is members × covariates."""
        before, after = old._widths(), self._widths()
        covariates = lay_out(list(zip(old._effect_widths(), self._effect_widths(), strict=True)))
        n_covariate = sum(self._effect_widths())
        members = np.arange(before["members"])
        x = np.concatenate([members[:0], *(new[: len(own)] for own, new in covariates)])
        crossed = (members[:, None] * n_covariate + x).ravel()
        beyond = np.arange(before["beyond"])
        # Place of each old column in its block.
        kept = [np.arange(1), members, x, crossed, beyond]
        widths = effect_blocks(after["members"], n_covariate, after["beyond"])
        columns, n_before, n_after = [], 0, 0
        for positions, width in zip(kept, widths, strict=True):
            places = np.concatenate([positions, np.setdiff1d(np.arange(width), positions)])
            columns.append((n_before + np.arange(len(positions)), n_after + places))
            n_before, n_after = n_before + len(positions), n_after + width
        return columns
