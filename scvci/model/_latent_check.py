"""Check that something individual is left in the latent state."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS

from scvci.data import _constants as keys
from scvci.module import latent_divergence

if TYPE_CHECKING:
    from scvci.data import Cells
    from scvci.data._statistics import PairMoments
    from scvci.module import VCIModule

    from ._calibration import Calibration

_MAX_CELLS = 1000


@torch.inference_mode()
def individual_information(
    module: VCIModule,
    calibration: Calibration,
    cells: Cells,
    moments: PairMoments,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """How much better cells are reconstructed than by the mean of their (stratum, treatment).

    Returns
    -------
    Share of the squared deviation from the pair's mean that reconstructions explain (0: none,
    they are no better than the means), and the mean divergence to the control world in nats.
    """
    rows = np.sort(rng.choice(cells.rows, min(len(cells.rows), _MAX_CELLS), replace=False))
    tensors = {k: v.to(module.device) for k, v in cells.tensors(rows).items()}
    inputs = module._get_inference_input(tensors)
    qz = module.inference(**inputs, n_samples=0)[MODULE_KEYS.QZ_KEY]
    size = module.reference_size.expand(len(rows), 1)
    stratum = tensors[keys.STRATUM_KEY].squeeze(-1)
    reconstruction = module.generative(
        qz.loc,
        size,
        inputs["treatment"],
        inputs["covariates"],
        shift=calibration.shift_of_cells(module, stratum, inputs["treatment"]),
    )[MODULE_KEYS.PX_KEY].mean
    observed = module.at_reference_size(tensors[REGISTRY_KEYS.X_KEY], inputs["size"])
    pair = moments.pairs.rows(cells.stratum[rows], cells.treatment[rows])
    mean = torch.as_tensor(moments.mean[pair], dtype=torch.float32, device=module.device)
    scale = (mean + 1e-3).sqrt() if module.likelihood.is_count else torch.ones_like(mean)
    error = (((observed - reconstruction) / scale) ** 2).sum()
    total = (((observed - mean) / scale) ** 2).sum()
    constructed = module.counterfactual(tensors, qz)
    again = module.encode(constructed.features, constructed.treatment, constructed.covariates)
    divergence = latent_divergence(qz, again).mean()
    return float(1 - error / total.clamp(min=1e-12)), float(divergence)


def warn_if_uninformative(
    module: VCIModule,
    calibration: Calibration,
    cells: Cells,
    moments: PairMoments,
    rng: np.random.Generator,
) -> None:
    """Warn where reconstructions are no better than means and the divergence is near zero."""
    explained, divergence = individual_information(module, calibration, cells, moments, rng)
    if explained < 0.001 and divergence < 0.05:
        warnings.warn(
            f"The latent state has collapsed: its divergence is {divergence:.3g} nats and "
            f"reconstructions explain {max(explained, 0):.1%} of the differences between cells of "
            "one stratum and treatment. Counterfactuals are therefore group means: usable for "
            "means, without information on single cells. Lower weights={'divergence': ...}, "
            "train longer, or check that the data have differences between cells beyond noise.",
            UserWarning,
            stacklevel=4,
        )
