"""A simulated imaging screen with known counterfactuals: a marker that drugs move and brighten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import expit, logit, softmax

from scvci._names import unknown_name_message

if TYPE_CHECKING:
    from collections.abc import Sequence

_DRUGS = ("control", "importer", "inducer", "dual")
_LINES = ("A549", "U2OS")
#: Change of the log-odds of the nuclear fraction at a dose without end, for each drug.
_IMPORT = np.array([0.0, 3.0, 0.0, 2.0])
#: Relative gain of marker at a dose without end, for each drug.
_INDUCTION = np.array([0.0, 0.0, 0.6, 0.4])
#: Dose of half the response, for each cell line.
_EC50 = np.array([0.5, 0.8])
#: Log-odds by which a cell line receives each drug, times ``confounding``.
_PREFERENCE = np.array([[0.5, 0.0, 0.0, -0.5], [-0.5, 0.0, 0.0, 0.5]])
#: Mean radius of the nucleus as a share of the side, for each cell line.
_RADIUS = np.array([0.15, 0.185])
#: Mean ratio of the long to the short axis, for each cell line.
_ELONGATION = np.array([1.6, 1.1])
#: Width of a border as a share of the side.
_BORDER = 0.02
_SMALLEST_SIDE = 12


def simulate_imaging_screen(
    n_cells: int = 3000,
    side: int = 24,
    *,
    doses: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
    confounding: float = 1.0,
    drug: str | Sequence[str] | np.ndarray | None = None,
    dose: float | Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
) -> AnnData:
    r"""Simulate images of cells in a translocation screen, whose counterfactuals are known.

    A nucleus with mask N lies in a cell with mask C, and K = C − N is the cytoplasm; masks are
    ellipses with soft borders and values on [0, 1]. With drug t at dose d, in cell line x,

    .. math::

        r &= d / (d + \mathrm{EC50}_x), \quad
            f = \mathrm{expit}(\mathrm{logit} f_0 + a_t r), \quad
            m = m_0 (1 + b_t r) \\
        \text{DNA} &= c N, \quad
            \text{marker} = m \sum C \left( f \frac{N}{\sum N} + (1 - f) \frac{K}{\sum K} \right)

    so that the sum of the marker is :math:`m \sum C` wherever it lies. ``importer`` moves the
    marker to the nucleus, ``inducer`` makes more of it, ``dual`` does both, more weakly;
    ``control`` does nothing. What a cell has of its own is the same under every treatment: place,
    shapes, orientation, the brightness c of its DNA, its marker m₀ and basal nuclear fraction f₀.
    Who receives which drug depends on the cell line and, given it, on nothing else; the lines
    differ in shape, basal nuclear fraction and EC50.

    Parameters
    ----------
    n_cells
        Number of cells.
    side
        Height and width of the images, in pixels.
    doses
        Doses of the screen, in arbitrary units, equally frequent among cells with a drug. Control
        cells have dose 0.
    confounding
        How much the share of a drug depends on the cell line; 0 for equal shares.
    drug, dose
        Treatment in place of what the cells received, the same for all or one for each cell. With
        the ``seed`` of the screen this gives its true counterfactuals. A cell keeps what is not
        given, so that a control cell with a drug but without a ``dose`` stays at dose 0; and the
        control has dose 0 whatever is given.
    seed
        Seed of everything.

    Returns
    -------
    ``obsm["image"]``: DNA and marker, shape ``(n_cells, 2, side, side)``, float32 on [0, 1];
    ``obs["drug"]``, ``obs["dose"]`` and ``obs["cell_line"]``; ``obs["nuclear_fraction"]`` (f) and
    ``obs["marker"]`` (m) under that treatment; ``obsm["latent"]``: a data frame of what is the
    cell's own, lengths in pixels and angles in radians; ``uns["simulation"]``: parameters.

    Raises
    ------
    ValueError
        If a size, a drug or a dose makes no sense.

    Examples
    --------
    >>> adata = scvci.datasets.simulate_imaging_screen(seed=1)
    >>> truth = scvci.datasets.simulate_imaging_screen(seed=1, drug="importer", dose=2.0)
    >>> truth.obsm["image"].shape
    (3000, 2, 24, 24)
    """
    if n_cells < 1:
        raise ValueError(f"n_cells={n_cells} must be at least 1.")
    if side < _SMALLEST_SIDE:
        raise ValueError(f"side={side} must be at least {_SMALLEST_SIDE}.")
    offered = np.asarray(doses, dtype=float)
    if offered.ndim != 1 or not offered.size or not (np.isfinite(offered) & (offered > 0)).all():
        raise ValueError(f"doses={doses!r} must be one or more positive numbers.")
    rng = np.random.default_rng(seed)
    line = rng.integers(len(_LINES), size=n_cells)
    cumulative = np.cumsum(softmax(confounding * _PREFERENCE, axis=1), axis=1)
    drug_code = (rng.random((n_cells, 1)) >= cumulative[line, :-1]).sum(axis=1)
    dose_value = rng.choice(offered, n_cells)
    latent = _draw_cells(rng, line, side)
    # Cells are drawn with the treatment that they received, whatever is asked for.
    dose_value[drug_code == 0] = 0
    if drug is not None:
        drug_code = _drug_codes(drug, n_cells)
    if dose is not None:
        dose_value = _dose_values(dose, n_cells)
    dose_value = np.where(drug_code == 0, 0.0, dose_value)
    response = dose_value / (dose_value + _EC50[line])
    basal = logit(latent["basal_nuclear_fraction"].to_numpy())
    fraction = expit(basal + _IMPORT[drug_code] * response)
    marker = latent["basal_marker"].to_numpy() * (1 + _INDUCTION[drug_code] * response)
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical.from_codes(drug_code, list(_DRUGS)),
            "dose": dose_value,
            "cell_line": pd.Categorical.from_codes(line, list(_LINES)),
            "nuclear_fraction": fraction,
            "marker": marker,
        },
        index=latent.index,
    )
    adata = AnnData(
        obs=obs, obsm={"latent": latent, "image": _draw(latent, fraction, marker, side)}
    )
    adata.uns["simulation"] = {
        "doses": offered,
        "confounding": confounding,
        "seed": seed,
        "treatments": list(_DRUGS),
        "strata": list(_LINES),
        "control": _DRUGS[0],
        "channels": ["DNA", "marker"],
    }
    return adata


def _draw_cells(rng: np.random.Generator, line: np.ndarray, side: int) -> pd.DataFrame:
    """Draw what is the cell's own."""
    n = len(line)
    elongation = _ELONGATION[line] * rng.uniform(0.85, 1.15, n)
    columns = {
        "row": side * rng.uniform(0.46, 0.54, n) - 0.5,
        "column": side * rng.uniform(0.46, 0.54, n) - 0.5,
        "angle": rng.uniform(0, np.pi, n),
        "nucleus_radius": side * _RADIUS[line] * rng.uniform(0.85, 1.15, n),
        "nucleus_elongation": np.sqrt(elongation),
        "cell_scale": rng.uniform(1.5, 1.7, n),
        "cell_elongation": elongation,
        "dna": rng.uniform(0.6, 1.0, n),
        "basal_marker": rng.uniform(0.12, 0.26, n),
        "basal_nuclear_fraction": expit(rng.normal([-1.6, -1.1], 0.4, (n, 2))[np.arange(n), line]),
    }
    return pd.DataFrame(columns, index=[f"cell{i}" for i in range(n)])


def _drug_codes(drug: str | Sequence[str] | np.ndarray, n_cells: int) -> np.ndarray:
    """Drugs of all cells by index."""
    names = np.asarray([drug] if isinstance(drug, str) else drug, dtype=str)
    if names.shape not in ((1,), (n_cells,)):
        raise ValueError(f"drug= must be one name, or one for each of {n_cells} cells.")
    for name in np.unique(names):
        if name not in _DRUGS:
            raise ValueError(unknown_name_message("Drug", str(name), list(_DRUGS)))
    position = {name: i for i, name in enumerate(_DRUGS)}
    return np.broadcast_to([position[str(name)] for name in names], n_cells)


def _dose_values(dose: float | Sequence[float] | np.ndarray, n_cells: int) -> np.ndarray:
    """Doses of all cells."""
    values = np.atleast_1d(np.asarray(dose, dtype=float))
    if values.shape not in ((1,), (n_cells,)):
        raise ValueError(f"dose= must be one number, or one for each of {n_cells} cells.")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise ValueError(f"dose must be finite and at least 0; got {values[wrong][0]:g}.")
    return np.broadcast_to(values, n_cells)


def _draw(latent: pd.DataFrame, fraction: np.ndarray, marker: np.ndarray, side: int) -> np.ndarray:
    """Images of DNA and marker, shape ``(n_cells, 2, side, side)``."""
    own = {name: values.to_numpy(np.float32)[:, None, None] for name, values in latent.items()}
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    down, right = rows - own["row"], columns - own["column"]
    cos, sin = np.cos(own["angle"]), np.sin(own["angle"])
    along, across = cos * right + sin * down, cos * down - sin * right

    def mask(radius: np.ndarray, elongation: np.ndarray) -> np.ndarray:
        """Soft ellipse; its area does not depend on the elongation."""
        stretch = np.sqrt(elongation)
        distance = np.sqrt((along / stretch) ** 2 + (across * stretch) ** 2)
        return expit((radius - distance) / np.float32(_BORDER * side))

    nucleus = mask(own["nucleus_radius"], own["nucleus_elongation"])
    cell = mask(own["nucleus_radius"] * own["cell_scale"], own["cell_elongation"])
    # The nucleus lies within the cell.
    cytoplasm = np.maximum(cell - nucleus, 0)
    n_pixels, k_pixels = (m.sum(axis=(1, 2), keepdims=True) for m in (nucleus, cytoplasm))
    f, total = (v.astype(np.float32)[:, None, None] for v in (fraction, marker))
    total = total * (n_pixels + k_pixels)
    stained = total * (f * nucleus / n_pixels + (1 - f) * cytoplasm / k_pixels)
    return np.stack([own["dna"] * nucleus, stained], axis=1)
