"""Saving and loading of tensors and plain data only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import anndata
import numpy as np
import pandas as pd
import torch
from scvi.model._utils import parse_device_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

_MODEL_FILE = "model.pt"
_ADATA_FILE = "adata.h5ad"
#: Raised when the layout of the file changes; older layouts stay readable.
_FORMAT_VERSION = 1


def to_plain(value: Any) -> Any:
    """Turn registry and history into dictionaries, lists, tensors, numbers and strings.

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
        return {"__names__": [str(v) for v in value.tolist()]}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_plain(item) for item in value]
    raise TypeError(f"Cannot save a value of type {type(value).__name__}: {value!r}.")


def from_plain(value: Any) -> Any:
    """Inverse of :func:`to_plain`, up to tuples and sets becoming lists."""
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
    if "__names__" in value:
        return np.array(value["__names__"], dtype=object)
    return {key: from_plain(item) for key, item in value.items()}


class PersistenceMixin:
    """``save`` and ``load`` with scvi-tools' signatures, safe to load from anybody."""

    _freeze: Callable[[], None]

    def save(
        self,
        dir_path: str,
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
            raise ValueError(f"{dir_path} already exists; choose another or pass overwrite=True.")
        folder.mkdir(parents=True, exist_ok=True)
        attributes = {k: v for k, v in vars(self).items() if k[-1] == "_" and k[0] != "_"}
        payload = {
            "format": _FORMAT_VERSION,
            "class": type(self).__name__,
            "state": {k: v.cpu() for k, v in self.module.state_dict().items()},  # type: ignore[attr-defined]
            "attributes": to_plain(attributes),
        }
        torch.save(payload, folder / f"{prefix or ''}{_MODEL_FILE}")
        if save_anndata and self.adata is not None:  # type: ignore[attr-defined]
            path = folder / f"{prefix or ''}{_ADATA_FILE}"
            self.adata.write_h5ad(path, **anndata_write_kwargs)  # type: ignore[attr-defined]

    @classmethod
    def load(
        cls,
        dir_path: str,
        adata: AnnData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Self:
        """Load a saved model.

        The file is read as tensors and plain data; no code in it is run.

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
            If there is no model, it belongs to another class, or ``adata`` has other genes.
        """
        folder = Path(dir_path)
        path = folder / f"{prefix or ''}{_MODEL_FILE}"
        if not path.exists():
            raise ValueError(f"No saved model at {path}.")
        payload = torch.load(path, map_location="cpu", weights_only=True)
        if payload.get("class") != cls.__name__:
            raise ValueError(f"{path} holds a {payload.get('class')!r}, not a {cls.__name__}.")
        attributes = from_plain(payload["attributes"])
        registry = attributes.pop("registry_")
        saved = folder / f"{prefix or ''}{_ADATA_FILE}"
        if adata is None and saved.exists():
            adata = anndata.read_h5ad(saved)
        cells: AnnData | None = None if adata is None or adata is False else adata
        if cells is not None:
            _check_genes(cells, attributes["gene_names_"])
            cls.setup_anndata(cells, source_registry=registry, **registry["setup_args"])  # type: ignore[attr-defined]
        params = attributes.pop("init_params_")["non_kwargs"]
        model = cls(cells, registry=None if cells is not None else registry, **params)  # type: ignore[call-arg]
        for name, value in attributes.items():
            setattr(model, name, value)
        model.module.load_state_dict(payload["state"])  # type: ignore[attr-defined]
        model._freeze()
        model.module.eval()  # type: ignore[attr-defined]
        _, _, target = parse_device_args(
            accelerator=accelerator, devices=device, return_device="torch"
        )
        model.to_device(target)  # type: ignore[attr-defined]
        return model


def _check_genes(adata: AnnData, genes: np.ndarray) -> None:
    if adata.n_vars == len(genes) and (adata.var_names.to_numpy() == genes).all():
        return
    raise ValueError(
        "The genes of adata are not the model's genes in the model's order. Pass "
        "adata[:, genes].copy() with the saved model's genes, or load with adata=False and give "
        "these cells to predict_counterfactual(adata=...), which aligns genes by name."
    )
