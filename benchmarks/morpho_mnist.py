"""Counterfactual images of Morpho-MNIST: train, score against the truth, draw the grid.

    python benchmarks/morpho_mnist.py                                # the full run
    python benchmarks/morpho_mnist.py --smoke                        # a minute, needs no file
    python benchmarks/morpho_mnist.py --methods VCI "conditional VAE" "no divergence" --epochs 8
    python benchmarks/morpho_mnist.py --predict FILE.npz --out OUT.npz

Trained on factual images only, as the paper's experiment. ``--predict`` serves images with the
model that the full run left, training it first where there is none: arrays ``image`` (uint8,
n × 28 × 28), ``thickness``, ``intensity``, ``target_thickness``, ``target_intensity`` give
``image`` (float32, n × 28 × 28, on [0, 1]).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from _image_figures import draw_grid
from _image_regressors import train_regressors
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import cross_val_predict

from scvci.datasets import measure_intensity, measure_thickness, morpho_mnist
from scvci.metrics import composition, effectiveness, image_mse, reversibility
from scvci.model import ImageVCI

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "morpho_mnist.npz"
RESULTS = ROOT / "benchmarks" / "results" / "morpho_mnist"
ATTRIBUTES = ("thickness", "intensity")
#: Interventions of which the truth is in the file, by what is drawn anew.
SETS = ("mixed", "thickness", "intensity")
#: What the methods change in the model; networks, optimiser and epochs are the same.
METHODS: dict[str, dict[str, Any]] = {
    "VCI": {},
    "no divergence": {"weights": {"divergence": 0.0}},
    "no covariate term": {"weights": {"covariate": 0.0}},
    "conditional VAE": {
        "weights": {"covariate": 0.0, "divergence": 1.0},
        "objective": {"prior": "standard"},
    },
}
#: Test digits whose counterfactuals by cycles, and attributes by measurement, are computed.
N_MEASURED = 1000


def as_anndata(
    images: np.ndarray, thickness: np.ndarray, intensity: np.ndarray
) -> anndata.AnnData:
    """Images with their attributes; images are shares of 255, or lie on [0, 1]."""
    names = [f"digit{i}" for i in range(len(images))]
    obs = pd.DataFrame({"thickness": thickness, "intensity": intensity}, index=names, dtype=float)
    return anndata.AnnData(obs=obs, obsm={"image": images.reshape(len(images), 1, 28, 28)})


def precision() -> str:
    """Brain floats where the processor computes with them; they double the speed."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"


def train(data: dict[str, np.ndarray], method: str, seed: int, epochs: int | None) -> ImageVCI:
    """Fit a method to the factual training images."""
    adata = as_anndata(*(data[f"train_{name}"] for name in ("image", *ATTRIBUTES)))
    ImageVCI.setup_anndata(adata, treatment_keys=ATTRIBUTES)
    model = ImageVCI(adata, seed=seed, **METHODS[method])
    start = time.time()
    # The weights of the last epoch: validation digits only say that it went on well.
    model.train(epochs, train_size=0.98, early_stopping=False, precision=precision())
    print(
        f"{method}, seed {seed}: trained in {(time.time() - start) / 60:.1f} minutes.", flush=True
    )
    return model


def change(
    model: ImageVCI, images: np.ndarray, own: dict[str, np.ndarray], to: dict[str, np.ndarray]
) -> np.ndarray:
    """Counterfactuals of images with attributes ``own`` under attributes ``to``, n × 28 × 28."""
    adata = as_anndata(images, **own)
    for name in ATTRIBUTES:
        adata.obs[f"target_{name}"] = to[name]
    key = model.predict_counterfactual(
        adata=adata, target_keys={name: f"target_{name}" for name in ATTRIBUTES}, batch_size=500
    )
    return adata.obsm[key][:, 0]


def attributes(data: dict[str, np.ndarray], part: str, n: int) -> dict[str, np.ndarray]:
    """Attributes of the first n images of a part."""
    return {name: data[f"{part}_{name}"][:n].astype(float) for name in ATTRIBUTES}


def score(
    model: ImageVCI, data: dict[str, np.ndarray], regressors: dict[str, Any]
) -> pd.DataFrame:
    """Score a model on the test digits, one row per number, with its standard error."""
    n = len(data["cf_mixed_image"])
    factual, own = data["test_image"][:n] / np.float32(255), attributes(data, "test", n)
    to = {name: attributes(data, f"cf_{name}", n) for name in SETS}
    truth = {name: data[f"cf_{name}_image"] / np.float32(255) for name in SETS}
    predicted = {name: change(model, factual, own, to[name]) for name in SETS}
    rows = []

    def add(metric: str, per_image: np.ndarray | float, without: np.ndarray | float) -> None:
        values = np.atleast_1d(per_image)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        rows.append((metric, values.mean(), error, np.mean(without)))

    for name in SETS:
        errors = image_mse(predicted[name], truth[name])
        unchanged = image_mse(factual, truth[name])
        add(f"MSE {name}", errors, unchanged)
        for code, changed in enumerate(ATTRIBUTES if name == "mixed" else ()):
            drawn = data["cf_mixed_which"] == code
            add(f"MSE mixed, {changed} drawn anew", errors[drawn], unchanged[drawn])
    few = slice(0, N_MEASURED)
    mixed, requested = predicted["mixed"][few], {k: v[few] for k, v in to["mixed"].items()}
    measures = {"thickness": measure_thickness, "intensity": measure_intensity}
    for how, measure in (("measured", measures), ("by regressors", regressors)):
        of_model = effectiveness(mixed, requested, measure)
        of_truth = effectiveness(truth["mixed"][few], requested, measure)
        unchanged = effectiveness(factual[few], requested, measure)
        for name in ATTRIBUTES:
            add(f"effectiveness, {name} {how}", of_model[name], unchanged[name])
            add(f"effectiveness of the truth, {name} {how}", of_truth[name], unchanged[name])
    few_own = {name: values[few] for name, values in own.items()}
    kept = composition(factual[few], lambda y: change(model, y, few_own, few_own), cycles=10)
    for cycles in (1, 10):
        add(f"composition, {cycles} cycles (L1)", kept[cycles - 1], 0.0)
    back = reversibility(
        factual[few],
        lambda y: change(model, y, few_own, requested),
        lambda y: change(model, y, requested, few_own),
    )
    add("reversibility, 1 cycle (L1)", back[0], 0.0)
    add("MSE of reconstruction", image_mse(change(model, factual, own, own), factual), 0.0)
    adata = as_anndata(factual, **own)
    for label, give_mean in (("means", True), ("draws", False)):
        torch.manual_seed(0)
        latent = model.get_latent_representation(adata, give_mean=give_mean, batch_size=500)
        for name in ATTRIBUTES:
            add(f"R² of {name} from latent {label}", explained(latent, own[name]), np.nan)
    return pd.DataFrame(rows, columns=["metric", "value", "std_error", "no change"])


def explained(latent: np.ndarray, attribute: np.ndarray) -> float:
    """Share of an attribute's variance that latent states predict, cross-validated."""
    components = PCA(min(50, *latent.shape), random_state=0).fit_transform(latent)
    regressor = HistGradientBoostingRegressor(random_state=0)
    predicted = cross_val_predict(regressor, components, attribute, cv=5)
    return 1 - np.mean((predicted - attribute) ** 2) / attribute.var()


def draw(model: ImageVCI, data: dict[str, np.ndarray], path: Path) -> None:
    """Draw test digits along thickness × intensity, and counterfactuals beside the truth."""
    n = len(data["cf_mixed_image"])
    first = np.unique(data["test_label"][:n], return_index=True)[1][:8]
    factual = data["test_image"][first] / np.float32(255)
    own = {name: values[first] for name, values in attributes(data, "test", n).items()}
    columns = {"factual": factual}
    for thickness in (1.5, 3.0, 5.0):
        for intensity in (100.0, 170.0, 240.0):
            to = {
                "thickness": np.full(len(first), thickness),
                "intensity": np.full(len(first), intensity),
            }
            gap = "|" if intensity == 100.0 else ""
            title = f"{gap}{thickness:g} px\n{intensity:g}"
            columns[title] = change(model, factual, own, to)
    for name, label in (("thickness", "both"), ("intensity", "intensity")):
        to = {key: x[first] for key, x in attributes(data, f"cf_{name}", n).items()}
        columns[f"|{label}\nanew"] = change(model, factual, own, to)
        columns["truth" + " " * len(columns)] = data[f"cf_{name}_image"][first] / np.float32(255)
    draw_grid(path, columns)


def fitted(data_file: Path, epochs: int | None) -> ImageVCI:
    """Return the model of the full run, trained first where there is none."""
    folder = RESULTS / "model_seed0"
    if not (folder / "model.pt").exists():
        print(f"There is no model in {folder}; it is trained first, as by the full run.")
        train(load(data_file), "VCI", 0, epochs).save(folder, overwrite=True)
    return ImageVCI.load(folder, adata=False)


def smoke_data(n_train: int = 200, n_test: int = 24) -> dict[str, np.ndarray]:
    """Arrays of the same form from scikit-learn's small digits."""
    small, label = load_digits(return_X_y=True)
    large = zoom(small[: n_train + n_test].reshape(-1, 8, 8), (1, 2.5, 2.5), order=1) / 16
    digits = np.pad(large.clip(0, 1), ((0, 0), (4, 4), (4, 4)))
    made = morpho_mnist(digits)
    other = np.random.default_rng(1).permutation(n_train)[:n_test]
    redrawn = {name: made.obs[name].to_numpy()[other] for name in ATTRIBUTES}
    data = {"test_label": label[n_train : n_train + n_test]}
    for part, rows in (("train", slice(0, n_train)), ("test", slice(n_train, None))):
        data[f"{part}_image"] = np.round(made.obsm["image"][rows, 0] * 255).astype(np.uint8)
        data |= {f"{part}_{name}": made.obs[name].to_numpy()[rows] for name in ATTRIBUTES}
    data["cf_mixed_which"] = np.arange(n_test) % 2
    for name in SETS:
        to = {}
        for code, attribute in enumerate(ATTRIBUTES):
            drawn = name == attribute or ((name == "mixed") & (data["cf_mixed_which"] == code))
            to[attribute] = np.where(drawn, redrawn[attribute], data[f"test_{attribute}"])
        images = morpho_mnist(digits[n_train:], **to).obsm["image"][:, 0]
        data[f"cf_{name}_image"] = np.round(images * 255).astype(np.uint8)
        data |= {f"cf_{name}_{attribute}": values for attribute, values in to.items()}
    return data


def load(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of the data."""
    if not path.exists():
        sys.exit(f"{path} does not exist; pass the file of images as --data.")
    with np.load(path) as arrays:
        return dict(arrays)


def requests(source: Path) -> dict[str, np.ndarray]:
    """Read the images of a file and what they are to become."""
    with np.load(source) as given:
        needed = ["image", *ATTRIBUTES, *(f"target_{name}" for name in ATTRIBUTES)]
        if missing := [name for name in needed if name not in given]:
            sys.exit(f"{source} lacks the arrays {missing}; it must hold {needed}.")
        arrays = {name: given[name] for name in needed}
    n = len(arrays["image"])
    if arrays["image"].size != n * 28 * 28 or any(len(a) != n for a in arrays.values()):
        shapes = {name: array.shape for name, array in arrays.items()}
        sys.exit(
            f"{source} must hold n images of 28 × 28 pixels and n numbers each; got {shapes}."
        )
    return arrays


def predict(model: ImageVCI, arrays: dict[str, np.ndarray], target: Path) -> None:
    """Serve the images of a file."""
    own = {name: arrays[name] for name in ATTRIBUTES}
    to = {name: arrays[f"target_{name}"] for name in ATTRIBUTES}
    images = change(model, arrays["image"] / np.float32(255), own, to)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        np.savez_compressed(file, image=images.astype(np.float32))
    print(f"Wrote {len(images)} images to {target}.")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="file of images and the truth")
    parser.add_argument("--methods", nargs="+", default=["VCI"], choices=sorted(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="by default those of about 6,000 steps")
    parser.add_argument(
        "--smoke", action="store_true", help="few images that are made here, one epoch"
    )
    parser.add_argument("--predict", type=Path, help="file of images to serve")
    parser.add_argument("--out", type=Path, help="file to write them to")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*precision.*")
    if (arguments.predict is None) != (arguments.out is None):
        parser.error("--predict and --out belong together.")
    if arguments.predict is not None:
        given = requests(arguments.predict)
        predict(fitted(arguments.data, arguments.epochs), given, arguments.out)
        return
    folder = RESULTS / "smoke" if arguments.smoke else RESULTS
    data = smoke_data() if arguments.smoke else load(arguments.data)
    if arguments.smoke:
        arguments.epochs = 1
    folder.mkdir(parents=True, exist_ok=True)
    regressors = train_regressors(
        data["train_image"][:20_000] / np.float32(255), attributes(data, "train", 20_000)
    )
    tables = []
    for method in arguments.methods:
        for seed in arguments.seeds:
            model = train(data, method, seed, arguments.epochs)
            if method == "VCI":
                model.save(folder / f"model_seed{seed}", overwrite=True)
                draw(model, data, folder / f"grid_seed{seed}.png")
            table = score(model, data, regressors)
            tables.append(table.assign(method=method, seed=seed))
            print(table.to_string(index=False, float_format="{:.5f}".format), flush=True)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    result = pd.concat(tables).assign(command=" ".join(sys.argv), commit=commit)
    path = folder / "scores.csv"
    if path.exists():
        old = pd.read_csv(path)
        done = set(zip(result["method"], result["seed"], strict=True))
        stale = [pair in done for pair in zip(old["method"], old["seed"], strict=True)]
        result = pd.concat([old[~np.array(stale)], result])
    result.to_csv(path, index=False)
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()
