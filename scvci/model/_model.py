"""What the models have in common: parts of a split, training, files."""

from __future__ import annotations

import inspect
import secrets
import warnings
from abc import abstractmethod
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import anndata
import numpy as np
import pandas as pd
import torch
from scvi import settings
from scvi.data import AnnDataManager
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass
from scvi.model.base._constants import SAVE_KEYS

from scvci._files import write_h5ad
from scvci._numbers import batch_size_or_default, seed_number
from scvci.data._results import Results
from scvci.data._splitter import CounterfactualSplitter, split_cells
from scvci.train import VCITrainingPlan
from scvci.train._callbacks import KeepWeights
from scvci.train._resume import Checkpoints, WholeFiles
from scvci.train._runner import InterruptibleRunner

from ._file_checks import blaming, blueprint, check_attributes, check_same_names, check_tensors
from ._identity import identify
from ._rollback import AllOrNothing
from ._saving import find_cells, from_plain, read_model, to_plain, write_model
from ._seeded import Seeded
from ._train_arguments import check_train_arguments, external_parts

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from anndata import AnnData

    from scvci.data._splitter import CellTable, Sampler
    from scvci.module import TrainingDefaults
    from scvci.module._objective import ObjectiveModule

#: Parts of a split.
type Part = Literal["train", "validation", "test"]

#: Validation criterion: the weighted objective on validation cells with fixed targets. It holds
#: the likelihood of the counterfactual and the divergence, not only the reconstruction.
_MONITOR = "validation_loss"


def _part(name: Part, doc: str) -> property:
    """Rows of a part of the split, found by the names of its cells."""
    return property(
        lambda model: model.part(name), lambda model, rows: model._set_part(name, rows), doc=doc
    )


class ModelBase(BaseModelClass):
    """Training and files of a model, whatever the outcome of its cells.

    A subclass says how its cells are read, what the sampler draws for them, and what follows
    training.

    Parameters
    ----------
    adata
        Registered AnnData.
    registry
        Registry of a saved model, in place of ``adata``.
    """

    module: ObjectiveModule
    is_trained_: bool
    #: Attributes that files hold, and their types.
    saved_attributes: ClassVar[dict[str, type | tuple[type, ...]]] = {
        "registry_": dict,
        "init_params_": dict,
        "is_trained_": bool,
        "seed_": int,
        "n_trainings_": int,
        "parts_": dict,
        "trained_cells_": list,
        "train_indices_": (np.ndarray, NoneType),
        "validation_indices_": (np.ndarray, NoneType),
        "test_indices_": (np.ndarray, NoneType),
        "history_": (dict, NoneType),
        "run_name_": str,
        "run_id_": str,
    }

    def __init__(self, adata: AnnData | None, registry: dict | None, seed: int | None) -> None:
        super().__init__(adata, registry)
        self.seed_ = _choose_seed(seed)
        self.n_trainings_ = 0
        #: Names of the cells of each part of the last split.
        self.parts_: dict[str, list[str]] = {}
        #: Names of all cells that a training has seen, those of a reference included.
        self.trained_cells_: list[str] = []
        #: What analyses keep until the model is trained again.
        self.cache: dict[str, Any] = {}

    @abstractmethod
    def cells(self, adata: AnnData | None = None, indices: Any = None) -> CellTable:
        """Read cells as the model does, and check them.

        Parameters
        ----------
        adata
            The cells, by default the model's.
        indices
            Rows, mask or names of the cells in question; the others are not judged.
        """

    @property
    @abstractmethod
    def training_defaults(self) -> TrainingDefaults:
        """How the networks are trained where the user does not say."""

    @abstractmethod
    def _start_training(self, cells: Any) -> Sampler:
        """Return what draws targets for training cells; a first training sets scales here."""

    def _after_training(self, cells: Any, rng: np.random.Generator, show_progress: bool) -> None:
        """Follow a training up, given the cells that it and early stopping saw."""

    def _check_labels(self, cells: Any) -> None:
        """Raise if labels have changed since ``setup_anndata``."""

    @classmethod
    @abstractmethod
    def _check_variables(cls, adata: AnnData, names: list[str]) -> None:
        """Raise if the variables of an AnnData are not those of a saved model."""

    @abstractmethod
    def _variable_names(self) -> list[str]:
        """Names of the variables, in the model's order, for the file."""

    def _state_to_save(self) -> dict[str, Any]:
        """State that is no attribute in plain form, by name."""
        return {}

    def _restore_state(self, attributes: dict[str, Any]) -> None:
        """Take what :meth:`_state_to_save` gave out of the attributes of a file."""

    def _check_restored(self) -> None:
        """Raise if what a file held does not fit the module, which may be without memory."""

    @classmethod
    def _check_memory(cls, registry: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        """Raise if names in a file's registry ask for more memory than its tensors."""

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> None:
        """Not available: scvi-tools' on-disk registry has no place for a treatment.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            f"{cls.__name__} cannot be set up on annbatch collections: their registry has no "
            "treatment field. Use setup_anndata; backed AnnData are read from disk."
        )

    # -- names ----------------------------------------------------------------------------------

    def _state(self, key: str) -> dict[str, Any]:
        return self.registry["field_registries"][key]["state_registry"]

    @property
    def setup_args(self) -> Mapping[str, Any]:
        """Arguments of ``setup_anndata``."""
        return self.registry["setup_args"]

    def own_cells(self, action: str) -> Any:
        """Read the model's own cells.

        Parameters
        ----------
        action
            What they are needed for, for the message.
        """
        if self.adata is None:
            raise ValueError(
                f"The model was loaded without cells; load it with adata= to {action}."
            )
        return self.cells()

    def require_trained(self, action: str) -> None:
        """Raise unless the model is trained.

        Parameters
        ----------
        action
            What is about to be done, for the message.
        """
        if not self.is_trained_:
            raise RuntimeError(f"The model is not trained; call train() before you {action}.")

    def results(self, adata: AnnData) -> Results:
        """Writer of results into an AnnData."""
        return Results(adata, self.setup_args)

    def on_device(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move a batch to the model's device."""
        device = self.module.device
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    # -- cells of each part, known by name ------------------------------------------------------

    def part(self, name: Part) -> np.ndarray:
        """Rows of the training, validation or test cells, found by name.

        Parameters
        ----------
        name
            ``"train"``, ``"validation"`` or ``"test"``.
        """
        if self.adata is None:
            stored = getattr(self, f"{name}_indices_")
            return np.asarray([] if stored is None else stored, dtype=np.int64)
        rows = self.adata.obs_names.get_indexer(pd.Index(self.parts_.get(name, []), dtype=object))
        return np.sort(rows[rows >= 0]).astype(np.int64)

    def _set_part(self, name: Part, rows: np.ndarray | None) -> None:
        rows = np.asarray([] if rows is None else rows, dtype=np.int64)
        setattr(self, f"{name}_indices_", rows)
        if self.adata is not None:
            self.parts_[name] = self.adata.obs_names[rows].astype(str).tolist()

    train_indices = _part("train", "Rows of ``adata`` that the last training was fitted to.")
    validation_indices = _part(
        "validation", "Rows of ``adata`` that chose when the last training stopped."
    )
    test_indices = _part("test", "Rows of ``adata`` that entered nothing.")

    # -- training -------------------------------------------------------------------------------

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        *,
        train_size: float = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int | None = None,
        early_stopping: bool = True,
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every_n_epochs: int = 10,
        resume_from: str | os.PathLike[str] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model.

        A call that fails leaves the model as it was before. Ctrl-C ends training early: the model
        then has the best weights so far (without early stopping those of the last finished
        epoch), is calibrated, and can be used or saved, and ``KeyboardInterrupt`` goes on, so
        that a script ends unless it catches it. Before the first epoch is finished, and during
        the calibration, Ctrl-C undoes the call like a failure.

        Trainings and other seeded calls in several threads of a process take turns.

        Parameters
        ----------
        max_epochs
            Most epochs to train for; by default so many that there are about 4,000 steps, at most
            400 epochs (1,000 with the ``paper`` preset; for images 6,000 steps).
        accelerator, devices
            See :class:`~scvi.train.Trainer`; by default a GPU where there is one.
        train_size, validation_size
            Shares of the cells, drawn within each (treatment, stratum), for images within each
            stratum; ``None`` gives the rest to validation. Cells in neither are for testing and
            enter nothing.
        shuffle_set_split
            Whether the split is random.
        batch_size
            Cells per batch; by default ``scvi.settings.batch_size``, 128 (64 with the ``paper``
            preset).
        early_stopping
            Stop when the objective on validation cells with fixed counterfactual targets no
            longer improves, and restore the best weights.
        datasplitter_kwargs
            ``external_indexing``: rows, masks or names of the training, validation and test
            cells; the last two can be left out.
        plan_kwargs
            Passed to :class:`~scvci.train.VCITrainingPlan`.
        checkpoint_dir
            Folder for a checkpoint, ``training.ckpt``, which is replaced as training proceeds;
            ``None`` for none.
        checkpoint_every_n_epochs
            Epochs between two checkpoints.
        resume_from
            Such a folder, or file: go on from there. With the same cells, model, seed and
            arguments, training ends as if it had not stopped, on a CPU with the same number of
            threads to the bit. In a second training the model is that which the second training
            started from.
        **trainer_kwargs
            Passed to :class:`~scvi.train.Trainer`. ``enable_progress_bar=False`` also hides the
            progress of the calibration that follows training.

        Raises
        ------
        TypeError, ValueError
            If the model holds no cells, labels in ``obs`` changed since ``setup_anndata``, an
            argument makes no sense, or a checkpoint is damaged or of another training.
        NotFiniteError
            If a term of the objective or a weight is NaN or infinite at the end of an epoch.
        KeyboardInterrupt
            If the user stopped training.

        Warns
        -----
        UserWarning
            If the latent state holds no information on single cells, or training was stopped.
        """
        check_train_arguments(
            max_epochs,
            train_size,
            validation_size,
            batch_size,
            datasplitter_kwargs,
            checkpoint_every_n_epochs,
        )
        cells = self.own_cells("train it")
        self._check_labels(cells)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError(
                "There is nothing new to train: the reference was trained on all strata, batches "
                "and treatments of these cells. Predict with the model as it is."
            )
        defaults = self.training_defaults
        batch_size = batch_size_or_default(batch_size, defaults.batch_size)
        seed = self.seed_ + self.n_trainings_
        rng = np.random.default_rng(seed)
        external = (datasplitter_kwargs or {}).get("external_indexing")
        if external is None:
            order = rng if shuffle_set_split else None
            parts = split_cells(cells.group, train_size, validation_size, order)
        else:
            parts = external_parts(cells.adata, external)
        if early_stopping and not len(parts[1]):
            warnings.warn(
                "There are no validation cells, so training runs for max_epochs without early "
                "stopping. Lower train_size for an honest stopping criterion.",
                UserWarning,
                stacklevel=2,
            )
            early_stopping = False
        if max_epochs is None:
            max_epochs = defaults.n_epochs(len(parts[0]), batch_size)
        seen, show_progress = self.seen_cells(), trainer_kwargs.get("enable_progress_bar", True)
        checkpoints = Checkpoints.of(checkpoint_dir, checkpoint_every_n_epochs, resume_from)
        with AllOrNothing(self), Seeded(seed):
            sampler = self._start_training(cells.take(parts[0]))
            splitter = CounterfactualSplitter(sampler, parts, batch_size=batch_size, seed=seed)
            self.module.train()
            self.cache.clear()
            options = {"early_stopping": early_stopping, **trainer_kwargs}
            plan_options = self._plan_options(plan_kwargs)
            kept = self._run(
                splitter, max_epochs, accelerator, devices, plan_options, options, checkpoints
            )
            rows = np.sort(np.concatenate(parts[:2]))
            self._after_training(cells.take(rows), rng, show_progress)
            self.trained_cells_ = sorted({*seen, *self.parts_["train"]})
            self.n_trainings_ += 1
        if kept.interrupted:
            warnings.warn(
                f"Training was stopped. The model has the weights of epoch {kept.best_epoch} "
                f"({'the best' if early_stopping else 'the last finished'} so far, counted from "
                "0), is calibrated, and can be used or saved.",
                UserWarning,
                stacklevel=2,
            )
            raise KeyboardInterrupt

    def seen_cells(self) -> list[str]:
        """Names of all cells that any training was fitted to or stopped by."""
        return sorted({*self.trained_cells_, *self.parts_.get("validation", [])})

    def _plan_options(self, plan_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """Arguments of the training plan: the networks' defaults and the user's."""
        return {**self.training_defaults.plan, **(plan_kwargs or {})}

    def _run(
        self,
        splitter: CounterfactualSplitter,
        max_epochs: int,
        accelerator: str,
        devices: int | list[int] | str,
        plan_options: dict[str, Any],
        options: dict[str, Any],
        checkpoints: Checkpoints | None,
    ) -> KeepWeights:
        """Hand everything to scvi-tools' runner; return what kept the weights."""
        if options["early_stopping"]:
            options.setdefault("early_stopping_monitor", _MONITOR)
            options.setdefault("early_stopping_patience", 20)
        if splitter.n_val:
            options.setdefault("check_val_every_n_epoch", 1)
        callbacks = list(options.get("callbacks") or [])
        kept = KeepWeights(
            options["early_stopping_monitor"] if options["early_stopping"] else None
        )
        if checkpoints is not None:
            arguments = {"max_epochs": max_epochs, "plan_kwargs": plan_options, **options}
            files = WholeFiles(identify(self, splitter, arguments))
            options["plugins"] = [*(options.get("plugins") or []), files]
            options["ckpt_path"] = checkpoints.resume_from
            # First, for what other callbacks do in an epoch is done again where it goes on.
            callbacks.insert(0, checkpoints)
        runner = InterruptibleRunner(
            kept,
            model=self,
            training_plan=VCITrainingPlan(self.module, **plan_options),
            data_splitter=splitter,
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            **{**options, "callbacks": [*callbacks, kept]},
        )
        # scvi-tools adds to the history of a trained model; one carried over has none yet.
        carried_over = self.is_trained_ and self.history_ is None
        self.is_trained_ = self.is_trained_ and not carried_over
        # Lightning suggests worker processes; in-memory AnnData are faster without.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*number of training batches.*")
            runner()
        return kept

    # -- files ----------------------------------------------------------------------------------

    def save(
        self,
        dir_path: str | os.PathLike[str],
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save weights, registry, settings and history, whole or not at all.

        Whatever happens, a full disk or the end of the process, the directory holds the old model
        with its cells or the new one with its own. Cells that a former model in the directory was
        saved with go with it.

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
            Of the data sets in the AnnData's file, as ``compression="gzip"``.

        Raises
        ------
        ValueError
            If the directory exists and ``overwrite`` is false, or weights are not finite.
        OSError
            If a file cannot be written, with the cause. What was there is as it was.
        """
        folder = Path(dir_path)
        if folder.exists() and not overwrite:
            raise ValueError(f"{folder} already exists; choose another or pass overwrite=True.")
        attributes = {name: getattr(self, name, None) for name in self.saved_attributes}
        state = {
            # Of a view, torch saves all that it is a view of.
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.module.state_dict().items()
        }
        try:
            check_tensors(self.module, state)
        except ValueError as error:
            raise ValueError(f"The model cannot be saved: {error}.") from error
        content = {
            SAVE_KEYS.MODEL_STATE_DICT_KEY: state,
            SAVE_KEYS.VAR_NAMES_KEY: self._variable_names(),
            SAVE_KEYS.ATTR_DICT_KEY: to_plain({**attributes, **self._state_to_save()}),
        }
        write_cells = None
        if save_anndata and self.adata is not None:
            write_cells = partial(write_h5ad, adata=self.adata, **anndata_write_kwargs)
        write_model(folder, prefix, type(self).__name__, content, write_cells)

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        **networks: Any,
    ) -> Self:
        """Load a saved model.

        The file is read as tensors and plain data; no code in it is run. It must have the checksum
        that it was saved with, and what it holds must fit together. Training, validation and test
        cells are found in ``adata`` by name, whatever their order.

        Parameters
        ----------
        dir_path
            Directory written by :meth:`save`.
        adata
            Cells to attach, with the model's genes in the model's order, or images of its shape.
            ``None`` takes the AnnData saved along, if there is one, which must be as it was saved;
            ``False`` loads without cells, to predict for others.
        accelerator, device
            Where the model goes, see :meth:`scvi.model.base.BaseModelClass.load`.
        prefix
            Prefix of the file names.
        **networks
            Networks of the user's own that the model was built with; files do not hold them, only
            their weights.

        Raises
        ------
        ValueError
            If there is no model, its file or that of its cells is damaged, it belongs to another
            class or was saved in another format, or ``adata`` has other genes, or expression that
            the model cannot read.

        Warns
        -----
        UserWarning
            If the cells saved along are gone, or others are in their place that the model was not
            saved with.
        """
        folder = Path(dir_path)
        path, payload = read_model(folder, prefix, cls.__name__)
        with blaming(path):
            state, names = (
                payload[SAVE_KEYS.MODEL_STATE_DICT_KEY],
                payload[SAVE_KEYS.VAR_NAMES_KEY],
            )
            attributes = from_plain(payload[SAVE_KEYS.ATTR_DICT_KEY])
            check_attributes(attributes, cls.saved_attributes)
            registry = attributes.pop("registry_")
            saved_params = attributes.pop("init_params_")["non_kwargs"]
            params = {**saved_params, **networks}
            known = dict(inspect.signature(cls.setup_anndata).parameters)
            known = {k: v for k, v in known.items() if k != "adata" and v.kind != v.VAR_KEYWORD}
            check_same_names(registry["setup_args"], known, "setup argument")
            cls._check_memory(registry, state)
            with blueprint(len(state)):
                plan = cls(registry=registry, **params)
                plan._restore_state(dict(attributes))
            check_tensors(plan.module, state)
            plan._check_restored()
            if names != plan._variable_names():
                raise ValueError("its names of variables contradict each other")
        if adata is None:
            saved = find_cells(folder, prefix, payload["cells"])
            adata = False if saved is None else anndata.read_h5ad(saved)
        cells: AnnData | None = None if adata is False else adata
        if cells is not None:
            cls._check_variables(cells, names)
            # A model without cells refuses them before anything is written.
            plan.cells(cells)
            cls.setup_anndata(cells, source_registry=registry, **registry["setup_args"])
        model = cls(cells, registry=None if cells is not None else registry, **params)
        model._restore_state(attributes)
        model.init_params_ = {"kwargs": {}, "non_kwargs": saved_params}
        for name, value in attributes.items():
            setattr(model, name, value)
        model.module.load_state_dict(state)
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
        path, payload = read_model(Path(dir_path), prefix, cls.__name__)
        with blaming(path):
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


def _choose_seed(seed: int | None) -> int:
    if seed is not None:
        return seed_number(seed)
    return seed_number(settings.seed) if settings.seed is not None else secrets.randbelow(2**31)


def raise_if_changed(labels: Mapping[str, tuple[np.ndarray, np.ndarray]], names: pd.Index) -> None:
    """Raise if labels are not what ``setup_anndata`` saw.

    Parameters
    ----------
    labels
        By column of ``obs``: values now and then, shape ``(n_cells,)``.
    names
        Names of the cells.

    Raises
    ------
    ValueError
        With the first cell whose label changed.
    """
    for name, (now, then) in labels.items():
        changed = now != then
        if changed.any():
            raise ValueError(
                f"obs[{name!r}] has changed in {int(changed.sum())} cells since setup_anndata "
                f"(first: {names[int(np.argmax(changed))]!r}). Call setup_anndata again "
                "and build a new model, or put the labels back."
            )
