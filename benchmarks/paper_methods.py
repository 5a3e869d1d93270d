"""Who predicts in the paper's expression experiments: the model's presets and baselines."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import Callback

from scvci.metrics import BASELINES
from scvci.model import VCI

if TYPE_CHECKING:
    from anndata import AnnData
    from paper_rules import Arm, Experiment

#: Settings of the models by name; what is not named is the preset's.
MODELS: dict[str, dict] = {
    "VCI": {},
    "VCI paper": {"preset": "paper"},
    "conditional VAE": {
        "objective": {"prior": "standard"},
        "weights": {"covariate": 0.0, "divergence": 1.0},
    },
    "conditional VAE paper": {
        "preset": "paper",
        "objective": {"prior": "standard"},
        "weights": {"covariate": 0.0},
    },
}
#: Draws behind a mean of counts, over cells and draws of a cell.
_LEAST_DRAWS = 2000
#: Pairs beyond which the low-rank linear model, which fits each anew, takes too long.
_MOST_PAIRS = 1000
_SIZE_KEY = "size_of_cell"


class Timer(Callback):
    """CPU seconds, which other work on the machine does not change, of the steps of training."""

    def __init__(self) -> None:
        self.created, self.epochs = time.process_time(), []
        self.steps = 0

    def on_train_start(self, *args: object) -> None:
        """Note the time."""
        self.started = time.process_time()

    def on_train_epoch_end(self, *args: object) -> None:
        """Note the time."""
        self.epochs.append(time.process_time())

    def on_train_batch_end(self, *args: object) -> None:
        """Count the step."""
        self.steps += 1

    def seconds(self) -> dict[str, float]:
        """Before training, per step and epoch (with its validation), and since the last."""
        last = self.epochs[-1]
        return {
            "before": self.started - self.created,
            "step": (last - self.started) / self.steps,
            "epoch": (last - self.started) / len(self.epochs),
            "after": time.process_time() - last,
        }


class Model:
    """The model with one of its presets, trained on the training cells.

    A count model is trained on counts. Its mean of log-normalised cells is that of counts drawn
    from it and normalised as the data are: logs of expectations would be another quantity.

    Parameters
    ----------
    name
        Of :data:`MODELS`.
    experiment
        What is predicted.
    seed, epochs
        Seed, and most epochs (``None``: the preset's).
    **trainer
        Passed to ``train``.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        seed: int = 0,
        epochs: int | None = None,
        **trainer: object,
    ) -> None:
        settings = MODELS[name]
        self.name = name
        self.counts = settings.get("preset") != "paper"
        # Neither the paper's model nor a conditional VAE is calibrated.
        self.calibrated = name == "VCI"
        self.sizes = _sizes(experiment.adata) if self.counts else None
        cells = self._prepared(experiment.adata[experiment.rows("train")])
        # One dose is none: the column then tells arms no more apart than the treatment does.
        doses = experiment.obs.loc[experiment.obs["treatment"] != experiment.control, "dose"]
        timer = Timer()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
            VCI.setup_anndata(
                cells,
                layer="counts" if self.counts else None,
                control=experiment.control,
                categorical_covariate_keys=experiment.covariates,
                dose_key="dose" if doses.nunique() > 1 else None,
                size_factor_key=_SIZE_KEY if self.counts and self._by_size else None,
            )
            self.model = VCI(cells, seed=seed, **settings)
            self.model.train(epochs, enable_progress_bar=False, callbacks=[timer], **trainer)
        self.has_doses = doses.nunique() > 1
        self.seconds = timer.seconds()
        self.n_epochs = len(timer.epochs)

    def other_calibration(self) -> Model:
        """Return the same trained model, calibrated if this is not, and not if it is."""
        other = copy.copy(self)
        other.calibrated = not self.calibrated
        other.name = f"{self.name} {'calibrated' if other.calibrated else 'uncalibrated'}"
        return other

    @property
    def _by_size(self) -> bool:
        """Whether cells were normalised by other totals than those of the genes at hand."""
        assert self.sizes is not None
        return float(np.ptp(self.sizes["scaled"])) > 1e-2 * float(self.sizes["scaled"].mean())

    def _prepared(self, cells: AnnData) -> AnnData:
        cells = cells.copy()
        if self.sizes is not None:
            cells.obs[_SIZE_KEY] = self.sizes.loc[cells.obs_names, "size"].to_numpy()
        return cells

    def means(self, cells: AnnData, arms: list[Arm]) -> np.ndarray:
        """See :class:`paper_rules.Method`."""
        cells = self._prepared(cells)
        table = pd.DataFrame(arms, columns=["treatment", "dose"])
        wanted = table if self.has_doses else table[["treatment"]]
        unique = wanted.drop_duplicates()
        draws = max(1, round(_LEAST_DRAWS / cells.n_obs)) if self.counts else None
        total: dict[str, np.ndarray] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            blocks = self.model.predict_counterfactual(
                unique, cells, n_samples=draws, calibrated=self.calibrated, output="blocks"
            )
            for block in blocks:
                values = block.values
                if self.sizes is not None:
                    factor = self.sizes.loc[cells.obs_names[block.rows], "factor"].to_numpy()
                    values = np.log1p(values * factor[:, None].astype(np.float32))
                # Over cells, and over draws where there are several.
                mean = values.reshape(-1, len(block.rows), values.shape[-1]).mean(axis=0)
                part = mean.sum(axis=0, dtype=float)
                total[block.treatment] = total.get(block.treatment, 0.0) + part
        if len(total) != len(unique):
            raise ValueError(f"{len(unique)} arms were asked for, {len(total)} predicted.")
        position = {tuple(row): i for i, row in enumerate(unique.itertuples(index=False))}
        means = np.stack(list(total.values())) / cells.n_obs
        return means[[position[tuple(row)] for row in wanted.itertuples(index=False)]]


class Baseline:
    """One of the package's baselines, on the means of the training cells of each pair.

    A dose that was never measured gets the treatment's nearest dose, on the logarithmic scale.
    """

    def __init__(self, name: str, experiment: Experiment) -> None:
        self.name = name
        self.experiment = experiment
        self.arms, table = training_means(experiment)
        if name == "mean of the pair":
            self.table = table
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.table = BASELINES[name](table)

    def means(self, cells: AnnData, arms: list[Arm]) -> np.ndarray:
        """See :class:`paper_rules.Method`."""
        levels = cells.obs[self.experiment.covariates].astype(str).agg(" | ".join, axis=1)
        (stratum,) = set(levels)
        row = self.table[self.experiment.strata.index(stratum)]
        control = self.experiment.control
        return np.stack(
            [row[0] if arm[0] == control else row[self._position(arm)] for arm in arms]
        )

    def _position(self, arm: Arm) -> int:
        """Arm of this treatment whose dose is nearest."""
        same = [i for i, (treatment, _) in enumerate(self.arms) if treatment == arm[0]]
        if not same:
            raise KeyError(f"{arm[0]!r} has no training cells in any stratum.")
        gap = [abs(np.log(max(self.arms[i][1], 1e-12) / max(arm[1], 1e-12))) for i in same]
        return same[int(np.argmin(gap))]


def training_means(experiment: Experiment) -> tuple[list[Arm], np.ndarray]:
    """Arms, the control first, and means of the training cells, (strata, arms, genes)."""
    obs = experiment.obs.iloc[experiment.rows("train")]
    control = obs["treatment"] == experiment.control
    treated = obs[~control]
    arms: list[Arm] = [(experiment.control, 0.0)]
    arms += sorted(set(zip(treated["treatment"], treated["dose"].astype(float), strict=True)))
    strata = experiment.strata
    table = np.full((len(strata), len(arms), experiment.adata.n_vars), np.nan)
    dose = obs["dose"].where(~control, 0.0)
    for key, rows in obs.groupby(["stratum", "treatment", dose]).groups.items():
        x, t, d = key
        table[strata.index(x), arms.index((t, float(d)))] = experiment.mean(np.asarray(rows))
    return arms, table


def baselines(experiment: Experiment) -> list[Baseline]:
    """All baselines that can be computed in reasonable time."""
    arms, table = training_means(experiment)
    names = [*BASELINES, "mean of the pair"]
    n_pairs = int(np.isfinite(table[..., 0]).sum())
    if n_pairs > _MOST_PAIRS:
        print(f"low-rank linear is left out: it fits each of the {n_pairs} pairs anew")
        names.remove("low-rank linear")
    return [Baseline(name, experiment) for name in names]


def _sizes(adata: AnnData) -> pd.DataFrame:
    """Size of each cell, and the factor that its counts were normalised by.

    The preparation divides by totals over all measured genes, of which ``adata`` has some: the
    factor is read off the normalised values. Cells without counts have the median's.
    """
    counts = np.asarray(adata.layers["counts"].sum(axis=1), dtype=float).ravel()
    scaled = adata.X.expm1() if hasattr(adata.X, "expm1") else np.expm1(adata.X)
    scaled = np.asarray(scaled.sum(axis=1), dtype=float).ravel()
    empty = counts == 0
    factor = np.divide(scaled, counts, out=np.ones_like(counts), where=~empty)
    factor[empty] = np.median(factor[~empty])
    scaled[empty] = np.median(scaled[~empty])
    size = np.median(counts[~empty]) * np.median(factor[~empty]) / factor
    return pd.DataFrame({"factor": factor, "size": size, "scaled": scaled}, index=adata.obs_names)
