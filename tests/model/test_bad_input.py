"""What bad input gets: the column, level, gene or count at fault, and an untouched AnnData."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvci import tl
from scvci.model import VCI

KEYS = {"layer": "counts", "categorical_covariate_keys": ["cell_type"]}


def _snapshot(adata):
    return (
        list(adata.obs.columns),
        sorted(adata.obsm),
        sorted(adata.uns),
        sorted(filter(None, adata.layers)),
        adata.layers["counts"].sum() if "counts" in adata.layers else None,
    )


def _refused(adata, error, match, **changes):
    before = _snapshot(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=match) as caught:
            VCI.setup_anndata(adata, **{**KEYS, **changes})
    assert str(_snapshot(adata)) == str(before)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"treatment_key": "drug"}, "'drug'.*cell_type"),
        ({"categorical_covariate_keys": ["tissue"]}, "'tissue'.*treatment"),
        ({"continuous_covariate_keys": ["age"]}, "'age'"),
        ({"size_factor_key": "sf"}, "'sf'"),
        ({"layer": "raw"}, "'raw'.*'counts'"),
    ],
)
def test_missing_keys_say_what_was_looked_for_and_found(adata, changes, match):
    _refused(adata, KeyError, match, **changes)


def test_control_that_is_no_level(adata):
    message = _refused(adata, ValueError, "'DMSO'", control="DMSO")
    assert "'control'" in message


def test_defaults_work_and_otherwise_say_what_is_there(adata):
    VCI.setup_anndata(adata)
    adata.obs = adata.obs.rename(columns={"treatment": "perturbation"})
    with pytest.raises(KeyError, match="'treatment'.*'perturbation'"):
        VCI.setup_anndata(adata)


@pytest.mark.parametrize("key", ["treatment", "cell_type"])
@pytest.mark.parametrize(("value", "what"), [(None, "missing"), ("", "empty")])
def test_missing_and_empty_labels(adata, key, value, what):
    column = adata.obs[key].astype(object).to_numpy(copy=True)
    column[3] = value
    adata.obs[key] = pd.Series(column, index=adata.obs_names, dtype=object)
    message = _refused(adata, ValueError, what)
    assert key in message
    assert adata.obs_names[3] in message


def test_single_treatment(adata):
    adata = adata[adata.obs["treatment"] == "control"].copy()
    _refused(adata, ValueError, "single label 'control'")


@pytest.mark.parametrize(("value", "match"), [(np.nan, "NaN or infinite"), (np.inf, "infinite")])
def test_values_that_are_no_numbers(adata, value, match):
    dense = adata.layers["counts"].toarray()
    dense[7, 5] = value
    adata.layers["counts"] = dense
    message = _refused(adata, ValueError, match)
    assert adata.obs_names[7] in message
    assert adata.var_names[5] in message


@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_what_is_no_count_is_named_under_a_count_likelihood(adata, value):
    dense = adata.layers["counts"].toarray()
    dense[7, 5] = value
    adata.layers["counts"] = dense
    VCI.setup_anndata(adata, **KEYS)
    with pytest.raises(ValueError, match="not counts.*cell7.*Gene0005.*normal"):
        VCI(adata)


def test_what_is_no_logarithm_is_named_under_normal(adata):
    VCI.setup_anndata(adata, **KEYS)
    with pytest.raises(ValueError, match="not logarithms: cell 'cell0', gene 'Gene0000' is 43"):
        VCI(adata, likelihood="normal")
    log = adata.layers["counts"].log1p().toarray()
    adata.layers["counts"] = log - log.mean(axis=0)
    with pytest.raises(ValueError, match="scaled or centred: cell .*, gene "):
        VCI(adata, likelihood="normal")
    adata.layers["counts"] = np.minimum(np.rint(log), 20)
    with pytest.warns(UserWarning, match="whole numbers"):
        VCI(adata, likelihood="normal")


def test_expression_is_checked_wherever_cells_enter(trained):
    model, data = trained
    cells = data.copy()
    cells.layers["counts"] = cells.layers["counts"].log1p()
    match = "not counts: cell 'cell0', gene 'Gene0000'"
    for enter in (
        partial(model.predict_counterfactual, "IFNb"),
        model.get_latent_representation,
        model.get_normalized_expression,
        model.posterior_predictive_sample,
        partial(tl.disentanglement_test, model),
        partial(tl.check_overlap, model=model),
        partial(tl.estimate_effects, model=model),
        partial(VCI.load_query_data, reference_model=model),
    ):
        with pytest.raises(ValueError, match=match):
            enter(adata=cells)
    # Cells that are not in question are not judged.
    cells.layers["counts"] = sparse.vstack(
        [data.layers["counts"][:5], cells.layers["counts"][5:]], format="csr"
    )
    model.predict_counterfactual("IFNb", cells, indices=np.arange(5))


def test_nothing_of_the_users_is_overwritten(trained):
    model, data = trained
    cells = data.copy()
    cells.layers["mine"] = np.zeros(cells.shape)
    with pytest.raises(ValueError, match=r"layers\['counts'\] is registered"):
        model.predict_counterfactual("IFNb", cells, layer_added="counts")
    with pytest.raises(ValueError, match=r"layers\['mine'\] exists and was not written by scvci"):
        model.predict_counterfactual("IFNb", cells, layer_added="mine")
    model.predict_counterfactual("IFNb", cells, layer_added="ours")
    model.predict_counterfactual("IFNb", cells, layer_added="ours")
    with pytest.raises(ValueError, match="holds the counterfactual for 'IFNb'"):
        model.predict_counterfactual("TNFa", cells, layer_added="ours")
    assert not cells.layers["mine"].any()
    assert (cells.layers["counts"] != data.layers["counts"]).nnz == 0


def test_empty_cells_and_genes_warn_and_do_not_break_training(adata):
    counts = adata.layers["counts"].toarray()
    counts[4], counts[:, 9] = 0, 0
    adata.layers["counts"] = sparse.csr_matrix(counts)
    VCI.setup_anndata(adata, **KEYS)
    with pytest.warns(UserWarning, match="no counts at all") as caught:
        model = VCI(adata)
    text = " ".join(str(w.message) for w in caught)
    assert "cell4" in text
    assert "Gene0009" in text
    _train(model)
    model.predict_counterfactual("IFNb")
    layer = adata.layers["counterfactual_IFNb"]
    assert np.isfinite(layer).all()
    assert layer[4].sum() == 0
    assert layer[:, 9].max() < 0.1


@pytest.mark.parametrize(("axis", "kind"), [("obs_names", "cell"), ("var_names", "gene")])
@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_duplicate_names(adata, axis, kind):
    names = getattr(adata, axis).to_numpy(dtype=object, copy=True)
    names[1] = names[0]
    setattr(adata, axis, names)
    _refused(adata, ValueError, f"{kind} names are not unique.*{names[0]}")


def test_stratum_without_control(adata):
    keep = ~((adata.obs["cell_type"] == "B") & (adata.obs["treatment"] == "control"))
    _refused(adata[keep].copy(), ValueError, "'control'.*'B'")


def test_pair_never_seen_is_listed(adata):
    keep = ~((adata.obs["cell_type"] == "B") & (adata.obs["treatment"] == "IFNb"))
    with pytest.warns(UserWarning, match=r"\(IFNb, B\)"):
        VCI.setup_anndata(adata[keep].copy(), **KEYS)


def test_unknown_treatment_at_prediction(trained):
    model, data = trained
    before = list(data.layers)
    with pytest.raises(ValueError, match="'IFNB'.*Nearest: 'IFNb'"):
        model.predict_counterfactual("IFNB")
    assert list(data.layers) == before


def test_untrained_model(adata):
    VCI.setup_anndata(adata, **KEYS)
    with pytest.raises(RuntimeError, match="train()"):
        VCI(adata).predict_counterfactual("IFNb")


def test_covariate_keys_given_as_a_string(adata):
    with pytest.raises(TypeError, match="list"):
        VCI.setup_anndata(adata, categorical_covariate_keys="cell_type")


def test_treatment_as_its_own_covariate(adata):
    _refused(adata, ValueError, "twice", categorical_covariate_keys=["treatment"])


def test_size_factors_must_be_positive(adata):
    adata.obs["sf"] = 1.0
    adata.obs.loc["cell2", "sf"] = 0.0
    _refused(adata, ValueError, "'sf'.*positive.*cell2", size_factor_key="sf")


def test_zero_cells():
    empty = AnnData(np.zeros((0, 3), np.float32), obs=pd.DataFrame({"treatment": []}))
    with pytest.raises(ValueError, match="0 cells"):
        VCI.setup_anndata(empty)


@pytest.mark.parametrize(
    ("labels", "control"),
    [
        ([0, 1], 0),
        ([False, True], False),
        (["ctrl", "(+)-JQ1"], "ctrl"),
        (["ctrl", "A+ctrl"], "ctrl"),
        (["対照", "β-agonist / 5 µM"], "対照"),
        (["no drug", "drug name"], "no drug"),
    ],
)
def test_odd_names_work_from_setup_to_layer(adata, labels, control):
    treated = (adata.obs["treatment"] != "control").to_numpy()
    adata.obs["treatment"] = [labels[int(t)] for t in treated]
    VCI.setup_anndata(adata, control=control, **KEYS)
    model = VCI(adata, seed=0)
    assert model.control == str(control)
    assert model.treatments == [str(labels[0]), str(labels[1])]
    _train(model)
    (layer,) = model.predict_counterfactual(str(labels[1]), adata)
    assert "/" not in layer
    assert adata.uns["scvci"][layer]["treatment"] == str(labels[1])


@pytest.mark.parametrize(
    "convert",
    [
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.csr_array,
        lambda m: m.toarray(),
        lambda m: m.astype(np.int32),
        lambda m: m.toarray().astype(np.int64),
        lambda m: m.astype(np.uint16),
    ],
)
def test_matrix_kinds_give_the_same_predictions(adata, trained, convert):
    model, data = trained
    other = data.copy()
    other.layers["counts"] = convert(sparse.csr_matrix(data.layers["counts"]))
    VCI.setup_anndata(other, **KEYS)
    _train(VCI(other, seed=0), 1)
    (layer,) = model.predict_counterfactual("TNFa", other)
    fresh = data.copy()
    model.predict_counterfactual("TNFa", fresh)
    np.testing.assert_allclose(other.layers[layer], fresh.layers[layer], rtol=1e-5)


def test_fewer_cells_than_a_batch_and_one_gene():
    rng = np.random.default_rng(0)
    tiny = AnnData(
        rng.poisson(5, size=(12, 1)).astype(np.float32),
        obs=pd.DataFrame({"treatment": ["control", "a"] * 6}, index=[f"c{i}" for i in range(12)]),
    )
    VCI.setup_anndata(tiny)
    model = VCI(tiny, seed=0)
    _train(model)
    model.predict_counterfactual("a")
    assert np.isfinite(tiny.layers["counterfactual_a"]).all()


def test_on_disk_collections_are_refused_with_a_reason():
    with pytest.raises(NotImplementedError, match="treatment"):
        VCI.setup_annbatch("somewhere")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"likelihood": "gamma"}, "gamma"),
        ({"covariate_term": "sinkhorn"}, "sinkhorn"),
        ({"weights": {"kl": 1}}, "kl"),
        ({"architecture": {"depth": 3}}, "depth"),
        ({"preset": "best"}, "best"),
    ],
)
def test_unknown_settings_are_named(adata, arguments, match):
    VCI.setup_anndata(adata, **KEYS)
    with pytest.raises(ValueError, match=match):
        VCI(adata, **arguments)


def _train(model, epochs=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=epochs, enable_progress_bar=False, accelerator="cpu")
