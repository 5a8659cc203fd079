"""Reads the weights of a checkpoint one tensor or one expert at a time, named and stacked as in memory.

A stack of experts is read in slices, whether the files store one stacked tensor or one tensor per expert. Nothing stays
in memory, and no tensor is read twice.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter
from transformers.pytorch_utils import Conv1D

from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError
from seawall.models.files.accounted import require_accounted
from seawall.models.files.checkpoint import TensorHeader, read_config, read_headers, weight_files
from seawall.models.files.inspect import meta_model
from seawall.models.files.load import library_errors, load_architecture, require_plain_weights
from seawall.models.files.tensor_roles import LoadTarget, load_targets
from seawall.models.moe.find import find_moe, routed_stacks

_EXPERT = re.compile(r"experts\.(\d+)\.")


class Part(NamedTuple):
    """The unit of reading: a whole tensor, or one expert's slice of a stack."""

    name: str
    expert: int | None = None


class Matrix(NamedTuple):
    """The shape of a weight matrix or of a stack of expert matrices; `transposed`: stored as (columns, rows)."""

    shape: tuple[int, ...]
    transposed: bool


@dataclass(slots=True)
class _Sources:
    """The tensors on disk that make up a part: (name, pattern of the converter that the name matches)."""

    converter: WeightConverter | None = None
    sliced: bool = False
    names: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class CheckpointOutline:
    """A checkpoint as its configuration and file headers describe it; no weight is read.

    Attributes:
        folder: the checkpoint's folder.
        model: the model on the meta device.
        sources: for each part, the tensors on disk that make it up; experts of a stack in order.
    """

    folder: Path
    model: PreTrainedModel
    sources: Mapping[Part, _Sources]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the loaded model."""
        return {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}

    def cut(self, part: Part) -> bool:
        """Whether loading splits this part into several tensors of the model."""
        return bool(_extra_suffixes(self.sources[part]))

    def aliases(self) -> dict[str, str]:
        """Names of tied weights that the files hold under another name, with that name."""
        tensors = dict(self.model.named_parameters(remove_duplicate=False))
        read = {part.name for part in self.sources}
        by_identity = {id(tensors[name]): name for name in read if name in tensors}
        return {
            name: by_identity[id(tensor)]
            for name, tensor in tensors.items()
            if name not in read and id(tensor) in by_identity
        }


def outline(folder: Path) -> CheckpointOutline:
    """The outline of the checkpoint in a folder.

    Raises:
        UnsupportedModelError: the model is no causal language model, is quantised, or has no safetensors weights.
        ArtifactError: files are damaged, missing or incomplete.
    """
    require_plain_weights(folder, read_config(folder))
    config = ModelConfig(id=str(folder))
    model = meta_model(load_architecture(folder, config), config)
    headers = read_headers(folder)
    checkpoint = CheckpointOutline(folder, model, _sources(model, headers))
    require_accounted(folder, model, headers)
    missing = _missing_tensors(checkpoint)
    if missing:
        raise ArtifactError(
            f"the weights in {folder} are incomplete",
            got=f"no values for {len(missing)} tensors, {missing[0]} first",
            remedy="copy or download the model again",
        )
    return checkpoint


def matrices(model: PreTrainedModel) -> dict[str, Matrix]:
    """The weight matrices of linear layers and stacked experts, between the embeddings and the output layer.

    Routers are left out: their output is a choice of experts, not a part of the residual stream.

    Args:
        model: may be on the meta device.
    """
    stacks = routed_stacks(model)
    routers = [layer.router_name for layer in find_moe(model).layers] if stacks else []
    output = model.get_output_embeddings()
    by_name = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output and not _inside(name, routers):
            by_name[f"{name}.weight"] = Matrix(tuple(module.weight.shape), isinstance(module, Conv1D))
    for name, module in stacks.items():
        transposed = bool(vars(module).get("is_transposed", False))
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3:
                by_name[f"{name}.{key}"] = Matrix(tuple(parameter.shape), transposed)
    return by_name


class WeightReader:
    """Reads the parts of one checkpoint; created by `reading`."""

    def __init__(self, outline: CheckpointOutline, files: Mapping[str, Any]) -> None:
        self._outline, self._files = outline, files
        self._shapes = outline.shapes

    def read(self, part: Part) -> dict[str, Tensor]:
        """The tensors that loading makes of a part, in their stored type: several only where loading splits the part.

        An expert's slice comes without the stack dimension.

        Raises:
            UnsupportedModelError: safetensors or transformers cannot read the files.
            ArtifactError: a tensor's shape differs from the model's configuration.
        """
        with _readable(self._outline.folder):
            tensors = self._load(part, self._outline.sources[part])
        for name, tensor in tensors.items():
            expected = self._shapes.get(name, ())[0 if part.expert is None else 1 :]
            if tuple(tensor.shape) != expected:
                raise _wrong_shape(self._outline.folder, name, got=tuple(tensor.shape), expected=expected)
        return tensors

    def _load(self, part: Part, sources: _Sources) -> dict[str, Tensor]:
        if sources.converter is not None:
            return self._convert(part, sources, sources.converter)
        source = self._files[sources.names[0][0]]
        if sources.sliced:
            assert part.expert is not None
            return {part.name: source[part.expert : part.expert + 1].squeeze(0)}
        return {part.name: source[...]}

    def _convert(self, part: Part, sources: _Sources, converter: WeightConverter) -> dict[str, Tensor]:
        fresh_converter = copy.deepcopy(converter)
        for name, pattern in sources.names:
            fresh_converter.add_tensor(part.name, name, pattern, self._files[name][...])
        model = self._outline.model
        converted: dict[str, Any] = fresh_converter.convert(part.name, model=model, config=model.config)
        tensors = {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}
        return tensors if part.expert is None else {name: tensor.squeeze(0) for name, tensor in tensors.items()}


@contextmanager
def reading(outline: CheckpointOutline) -> Iterator[WeightReader]:
    """Inside, the reader reads parts of the checkpoint.

    Raises:
        UnsupportedModelError: safetensors or transformers cannot read the files.
    """
    with ExitStack() as stack:
        with _readable(outline.folder):
            files = stack.enter_context(opened(outline.folder))
        yield WeightReader(outline, files)


def _readable(folder: Path) -> AbstractContextManager[None]:
    return library_errors(f"the weights in {folder} cannot be read")


@contextmanager
def opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Every tensor of a checkpoint by its name on disk, as a lazy slice that reads when indexed."""
    with ExitStack() as stack:
        slices: dict[str, Any] = {}
        for path in weight_files(folder):
            file = stack.enter_context(safe_open(path, framework="pt"))
            slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - a file is no mapping
        yield slices


def _sources(model: PreTrainedModel, headers: Mapping[str, TensorHeader]) -> dict[Part, _Sources]:
    state = model.state_dict()
    stacks = routed_stacks(model)
    stacked = {f"{name}.{key}" for name, stack in stacks.items() for key, _ in stack.named_parameters()}
    sources: dict[Part, _Sources] = {}
    for name, target in load_targets(model, headers).items():
        if target.name not in state:
            continue  # a layer that this class of transformers does not load
        for part in _parts(name, target, state[target.name], target.name in stacked):
            sliced = target.converter is None and part.expert is not None
            sources.setdefault(part, _Sources(target.converter, sliced)).names.append((name, target.pattern))
    return dict(sorted(sources.items(), key=lambda entry: (entry[0].name, entry[0].expert or 0)))


def _parts(name: str, target: LoadTarget, tensor: Tensor, stacked: bool) -> list[Part]:
    if not stacked:
        return [Part(target.name)]
    if target.converter is None:
        return [Part(target.name, expert) for expert in range(tensor.shape[0])]
    expert = _EXPERT.search(name)
    return [Part(target.name, None if expert is None else int(expert[1]))]


def _extra_suffixes(sources: _Sources) -> tuple[str, ...]:
    """Name suffixes of the tensors, after the first, that the converter splits off."""
    return () if sources.converter is None else tuple(sources.converter.target_patterns[1:])


def _inside(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _missing_tensors(checkpoint: CheckpointOutline) -> list[str]:
    """Tensors of the model, and experts of its stacks, that no file holds."""
    state = checkpoint.model.state_dict()
    split_off = tuple(suffix for sources in checkpoint.sources.values() for suffix in _extra_suffixes(sources))
    readable = {part.name for part in checkpoint.sources} | checkpoint.aliases().keys()
    missing = [name for name in state if name not in readable and not name.endswith(split_off)]
    for name in sorted({part.name for part in checkpoint.sources if part.expert is not None}):
        experts = (Part(name, expert) for expert in range(state[name].shape[0]))
        missing += [f"{name}[{part.expert}]" for part in experts if part not in checkpoint.sources]
    return missing


def _wrong_shape(folder: Path, name: str, *, got: tuple[int, ...], expected: tuple[int, ...]) -> ArtifactError:
    return ArtifactError(
        f"the weights in {folder} do not fit their config.json: {name}",
        got=got,
        expected=expected,
        remedy="copy or download the model again",
    )
