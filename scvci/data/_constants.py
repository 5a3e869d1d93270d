"""Names under which the package's own tensors travel from AnnData to the module."""

from __future__ import annotations

from typing import Final

#: Index of the treatment a cell received, shape ``(n_cells, 1)``.
TREATMENT_KEY: Final = "treatment"
#: Level codes of the categorical covariates, shape ``(n_cells, n_covariates)``.
COVARIATES_KEY: Final = "covariates"
#: Values of the continuous covariates, shape ``(n_cells, n_continuous)``.
CONTINUOUS_KEY: Final = "continuous_covariates"
#: Code of a cell's technical batch, shape ``(n_cells, 1)``.
BATCH_KEY: Final = "batch"
#: Code of the batch in which the counterfactual is decoded, shape ``(n_cells, 1)``.
TARGET_BATCH_KEY: Final = "target_batch"
#: Size factor of a cell, shape ``(n_cells, 1)``.
SIZE_FACTOR_KEY: Final = "size_factor"
#: Index of the stratum (observed combination of covariate levels), shape ``(n_cells, 1)``.
STRATUM_KEY: Final = "stratum"
#: Index of the target treatment t′ drawn for a cell, shape ``(n_cells, 1)``.
TARGET_KEY: Final = "target_treatment"
#: Whether real cells of (x, t′) exist, shape ``(n_cells, 1)``.
SUPPORTED_KEY: Final = "target_supported"
#: Mean of the real cells of (x, t′) on the reference scale, shape ``(n_cells, n_genes)``.
REFERENCE_MEAN_KEY: Final = "reference_mean"
#: Variance of the real cells of (x, t′) on the reference scale, shape ``(n_cells, n_genes)``.
REFERENCE_VAR_KEY: Final = "reference_var"
#: Real cells drawn from (x, t′), shape ``(n_cells, n_reference, n_genes)``.
REFERENCE_KEY: Final = "reference_cells"
