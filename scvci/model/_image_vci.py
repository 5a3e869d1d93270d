"""The VCI model for images."""

from __future__ import annotations

import warnings
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.data import AnnDataManager
from scvi.module._constants import MODULE_KEYS

from scvci._names import unknown_name_message
from scvci._numbers import batch_size_or_default
from scvci.data import _constants as keys
from scvci.data._attributes import (
    AttributeField,
    attribute_value,
    measured_ranges,
    outside_ranges,
    read_attributes,
)
from scvci.data._fields import CovariateField
from scvci.data._images import AttributeSampler, ImageCells, ImageField, find_shape
from scvci.data._results import safe_name
from scvci.data._validation import check_names, covariate_list
from scvci.module import ImageModule, ImageSizes, TrainingDefaults
from scvci.module._config import ImageConfig
from scvci.module._presets import build_config

from ._file_checks import check_array, check_same_names
from ._layers import require_finite
from ._model import ModelBase, raise_if_changed
from ._seeded import Seeded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from torch import nn

    from scvci.module._config import ImageLikelihoodName, ImageTermName

    Indices = Sequence[int] | Sequence[str] | np.ndarray | slice | None

_KIND = "counterfactual image"


class ImageVCI(ModelBase):
    """Variational causal inference for cells whose outcome is an image.

    What would the image of this cell have been under another treatment? Treatments are attributes
    with a value for each cell, numbers (a dose, a thickness) or levels of a category (a drug), and
    one or several of them are changed. The objective, the training plan and the files are those
    of :class:`~scvci.model.VCI` (Wu, McConnell and Iriondo, ICLR 2025). What that class does
    beyond it belongs to counts and to arms that many cells share, such as library sizes, dose
    responses of genes and the calibration of means.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, in place of ``adata``.
    likelihood
        Of a pixel: ``"bernoulli"`` for values on [0, 1], or ``"normal"``.
    covariate_term
        Kind of the covariate-specific term: ``"discriminator"`` (the paper's for images) or
        ``"classifier"``.
    weights
        Weights of the terms, by default ``{"individual": 1, "covariate": 3, "divergence": 0.3}``.
    architecture, objective
        Further settings by name, see :class:`~scvci.module.ImageArchitecture` and
        :class:`~scvci.module.Objective`.
    encoder, decoder
        Networks of one's own in place of the convolutional ones, see
        :class:`~scvci.module.ImageModule`. Files hold their weights only: pass them to
        :meth:`load` again.
    seed
        Seed of initialisation and training. ``None`` takes ``scvi.settings.seed``, or draws one;
        either way it is recorded as ``seed_``.

    Raises
    ------
    ValueError
        If a setting is unknown, or the pixels are not in the likelihood's support.

    Examples
    --------
    >>> adata = scvci.datasets.morpho_mnist(digits)
    >>> ImageVCI = scvci.model.ImageVCI
    >>> ImageVCI.setup_anndata(adata, "image", treatment_keys=["thickness", "intensity"])
    >>> model = ImageVCI(adata)
    >>> model.train()
    >>> model.predict_counterfactual({"thickness": 5.0})
    'counterfactual_thickness=5'
    """

    module: ImageModule
    saved_attributes = {
        **ModelBase.saved_attributes,
        "own_networks_": list,
        "ranges_": (dict, NoneType),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        likelihood: ImageLikelihoodName = "bernoulli",
        covariate_term: ImageTermName = "discriminator",
        weights: dict[str, float] | None = None,
        architecture: dict[str, Any] | None = None,
        objective: dict[str, Any] | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, seed)
        self.config = build_config(
            ImageConfig(),
            likelihood,
            architecture,
            weights,
            {**(objective or {}), "covariate_term": covariate_term},
        )
        treatments, covariates = self._state(keys.TREATMENT_KEY), self._state(keys.COVARIATES_KEY)
        sizes = ImageSizes(
            shape=self.image_shape,
            n_values=[len(levels or []) for levels in treatments["levels"]],
            n_levels=[len(levels) for levels in covariates["levels"]],
        )
        with Seeded(self.seed_):
            self.module = ImageModule(sizes, self.config, encoder, decoder)
            # Without memory, as files are compared with, nothing can be passed through.
            if not self.module.attribute_mean.is_meta:
                self.module.check_networks()
        if adata is not None:
            self.cells()
        #: Networks that are the user's own, which a file does not hold.
        self.own_networks_ = [
            name
            for name, network in (("encoder", encoder), ("decoder", decoder))
            if network is not None
        ]
        encoder = decoder = None
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        image_key: str | None = "image",
        *,
        treatment_keys: Sequence[str],
        categorical_covariate_keys: Sequence[str] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register images, treatments and covariates of an AnnData.

        Shapes and labels are checked before anything is written: a refused AnnData is left as it
        was. Pixels are checked when a model is built, whose likelihood says what they may be.

        Parameters
        ----------
        adata
            Cells; they need no genes.
        image_key
            Entry of ``obsm`` with the images, shape (cells, channels, height, width) or
            (cells, height, width), or flat with ``image_shape``; ``None`` for flat images in
            ``X``. Eight-bit whole numbers are read as shares of 255.
        treatment_keys
            Columns of ``obs``, one for each attribute: a column of numbers is a number, any other
            (text, category, boolean) a category.
        categorical_covariate_keys
            Columns whose observed combinations are the strata within which treatments compare.
        image_shape
            Channels, height and width of flat images.
        **kwargs
            Passed to :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError, ValueError
            With the entry, column, level or cell at fault, why, and what to do.
        """
        treatment_keys = covariate_list(treatment_keys, "treatment_keys")
        categorical = covariate_list(categorical_covariate_keys, "categorical_covariate_keys")
        setup_method_args = cls._get_setup_method_args(
            cls=cls,
            adata=adata,
            image_key=image_key,
            treatment_keys=treatment_keys,
            categorical_covariate_keys=categorical,
            image_shape=None if image_shape is None else list(image_shape),
        )
        if not treatment_keys:
            raise ValueError("treatment_keys= names no column, and so there is nothing to change.")
        check_names(adata, [*treatment_keys, *categorical])
        shape = find_shape(adata, image_key, image_shape)
        attributes, covariates = AttributeField(treatment_keys), CovariateField(categorical)
        if (source := kwargs.get("source_registry")) is None:
            attributes.prepare(adata)
            covariates.prepare(adata)
        else:
            # Fields write one after the other; what they refuse is to be found before.
            ImageCells.from_registry(adata, source)
        fields = [ImageField(image_key, shape), attributes, covariates]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    # -- names ------------------------------------------------------------------------------------

    @property
    def treatments(self) -> list[str]:
        """Names of the attributes."""
        return list(self._state(keys.TREATMENT_KEY)["keys"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        channels, height, width = self._state("X")["shape"]
        return channels, height, width

    def cells(self, adata: AnnData | None = None, indices: Any = None) -> ImageCells:
        """Read cells as the model does, and check their images.

        Parameters
        ----------
        adata
            The cells, by default the model's.
        indices
            Rows, mask or names of the cells in question; the others are not judged.

        Raises
        ------
        KeyError, ValueError
            With the column, level, shape or pixel that the model cannot read.
        """
        source = self.adata if adata is None else adata
        if source is None:
            raise ValueError("The model was loaded without cells; pass adata=.")
        cells = ImageCells.from_registry(source, self.registry, indices)
        cells.check_pixels(self.module.likelihood.support)
        return cells

    # -- training ---------------------------------------------------------------------------------

    @property
    def training_defaults(self) -> TrainingDefaults:
        """How images are trained where the user does not say."""
        return TrainingDefaults(
            batch_size=128,
            max_epochs=400,
            n_steps=6_000,
            plan={"lr": 3e-3, "weight_decay": 1e-5, "clip": 50.0},
        )

    def _check_labels(self, cells: ImageCells) -> None:
        """Compare labels with what ``setup_anndata`` saw: levels and strata are built on it."""
        names = self.adata_manager.adata.uns.get("_scvi_uuid")
        latest = self._setup_adata_manager_store.get(names)
        if latest is not None and latest is not self.adata_manager:
            keys_now = latest.registry["setup_args"]["treatment_keys"]
            if list(keys_now) != self.treatments:
                raise ValueError(
                    f"adata has been set up anew, with treatment_keys={list(keys_now)}; the model "
                    f"was built on {self.treatments}. Build a new model."
                )
        labels = {}
        for key, now in (
            (keys.TREATMENT_KEY, cells.values),
            (keys.COVARIATES_KEY, cells.covariates),
        ):
            then = np.asarray(self.adata_manager.get_from_registry(key))
            for i, name in enumerate(self._state(key)["keys"]):
                labels[name] = (now[:, i], then[:, i])
        raise_if_changed(labels, cells.names)

    def _start_training(self, cells: ImageCells) -> AttributeSampler:
        values = cells.values[cells.rows]
        self.ranges_ = measured_ranges(cells.stratum[cells.rows], values, self._is_number)
        if self.n_trainings_ == 0:
            self.module.set_statistics(values.mean(axis=0), values.std(axis=0) + 1e-8)
        return AttributeSampler(cells)

    # -- prediction -------------------------------------------------------------------------------

    def predict_counterfactual(
        self,
        values: Mapping[str, float | str] | None = None,
        adata: AnnData | None = None,
        *,
        target_keys: Mapping[str, str] | None = None,
        indices: Indices = None,
        key_added: str | None = None,
        batch_size: int | None = None,
    ) -> str:
        """Predict each cell's image under other values of its treatments.

        The cell's own image, treatment and covariates give its latent state (the mean of
        q(z | y, x, t)); the prediction is the mean of p(y′ | z, t′). It is written into ``obsm``.
        Attributes that are not named keep the cell's own value.

        Parameters
        ----------
        values
            Value of each attribute that is changed, the same for all cells. Empty, with no
            ``target_keys`` either, changes nothing: a reconstruction.
        adata
            Cells to predict for, by default the model's.
        target_keys
            For attributes whose new value differs between cells, the column of ``obs`` that holds
            it.
        indices
            Rows, mask or names of the cells; images of the others are NaN.
        key_added
            Entry of ``obsm``, by default ``"counterfactual_<name>=<value>"``, with the column's
            name in place of a value for ``target_keys``.
        batch_size
            Cells per step, by default ``scvi.settings.batch_size``.

        Returns
        -------
        Name of the entry of ``obsm``, whose shape is (cells, channels, height, width), float32;
        ``adata.uns["scvci"]`` records what it holds.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError, ValueError
            If an attribute, level or column is unknown, a value is no finite number, an attribute
            is set twice, or the entry holds something else.

        Warns
        -----
        UserWarning
            If no training cell of a cell's stratum has the levels asked for, or those that have
            them do not enclose the numbers asked for: such images are extrapolated.

        Notes
        -----
        The individual counterfactual is identified only
        under assumptions, see :meth:`scvci.model.VCI.predict_counterfactual`.

        References
        ----------
        Wu, McConnell and Iriondo, "Counterfactual Generative Modeling with Variational Causal
        Inference", ICLR 2025.
        """
        self.require_trained("predict counterfactuals")
        values, columns = dict(values or {}), dict(target_keys or {})
        state = self._state(keys.TREATMENT_KEY)
        set_to = {name: attribute_value(state, name, value) for name, value in values.items()}
        for name in columns:
            if name in values:
                raise ValueError(f"{name!r} is set twice, in values= and in target_keys=.")
            self._attribute_index(name)
        cells = self.cells(adata, indices)
        target = read_attributes(cells.adata, state, cells.rows, columns)
        for name, value in set_to.items():
            target[:, self._attribute_index(name)] = value
        if values or columns:
            self._warn_of_extrapolation(cells.stratum[cells.rows], target[cells.rows])
        labels = {**{name: _text(value) for name, value in values.items()}, **columns}
        label = ", ".join(f"{name}={text}" for name, text in labels.items()) or "own values"
        key = key_added or safe_name(f"counterfactual_{label}")
        results = self.results(cells.adata)
        results.check("obsm", key, _KIND, label)
        images = np.full((cells.adata.n_obs, self.module.sizes.n_pixels), np.nan, np.float32)
        with torch.inference_mode():
            for rows, tensors in cells.batches(batch_size_or_default(batch_size)):
                tensors[keys.TARGET_KEY] = torch.as_tensor(target[rows], dtype=torch.float32)
                images[rows] = self._decode(self.on_device(tensors)).cpu().numpy()
                require_finite(images[rows], cells.names, rows)
        record = {
            "kind": _KIND,
            "treatment": label,
            "likelihood": self.config.likelihood,
            "model": type(self).__name__,
            "seed": self.seed_,
        }
        results.write("obsm", key, images.reshape(-1, *self.image_shape), record)
        return key

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        *,
        give_mean: bool = True,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Latent state of each cell: the vector of the whole image, then the maps.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`predict_counterfactual`. Rows come in the order of ``indices``.
        give_mean
            Mean of q(z | y, x, t), or a draw from it.

        Returns
        -------
        Shape ``(n_cells, n_latent)``.
        """
        self.require_trained("compute latent states")
        cells, parts = self.cells(adata, indices), []
        with torch.inference_mode():
            for _, tensors in cells.batches(batch_size_or_default(batch_size)):
                qz = self._posterior(self.on_device(tensors))
                parts.append((qz.loc if give_mean else qz.sample()).cpu().numpy())
        if not parts:
            raise ValueError("indices= selects no cell.")
        return np.concatenate(parts)

    def _posterior(self, tensors: dict[str, torch.Tensor]) -> torch.distributions.Normal:
        inputs = self.module._get_inference_input(tensors)
        return self.module.inference(**inputs, n_samples=0)[MODULE_KEYS.QZ_KEY]

    def _decode(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean images of a batch under its targets, ``(n_cells, n_pixels)``."""
        treatment = self.module.treatment_codes(tensors[keys.TARGET_KEY])
        covariates = self.module.covariate_codes(tensors)
        z = self._posterior(tensors).loc[None]
        return self.module.generative(z, treatment, covariates)[MODULE_KEYS.PX_KEY].mean[0]

    @property
    def _is_number(self) -> np.ndarray:
        return np.array([levels is None for levels in self._state(keys.TREATMENT_KEY)["levels"]])

    def _warn_of_extrapolation(self, stratum: np.ndarray, target: np.ndarray) -> None:
        outside = outside_ranges(self.ranges_, stratum, target, self._is_number)
        if outside.any():
            first = target[np.argmax(outside)]
            state = self._state(keys.TREATMENT_KEY)
            texts = [
                f"{name}={_text(value) if levels is None else levels[int(value)]}"
                for name, levels, value in zip(state["keys"], state["levels"], first, strict=True)
            ]
            warnings.warn(
                f"{outside.sum()} of {len(outside)} cells are asked for {', '.join(texts)} or the "
                "like, which lies outside what was measured in their stratum: these images are "
                "extrapolated. Attributes that are not named keep the cell's own value.",
                UserWarning,
                stacklevel=3,
            )

    def _attribute_index(self, name: str) -> int:
        """Position of an attribute."""
        if name not in self.treatments:
            raise ValueError(unknown_name_message("Treatment", name, self.treatments))
        return self.treatments.index(name)

    def __repr__(self) -> str:
        """Say what the model is, what it was given and whether it is trained."""
        channels, height, width = self.image_shape
        covariates = self._state(keys.COVARIATES_KEY)["keys"]
        trained = f"yes, seed {self.seed_}" if self.is_trained_ else "no; call train()"
        return "\n".join(
            [
                f"ImageVCI model of images with {channels} channels, {height} × {width} pixels",
                f"  treatments: {', '.join(self.treatments)}",
                f"  covariates: {', '.join(covariates) or 'none'}",
                f"  likelihood: {self.config.likelihood}",
                f"  objective:  {self.config.objective.in_words}",
                f"  trained:    {trained}",
            ]
        )

    # -- files ------------------------------------------------------------------------------------

    def _variable_names(self) -> list[str]:
        return list(map(str, self.image_shape))

    @classmethod
    def _check_variables(cls, adata: AnnData, names: list[str]) -> None:
        """Shapes are checked where images are read."""

    def _restore_state(self, attributes: dict[str, Any]) -> None:
        given = set(self.own_networks_)
        missing = [name for name in attributes["own_networks_"] if name not in given]
        if missing:
            raise ValueError(
                f"The model was built with networks of your own ({', '.join(missing)}), which "
                f"files do not hold; pass them as load(..., {missing[0]}=...)."
            )
        if attributes["is_trained_"]:
            ranges, is_number = attributes["ranges_"] or {}, self._is_number
            check_same_names(ranges, dict.fromkeys(["levels", "low", "high"]), "part of 'ranges_'")
            n = len(ranges["levels"])
            check_array("levels", ranges["levels"], (n, 1 + int((~is_number).sum())), "i")
            for name in ("low", "high"):
                check_array(name, ranges[name], (n, int(is_number.sum())))


def _text(value: Any) -> str:
    """Write a value as short as tells it from others."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
