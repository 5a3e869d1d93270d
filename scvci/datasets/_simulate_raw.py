"""Simulated raw files of the form of sci-Plex 3 and of the Marson screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ._mechanism import draw_baseline, draw_effects

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Products of the real file, odd names included; further ones are numbered.
_PRODUCTS = (
    "(+)-JQ1",
    "Patupilone (EPO906, Epothilone B)",
    "Quisinostat (JNJ-26481585) 2HCl",
    "Dasatinib",
    "Enzastaurin (LY317615)",
    "Divalproex Sodium",
    "Resveratrol",
    "PD173074",
    "Lenalidomide (CC-5013)",
    "Baricitinib (LY3009104, INCB028050)",
)
#: Targets of the real file; further ones are numbered.
_TARGETS = ("GATA3", "TBX21", "EOMES", "CD247", "MAP4K1", "PLCG2", "VAV1", "IL2RB", "LHX6", "CD27")
_MITOCHONDRIAL = (
    *("MT-ATP6", "MT-ATP8", "MT-CO1", "MT-CO2", "MT-CO3", "MT-CYB", "MT-ND1", "MT-ND2", "MT-ND3"),
    *("MT-ND4", "MT-ND4L", "MT-ND5", "MT-ND6"),
)
#: Holds "MT-" but is not mitochondrial.
_LOOKALIKE = "COMT-AS1"
#: Share of the counts of a cell of good quality that are mitochondrial, and of a dying one.
_MITOCHONDRIAL_SHARE = (0.06, 0.45)
#: Depth of a shallow cell, as a share of that of the others.
_SHALLOW = 0.08
_LATENT = 4
#: Latent states of a stratum; cells of one have the same rates but for their treatment.
_STATES = 4
_RESPONDING = 1000
#: Effects of treatments that are not strong, as a share of those of strong ones.
_WEAK = 0.15
#: Log-fold change of an activated gene.
_ACTIVATION = 2.5

#: Molecules per cell and gene above which counts are drawn gene by gene.
_DENSE = 0.1

#: Cells of good quality, shallow, dying and empty ones.
_QUALITIES = 4
_DYING = 2


@dataclass(frozen=True)
class _Cells:
    """What counts depend on; codes of each cell, all of shape ``(n_cells,)``.

    Treatment 0 is the control; ``scale`` is the share of the effect at the cell's dose.
    """

    treatment: np.ndarray
    scale: np.ndarray
    stratum: np.ndarray
    quality: np.ndarray

    def part(self, rows: slice) -> _Cells:
        return _Cells(
            self.treatment[rows], self.scale[rows], self.stratum[rows], self.quality[rows]
        )


def simulate_sciplex_raw(
    n_cells: int = 6000,
    n_genes: int = 1500,
    *,
    n_drugs: int = 12,
    n_strong: int = 3,
    n_chunks: int = 5,
    low_quality: float = 0.3,
    depth: float = 4000.0,
    effect_size: float = 1.0,
    seed: int = 0,
) -> list[AnnData]:
    """Simulate the raw chunks of sci-Plex 3: same columns and kinds of names, planted effects.

    Three cell lines × two replicates, drugs at 10, 100, 1,000 and 10,000 nM, a tenth of the cells
    with vehicle. A few drugs are strong. Cells of low quality are shallow, dying (mitochondrial)
    or empty, so that the filters of :func:`prepare_sciplex` drop them. With its default sizes,
    those of the files, 188 drugs and ``n_genes=58_347`` it makes files of full size; with
    ``n_genes=2000``, ``low_quality=0`` and a filter that keeps all cells, prepared data of full
    size. Names of real drugs are there for their form: their effects are simulated.

    Parameters
    ----------
    n_cells, n_genes
        Sizes.
    n_drugs
        Number of drugs beside the vehicle.
    n_strong
        How many of them are strong; those named first.
    n_chunks
        Number of chunks; cells of one line follow each other, as in the real files.
    low_quality
        Share of cells of low quality.
    depth
        Median counts of a cell of good quality.
    effect_size
        Scale of the log-fold changes.
    seed
        Seed of everything.

    Returns
    -------
    The chunks, counts as CSR float32 in ``X``. ``uns["simulation"]`` of each: arguments, and
    ``strong``, the first words of the names of strong drugs.

    Raises
    ------
    ValueError
        If a size or a share makes no sense.
    """
    _check(n_cells, n_genes, low_quality, n_drugs, n_strong, "n_drugs")
    if not 1 <= n_chunks <= n_cells:
        raise ValueError(f"n_chunks={n_chunks} must be from 1 to n_cells={n_cells}.")
    rng, count_rng = np.random.default_rng(seed).spawn(2)
    products = ["Vehicle", *_numbered(_PRODUCTS, n_drugs, "Compound-{0:03d} (SIM{0:03d})")]
    drug = np.where(rng.random(n_cells) < 0.1, 0, rng.integers(1, n_drugs + 1, n_cells))
    nanomolar = np.where(drug == 0, 0.0, 10.0 ** rng.integers(1, 5, n_cells))
    line = np.sort(rng.choice(3, n_cells, p=(0.25, 0.5, 0.25)))
    replicate = rng.integers(2, size=n_cells)
    half_maximal = 10.0 ** np.r_[0.0, rng.uniform(1, 3, n_drugs)]
    cells = _Cells(
        drug,
        nanomolar / (nanomolar + half_maximal[drug]),
        2 * line + replicate,
        _draw_quality(rng, n_cells, low_quality),
    )
    screen = _Screen(rng, n_genes, 6, n_drugs, n_strong, effect_size, depth)
    obs = _sciplex_obs(rng, np.array(products)[drug], nanomolar, line, replicate)
    var = pd.DataFrame(
        {
            "id": [f"ENSG{i:011d}.1" for i in range(n_genes)],
            "num_cells_expressed-0-0": rng.integers(n_cells, size=n_genes),
        },
        index=pd.Index(screen.genes, name="index"),
    )
    simulation = {
        "n_drugs": n_drugs,
        "strong": [product.split(" ")[0] for product in products[1 : n_strong + 1]],
        "effect_size": effect_size,
        "depth": depth,
        "seed": seed,
    }
    chunks = []
    for rows in np.array_split(np.arange(n_cells), n_chunks):
        part = slice(rows[0], rows[-1] + 1)
        counts = screen.draw(count_rng, cells.part(part))
        chunks.append(
            AnnData(counts, obs=obs.iloc[part], var=var, uns={"simulation": dict(simulation)})
        )
    return chunks


def simulate_marson_raw(
    n_cells: int = 4000,
    n_genes: int = 1500,
    *,
    n_targets: int = 10,
    n_strong: int = 3,
    unassigned: float = 0.24,
    low_quality: float = 0.1,
    depth: float = 6000.0,
    effect_size: float = 1.0,
    seed: int = 0,
) -> AnnData:
    """Simulate the raw file of the Marson screen: same columns and names, planted effects.

    CD4 and CD8 cells × two donors × resting or re-stimulated; a twelfth of the cells have
    non-targeting guides. Every target's own gene goes up (the screen activates genes); a few
    targets change other genes strongly as well. Some cells have no recorded counts, no donor or no
    assigned type; others are shallow or dying, so that :func:`prepare_marson` drops them. With
    ``n_cells=56_081``, ``n_genes=17_344`` and 69 targets it makes a file of full size.

    Parameters
    ----------
    n_cells, n_genes
        Sizes.
    n_targets
        Number of targeted genes.
    n_strong
        How many of them change other genes strongly; those named first.
    unassigned
        Share of cells of unassigned type.
    low_quality
        Share of cells of low quality; half as many have no recorded counts, and two no donor.
    depth
        Median counts of a cell of good quality.
    effect_size
        Scale of the log-fold changes.
    seed
        Seed of everything.

    Returns
    -------
    Counts as CSR float32 in ``X``; ``uns["simulation"]``: arguments, and ``strong``, the names of
    strong targets.

    Raises
    ------
    ValueError
        If a size or a share makes no sense.
    """
    _check(n_cells, n_genes, low_quality, n_targets, n_strong, "n_targets")
    if not 0 <= unassigned < 1:
        raise ValueError(f"unassigned={unassigned} must be in [0, 1); it is a share.")
    rng, count_rng = np.random.default_rng(seed).spawn(2)
    targets = _numbered(_TARGETS, n_targets, "TARGET{0:03d}")
    target = np.where(rng.random(n_cells) < 1 / 12, 0, rng.integers(1, n_targets + 1, n_cells))
    stratum = rng.integers(8, size=n_cells)
    quality = _draw_quality(rng, n_cells, low_quality)
    screen = _Screen(rng, n_genes, 8, n_targets, n_strong, effect_size, depth, targets)
    counts = screen.draw(count_rng, _Cells(target, np.ones(n_cells), stratum, quality))
    obs = _marson_obs(rng, np.array(["NTC", *targets])[target], stratum, counts)
    absent = rng.random(n_cells) < low_quality / 2
    obs.loc[absent, ["cluser_name", "celltype", "donor", "stim"]] = ""
    obs.loc[absent, "nCount_RNA"] = 0.0
    obs.loc[~absent & (rng.random(n_cells) < unassigned), "celltype"] = "Unassigned"
    obs.loc[obs.index[np.flatnonzero(~absent)[:2]], "donor"] = "Unassigned"
    stimulation = obs["stim"].str.replace("-", "").str.lower()
    obs["stim_celltype"] = stimulation + "_" + obs["celltype"].str.lower()
    obs["totally_qualified"] = obs["celltype"].isin(["CD4", "CD8"])
    var = pd.DataFrame(
        {
            "ENSGNM": [f"ENSG{i:011d}" for i in range(n_genes)],
            "name": screen.genes,
            "is_sgRNA": False,
        },
        index=[str(3 * i) for i in range(n_genes)],
    )
    simulation = {
        "n_targets": n_targets,
        "strong": targets[:n_strong],
        "effect_size": effect_size,
        "depth": depth,
        "seed": seed,
    }
    return AnnData(counts, obs=obs, var=var, uns={"simulation": simulation})


def _check(
    n_cells: int, n_genes: int, low_quality: float, n: int, n_strong: int, name: str
) -> None:
    least = len(_MITOCHONDRIAL) + 1 + n
    if n_cells < 1 or n < 1:
        raise ValueError(f"n_cells={n_cells} and {name}={n} must be at least 1.")
    if n_genes < least:
        raise ValueError(f"n_genes={n_genes} must be at least {least}, with mitochondrial genes.")
    if not 0 <= n_strong <= n:
        raise ValueError(f"n_strong={n_strong} must be from 0 to {name}={n}.")
    if not 0 <= low_quality < 1:
        raise ValueError(f"low_quality={low_quality} must be in [0, 1); it is a share.")


def _numbered(first: Sequence[str], n: int, pattern: str) -> list[str]:
    return [*first[:n], *(pattern.format(i + 1) for i in range(len(first), n))]


def _draw_quality(rng: np.random.Generator, n_cells: int, low_quality: float) -> np.ndarray:
    low = np.array([0.6, 0.35, 0.05]) * low_quality
    return rng.choice(_QUALITIES, n_cells, p=[1 - low_quality, *low])


class _Screen:
    """Rates of all genes in a screen, by treatment, stratum and latent state."""

    def __init__(
        self,
        rng: np.random.Generator,
        n_genes: int,
        n_strata: int,
        n_treatments: int,
        n_strong: int,
        effect_size: float,
        depth: float,
        targets: Sequence[str] = (),
    ) -> None:
        named = [*_MITOCHONDRIAL, _LOOKALIKE, *targets]
        self.genes = [*named, *(f"GENE{i:05d}" for i in range(len(named), n_genes))]
        self.depth = depth
        self.n_mitochondrial = len(_MITOCHONDRIAL)
        baseline = draw_baseline(rng, n_genes, n_strata, _LATENT)
        nodes = rng.normal(size=(_STATES, _LATENT))
        # Targeted genes come first among those that respond.
        n_responding = min(n_genes - self.n_mitochondrial - 1, _RESPONDING)
        first = self.n_mitochondrial + 1
        self._responding = np.arange(first, first + n_responding)
        self._effects = draw_effects(
            rng,
            (n_responding, n_strata, n_treatments + 1, _LATENT),
            effect_size,
            heterogeneity=1.0,
            stratum_interaction=0.25,
        )
        for t in range(n_strong + 1, n_treatments + 1):
            self._effects.additive[t] *= _WEAK
            self._effects.interaction[t] *= _WEAK
            self._effects.by_stratum[:, t] *= _WEAK
        self._own = np.zeros((n_treatments + 1, n_responding))
        for t in range(len(targets)):
            self._own[t + 1, t] = _ACTIVATION
        self._latent = baseline.latent_mean[:, None] + nodes
        self._base = np.exp(
            [baseline.log_rate(z, np.full(_STATES, x)) for x, z in enumerate(self._latent)]
        )

    def draw(self, rng: np.random.Generator, cells: _Cells) -> sparse.csr_matrix:
        """Draw the counts of some cells.

        Cells that share all rates are drawn together.

        Parameters
        ----------
        rng
            Source of randomness.
        cells
            What the counts depend on.
        """
        n = len(cells.treatment)
        state = rng.integers(_STATES, size=n)
        expected = self.depth * np.exp(rng.normal(0, 0.35, size=n))
        expected *= np.array([1.0, _SHALLOW, 1.0, 0.0])[cells.quality]
        dying = cells.quality == _DYING
        keys = np.c_[cells.treatment, cells.stratum, state, dying, cells.scale]
        groups, group = np.unique(keys, axis=0, return_inverse=True)
        rows = np.argsort(group.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(group.ravel(), minlength=len(groups)))
        blocks = []
        for key, members in zip(groups, np.split(rows, ends[:-1]), strict=True):
            t, x, k, is_dying = key[:4].astype(int)
            rates = self._rates(t, x, k, bool(is_dying), key[4])
            blocks.append(_draw_poisson(rng, rates, expected[members]))
        return sparse.vstack(blocks, format="csr")[np.argsort(rows)]

    def _rates(self, t: int, x: int, k: int, dying: bool, scale: float) -> np.ndarray:
        """Share of each gene in the counts; they sum to 1."""
        rates = self._base[x, k].copy()
        if t > 0:
            change = self._own[[t]].copy()
            self._effects.add_to(change, self._latent[x, [k]], np.array([x]), t, scale=scale)
            rates[self._responding] *= np.exp(change[0])
        share = _MITOCHONDRIAL_SHARE[int(dying)]
        mitochondrial, nuclear = rates[: self.n_mitochondrial], rates[self.n_mitochondrial :]
        mitochondrial *= share / mitochondrial.sum()
        nuclear *= (1 - share) / nuclear.sum()
        return rates


def _draw_poisson(
    rng: np.random.Generator, rates: np.ndarray, expected: np.ndarray
) -> sparse.csr_matrix:
    """Draw independent Poisson counts of cells with the same rates.

    Where molecules are few, they are dealt out to genes, without a value for every cell and gene.

    Parameters
    ----------
    rng
        Source of randomness.
    rates
        Share of each gene, shape ``(n_genes,)``; sums to 1.
    expected
        Expected total of each cell, shape ``(n_cells,)``.
    """
    n_cells, n_genes = len(expected), len(rates)
    if expected.mean() > _DENSE * n_genes:
        return sparse.csr_matrix(rng.poisson(np.outer(expected, rates)).astype(np.float32))
    totals = rng.poisson(expected)
    cell = np.repeat(np.arange(n_cells), totals)
    # Sorted within cells, so that molecules of a gene follow each other.
    place = np.sort(cell + rng.random(len(cell))) - cell
    gene = np.minimum(np.searchsorted(np.cumsum(rates), place, side="right"), n_genes - 1)
    is_new = np.r_[True, (np.diff(gene) != 0) | (np.diff(cell) != 0)][: len(gene)]
    first = np.flatnonzero(is_new)
    counts = np.diff(np.r_[first, len(gene)]).astype(np.float32)
    ends = np.cumsum(np.bincount(cell[first], minlength=n_cells))
    return sparse.csr_matrix((counts, gene[first], np.r_[0, ends]), shape=(n_cells, n_genes))


def _sciplex_obs(
    rng: np.random.Generator,
    product: np.ndarray,
    nanomolar: np.ndarray,
    line: np.ndarray,
    replicate: np.ndarray,
) -> pd.DataFrame:
    """Columns of the real chunks."""
    n = len(product)
    vehicle = product == "Vehicle"
    dose = nanomolar.astype(int).astype(str)
    suffix = np.array(["-0-0", "-1-0", "-1"])[line]
    names = [
        f"{'ABCDEFGH'[i % 8]}{i // 8 % 12 + 1:02d}_E09"
        f"_RT_BC_{i // 96 % 384 + 1}_Lig_BC_{i // 36864 + 1}"
        for i in range(n)
    ]
    texts = {
        "cell_type": np.array(["A549", "MCF7", "K562"])[line],
        "dose": nanomolar,
        "dose_character": dose,
        "dose_pattern": rng.integers(1, 5, n).astype(str),
        "g1s_score": rng.gamma(2.0, size=n),
        "g2m_score": rng.gamma(2.0, size=n),
        "pathway": np.where(vehicle, "Vehicle", "Epigenetics"),
        "pathway_level_1": np.where(vehicle, "Vehicle", "Epigenetic regulation"),
        "pathway_level_2": np.where(vehicle, "Vehicle", "Histone deacetylation"),
        "product_dose": [f"{p}_{d}" for p, d in zip(product, dose, strict=True)],
        "product_name": product,
        "proliferation_index": rng.gamma(2.0, size=n),
        "replicate": np.array(["rep1", "rep2"])[replicate],
        "size_factor": rng.gamma(2.0, size=n),
        "target": np.where(vehicle, "Vehicle", "HDAC"),
        "vehicle": vehicle.astype(int),
    }
    index = pd.Index([name + s for name, s in zip(names, suffix, strict=True)], name="index")
    obs = pd.DataFrame(texts, index=index)
    return obs.astype({c: "category" for c in obs if obs[c].dtype.kind not in "fi"})


def _marson_obs(
    rng: np.random.Generator, target: np.ndarray, stratum: np.ndarray, counts: sparse.csr_matrix
) -> pd.DataFrame:
    """Columns of the real file, for cells of known type and donor."""
    n = len(target)
    control = target == "NTC"
    guide = np.where(control, rng.integers(1, 9, n), rng.integers(1, 3, n)).astype(str)
    stem = np.where(control, "NO-TARGET", target)
    return pd.DataFrame(
        {
            "barcode": [f"SIMULATED{i:06d}-{i % 8 + 1}" for i in range(n)],
            "nCount_RNA": counts.sum(axis=1).A1.astype(float) + 1,
            "cluser_name": "6: CD4 Common",
            "celltype": np.array(["CD4", "CD8"])[stratum // 4],
            "donor": np.array(["Donor1", "Donor2"])[stratum // 2 % 2],
            "stim": np.array(["Resting", "Re-stimulated"])[stratum % 2],
            "totally_qualified": True,
            "unabiguous_sgRNA": True,
            "sgRNA": [f"{s}-{g}" for s, g in zip(stem, guide, strict=True)],
            "ntc": control,
            "target": target,
            "stim_celltype": "",
        },
        index=[str(2 * i) for i in range(n)],
    )
