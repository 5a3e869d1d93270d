"""Saving and loading of tensors and plain data only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import anndata
import numpy as np
import pandas as pd
import torch
from scvi.data import AnnDataManager
from scvi.model._utils import parse_device_args
from scvi.model.base._constants import SAVE_KEYS

from ._base import VCIBase
from ._calibration import Calibration, ReferenceState

if TYPE_CHECKING:
    import os

    from anndata import AnnData

#: Raised when the layout of the file changes.
_FORMAT_VERSION = 2


def to_plain(value: Any) -> Any:
    """Turn registry and history into dictionaries, lists, tensors, numbers and strings.

    Arrays of text become lists, so that a registry is the same after loading.

    Raises
    ------
    TypeError
        If a value has no plain form.
    """
    if value is None or isinstance(value, str | bool | int | float | torch.Tensor):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pd.DataFrame):
        columns = {str(name): to_plain(column.to_numpy()) for name, column in value.items()}
        return {"__frame__": columns, "index": to_plain(value.index.to_numpy())}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            return {"__array__": torch.from_numpy(value.copy())}
        return [str(v) for v in value.tolist()]
    if isinstance(value, pd.Series | pd.Index):
        return to_plain(value.to_numpy())
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_plain(item) for item in value]
    raise TypeError(f"Cannot save a value of type {type(value).__name__}: {value!r}.")


def from_plain(value: Any) -> Any:
    """Inverse of :func:`to_plain`, up to tuples, sets and arrays of text becoming lists."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__frame__" in value:
        index = pd.Index(from_plain(value["index"]), name="epoch")
        columns = {name: from_plain(column) for name, column in value["__frame__"].items()}
        return pd.DataFrame(columns, index=index)
    if "__array__" in value:
        return value["__array__"].numpy()
    return {key: from_plain(item) for key, item in value.items()}


class SavingMixin(VCIBase):
    """``save`` and ``load`` with scvi-tools' keys and signatures, safe to load from anybody."""

    reference_: ReferenceState | None

    def save(
        self,
        dir_path: str | os.PathLike[str],
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save weights, registry, settings and history.

        Parameters
        ----------
        dir_path
            Directory to write to.
        prefix
            Prefix of the file names.
        overwrite
            Whether an existing directory may be written to.
        save_anndata
            Whether to save the AnnData as well.
        **anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        ValueError
            If the directory exists and ``overwrite`` is false.
        """
        folder = Path(dir_path)
        if folder.exists() and not overwrite:
            raise ValueError(f"{folder} already exists; choose another or pass overwrite=True.")
        folder.mkdir(parents=True, exist_ok=True)
        attributes = {k: v for k, v in vars(self).items() if k[-1] == "_" and k[0] != "_"}
        reference, calibration = self.reference_, self.calibration
        attributes["reference_"] = None if reference is None else reference.new_weights
        attributes["calibration_"] = None if calibration is None else calibration.to_arrays()
        payload = {
            "format": _FORMAT_VERSION,
            "class": type(self).__name__,
            SAVE_KEYS.MODEL_STATE_DICT_KEY: {
                k: v.cpu() for k, v in self.module.state_dict().items()
            },
            SAVE_KEYS.VAR_NAMES_KEY: list(map(str, self.genes)),
            SAVE_KEYS.ATTR_DICT_KEY: to_plain(attributes),
        }
        torch.save(payload, folder / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")
        if save_anndata and self.adata is not None:
            path = folder / f"{prefix or ''}{SAVE_KEYS.ADATA_FNAME}"
            self.adata.write_h5ad(path, **anndata_write_kwargs)

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Self:
        """Load a saved model.

        The file is read as tensors and plain data; no code in it is run. Training, validation and
        test cells are found in ``adata`` by name, whatever their order.

        Parameters
        ----------
        dir_path
            Directory written by :meth:`save`.
        adata
            Cells to attach, with the model's genes in the model's order. ``None`` takes the
            AnnData saved along, if there is one; ``False`` loads without cells, to predict for
            others.
        accelerator, device
            Where the model goes, see :meth:`scvi.model.base.BaseModelClass.load`.
        prefix
            Prefix of the file names.

        Raises
        ------
        ValueError
            If there is no model, it belongs to another class or was saved in another format, or
            ``adata`` has other genes, or expression that the model cannot read.
        """
        folder = Path(dir_path)
        payload = _read(folder, prefix, cls.__name__)
        attributes = from_plain(payload[SAVE_KEYS.ATTR_DICT_KEY])
        registry = attributes.pop("registry_")
        saved = folder / f"{prefix or ''}{SAVE_KEYS.ADATA_FNAME}"
        if adata is None and saved.exists():
            adata = anndata.read_h5ad(saved)
        cells: AnnData | None = None if adata is None or adata is False else adata
        params = attributes.pop("init_params_")["non_kwargs"]
        if cells is not None:
            _check_genes(cells, payload[SAVE_KEYS.VAR_NAMES_KEY])
            # A model without cells refuses them before anything is written.
            cls(registry=registry, **params).cells(cells)
            cls.setup_anndata(cells, source_registry=registry, **registry["setup_args"])
        model = cls(cells, registry=None if cells is not None else registry, **params)
        calibration, new_weights = attributes.pop("calibration_"), attributes.pop("reference_")
        if calibration is not None:
            model.calibration = Calibration.from_arrays(calibration)
            carried = model.calibration.reference
            if carried is not None:
                model.reference_ = ReferenceState(carried, new_weights)
        model.init_params_ = {"kwargs": {}, "non_kwargs": params}
        for name, value in attributes.items():
            setattr(model, name, value)
        model.module.load_state_dict(payload[SAVE_KEYS.MODEL_STATE_DICT_KEY])
        if model.reference_ is not None:
            model.reference_.freeze(model.module)
        model.module.eval()
        _, _, target = parse_device_args(
            accelerator=accelerator, devices=device, return_device="torch"
        )
        model.to_device(target)
        return model

    @classmethod
    def load_registry(
        cls, dir_path: str | os.PathLike[str], prefix: str | None = None
    ) -> dict[str, Any]:
        """Read the registry of a saved model; no code in the file is run.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`load`.

        Raises
        ------
        ValueError
            As :meth:`load`.
        """
        payload = _read(Path(dir_path), prefix, cls.__name__)
        return from_plain(payload[SAVE_KEYS.ATTR_DICT_KEY]["registry_"])

    @classmethod
    def view_setup_args(cls, dir_path: str | os.PathLike[str], prefix: str | None = None) -> None:
        """Print the arguments of ``setup_anndata`` of a saved model.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`load`.
        """
        AnnDataManager.view_setup_method_args(cls.load_registry(dir_path, prefix))


def _read(folder: Path, prefix: str | None, class_name: str) -> dict[str, Any]:
    """Read tensors and plain data of a model of a class."""
    path = folder / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}"
    if not path.exists():
        raise ValueError(f"No saved model at {path}.")
    payload = torch.load(path, map_location="cpu", weights_only=True)
    if payload.get("class") != class_name:
        raise ValueError(f"{path} holds a {payload.get('class')!r}, not a {class_name}.")
    if payload.get("format") != _FORMAT_VERSION:
        raise ValueError(
            f"{path} was saved in format {payload.get('format')}; this version of scvci reads "
            f"format {_FORMAT_VERSION}. Train the model again."
        )
    return payload


def _check_genes(adata: AnnData, genes: list[str]) -> None:
    if adata.n_vars == len(genes) and (adata.var_names.to_numpy() == np.array(genes)).all():
        return
    raise ValueError(
        "The genes of adata are not the model's genes in the model's order. Pass "
        "adata[:, genes].copy() with the saved model's genes, or load with adata=False and give "
        "these cells to predict_counterfactual(adata=...), which aligns genes by name."
    )
