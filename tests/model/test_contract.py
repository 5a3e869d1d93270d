"""What scvi-tools' own machinery asks of a model: files, criticism, loaders, tuning."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scvi
import torch
from helpers import without_layers
from scvi import REGISTRY_KEYS
from scvi.criticism import PosteriorPredictiveCheck
from scvi.hub import HubMetadata, HubModelCardHelper

from scvci.model import VCI


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    model, _ = trained
    folder = tmp_path_factory.mktemp("contract") / "model"
    model.save(folder)
    return folder


# -- files --------------------------------------------------------------------------------------


def test_the_registry_is_read_from_the_file(trained, saved, capsys):
    model, _ = trained
    registry = VCI.load_registry(saved)
    assert registry["model_name"] == "VCI"
    assert registry["scvi_version"] == scvi.__version__
    assert registry["setup_args"] == dict(model.setup_args)
    assert registry["field_registries"].keys() == model.registry["field_registries"].keys()
    VCI.view_setup_args(saved)
    shown = capsys.readouterr().out
    assert "treatment_key" in shown
    assert "cell_type" in shown


def test_a_model_knows_what_data_it_was_set_up_with(trained, capsys):
    model, _ = trained
    model.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "treatment State Registry" in shown
    assert "IFNb" in shown
    assert model.summary_stats["n_cells"] == 300
    assert model.summary_stats["n_vars"] == 30
    assert model.summary_stats["n_treatment"] == 3


def test_the_hub_reads_metadata(saved):
    metadata = HubMetadata.from_dir(
        str(saved), anndata_version=anndata.__version__, model_parent_module="scvci.model"
    )
    assert metadata.model_cls_name == "VCI"
    assert metadata.scvi_version == scvi.__version__
    metadata.save(str(saved / "metadata.json"))


def test_the_hub_has_model_cards_for_its_own_classes_only(saved):
    """Files are read to the end; the list of classes is scvi-tools'."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    with pytest.raises(ValueError, match="VCI not recognized"):
        HubModelCardHelper.from_dir(
            str(saved), license_info="bsd-3-clause", anndata_version=anndata.__version__
        )


def test_files_hold_tensors_and_plain_data_under_scvi_tools_keys(trained, saved):
    model, _ = trained
    payload = torch.load(saved / "model.pt", weights_only=True)
    assert {"model_state_dict", "var_names", "attr_dict"} <= set(payload)
    assert payload["var_names"] == model.genes.tolist()
    for name, value in model.module.state_dict().items():
        torch.testing.assert_close(payload["model_state_dict"][name], value)
    assert payload["attr_dict"]["is_trained_"]


# -- latent states and expression -----------------------------------------------------------------


def test_latent_states_of_a_loader(trained):
    model, _ = trained
    batches = [tensors for _, tensors in model.cells().batches(64)]
    assert REGISTRY_KEYS.X_KEY in batches[0]
    expected = model.get_latent_representation(batch_size=64)
    np.testing.assert_array_equal(model.get_latent_representation(dataloader=batches), expected)
    mean, variance = model.get_latent_representation(dataloader=iter(batches), return_dist=True)
    np.testing.assert_array_equal(mean, expected)
    assert (variance > 0).all()
    with pytest.raises(ValueError, match="either dataloader="):
        model.get_latent_representation(indices=[0], dataloader=batches)


def test_draws_of_latent_states_spread_as_their_distribution_says(trained):
    model, _ = trained
    mean, variance = model.get_latent_representation(return_dist=True)
    draws = np.stack([model.get_latent_representation(give_mean=False) for _ in range(30)])
    assert draws.shape == (30, 300, 3)
    standard = (draws - mean) / np.sqrt(variance)
    assert abs(standard.mean()) < 0.03
    assert standard.std() == pytest.approx(1, abs=0.03)


def test_expression_under_the_treatment_received_is_its_counterfactual(trained):
    model, data = trained
    cells = without_layers(data)
    expected = np.empty(cells.shape, dtype=np.float32)
    for treatment, layer in zip(
        model.treatments,
        model.predict_counterfactual(None, cells, library_size=1e4, keep="state"),
        strict=True,
    ):
        rows = (cells.obs["treatment"] == treatment).to_numpy()
        expected[rows] = cells.layers[layer][rows]
    table = model.get_normalized_expression(cells, library_size=1e4)
    assert table.index.tolist() == cells.obs_names.tolist()
    assert table.columns.tolist() == cells.var_names.tolist()
    np.testing.assert_allclose(table, expected, rtol=1e-5)
    shares = model.get_normalized_expression(cells, return_numpy=True)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(1e4 * shares, expected, rtol=1e-4)


@pytest.mark.parametrize("library_size", [None, 1e4])
@pytest.mark.parametrize("calibrated", [True, False])
def test_expression_under_another_treatment_is_the_prediction(trained, library_size, calibrated):
    model, data = trained
    cells = without_layers(data)
    options = {"library_size": library_size, "calibrated": calibrated}
    (layer,) = model.predict_counterfactual("IFNb", cells, keep="state", **options)
    genes = ["Gene0007", "Gene0002"]
    table = model.get_normalized_expression(
        cells, [4, 1], treatment="IFNb", gene_list=genes, **options
    )
    assert table.columns.tolist() == genes
    np.testing.assert_allclose(table, cells.layers[layer][np.ix_([4, 1], [7, 2])], rtol=1e-5)
    with pytest.raises(ValueError, match="'IFNg' is unknown"):
        model.get_normalized_expression(cells, treatment="IFNg")
    with pytest.raises(ValueError, match="'Gene7'"):
        model.get_normalized_expression(cells, gene_list=["Gene7"])


# -- criticism ----------------------------------------------------------------------------------


def test_draws_are_counts_around_the_expression(trained):
    model, data = trained
    draws = model.posterior_predictive_sample(n_samples=40)
    assert draws.shape == (300, 30, 40)
    values = draws.todense()
    np.testing.assert_array_equal(values, np.rint(values))
    assert values.min() >= 0
    expected = model.get_normalized_expression(library_size=None, return_numpy=True)
    # Means of exponentials over draws of the latent state are a little larger.
    np.testing.assert_allclose(values.mean(axis=(0, 2)), expected.mean(axis=0), rtol=0.2)
    assert values.mean() == pytest.approx(expected.mean(), rel=0.03)
    assert model.posterior_predictive_sample(data, [3, 1, 3]).shape == (3, 30)


def test_genes_of_draws_come_in_the_order_asked_for(trained):
    model, _ = trained
    genes = ["Gene0009", "Gene0003"]
    for options in ({}, {"n_samples": 2}):
        scvi.settings.seed = 0
        all_genes = model.posterior_predictive_sample(**options).todense()
        scvi.settings.seed = 0
        some = model.posterior_predictive_sample(gene_list=genes, **options).todense()
        np.testing.assert_array_equal(some, all_genes[:, [9, 3]])
    with pytest.raises(ValueError, match="'Gene9'"):
        model.posterior_predictive_sample(gene_list=["Gene9"])


def test_posterior_predictive_check(trained):
    model, data = trained
    check = PosteriorPredictiveCheck(data, {"VCI": model}, count_layer_key="counts", n_samples=5)
    for dim, name, length in (("cells", "cv_gene", 30), ("features", "cv_cell", 300)):
        check.coefficient_of_variation(dim)
        table = check.metrics[name]
        assert list(table) == ["VCI", "Raw"]
        assert len(table) == length
        assert np.isfinite(table).all(axis=None)
        # The spread of draws follows that of the counts.
        ratio = table["VCI"].mean() / table["Raw"].mean()
        assert 0.7 < ratio < 1.4


# -- what a bound on one world would say of two --------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "get_elbo",
        "get_marginal_ll",
        "get_reconstruction_error",
        "differential_expression",
        "differential_abundance",
        "get_feature_correlation_matrix",
    ],
)
def test_methods_that_make_no_sense_of_it_are_not_there(trained, name):
    model, _ = trained
    method = getattr(model, name, None)
    if method is not None:
        with pytest.raises(NotImplementedError):
            method()


# -- tuning ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_autotune(adata, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'scvci[autotune]'")
    from scvi.autotune import run_autotune

    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    try:
        experiment = run_autotune(
            VCI,
            adata,
            metrics="validation_loss",
            mode="min",
            search_space={
                "model_params": {"n_latent": ray.tune.choice([2, 3])},
                "train_params": {"max_epochs": 2, "accelerator": "cpu"},
            },
            num_samples=2,
            scheduler="fifo",
            searcher="random",
            seed=0,
            resources={"cpu": 1},
            logging_dir=str(tmp_path),
        )
        results = experiment.result_grid
        assert not results.errors
        assert len(results) == 2
        losses = [result.metrics["validation_loss"] for result in results]
        best = results.get_best_result("validation_loss", "min")
        assert best.metrics["validation_loss"] == min(losses)
        assert best.config["model_params"]["n_latent"] in (2, 3)
    finally:
        ray.shutdown()
