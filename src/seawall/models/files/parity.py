"""Parity: an exported checkpoint holds the repaired model's tensors, and gives its logits in a fresh process.

`python -m seawall.models.files.parity MODEL_SETTINGS PROBES [--weights]` prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.model import ModelConfig
from seawall.data.templating import encode_prompt
from seawall.data.types import Messages
from seawall.distributed.process import environment_alone
from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.open import Checkpoint
from seawall.models.files.stream import outline, reading


def holds_weights(folder: Path, model: PreTrainedModel) -> bool:
    """Compares a checkpoint's tensors with a model's, bit for bit; memory holds one tensor or expert at a time.

    Returns:
        False where nothing was compared, since Python code of the checkpoint defines how its files are read.

    Raises:
        ArtifactError: a tensor differs, or the files lack one.
    """
    try:
        checkpoint = outline(folder)
    except UnsupportedModelError:
        return False
    state, compared = model.state_dict(), set[str]()
    with reading(checkpoint) as reader:
        for part in checkpoint.sources:
            for name, tensor in reader.read(part).items():
                _require_same(folder, name, tensor, state[name] if part.expert is None else state[name][part.expert])
                compared.add(name)
    for name, stored in checkpoint.aliases().items():
        _require_same(folder, name, state[stored], state[name])
        compared.add(name)
    absent = sorted(state.keys() - compared)
    if absent:
        raise ArtifactError(f"the checkpoint in {folder} lacks tensors of the model", got=f"no {absent[0]}")
    return True


def _require_same(folder: Path, name: str, stored: Tensor, expected: Tensor) -> None:
    if (
        stored.dtype == expected.dtype
        and stored.shape == expected.shape
        and torch.equal(_bytes(stored), _bytes(expected))
    ):
        return
    raise ArtifactError(
        f"the checkpoint in {folder} is not the model in memory: {name} differs",
        got=f"{stored.dtype}, shape {tuple(stored.shape)}",
        expected=f"the bits of a tensor of {expected.dtype}, shape {tuple(expected.shape)}",
        remedy="report this as a bug",
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], path: Path) -> None:
    """Saves token ids and the model's logits (T, V) for each prompt."""
    tensors: dict[str, Tensor] = {}
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        tensors[f"ids/{number}"] = ids
        tensors[f"logits/{number}"] = _logits(model, ids)
    save_file(tensors, path)


def compare_in_fresh_process(checkpoint: Checkpoint, probes: Path, *, weights: bool) -> dict[str, object]:
    """{"max_logit_difference", "fingerprint"} of a checkpoint, measured in another process.

    Args:
        checkpoint: to load there.
        probes: the file of `probe`.
        weights: whether to compute the fingerprint, which is None otherwise.

    Raises:
        ArtifactError: the checkpoint cannot be loaded there.
    """
    command = [sys.executable, "-m", "seawall.models.files.parity", checkpoint.config.model_dump_json(), str(probes)]
    command += ["--weights"] if weights else []
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment_alone())
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise ArtifactError("the exported checkpoint cannot be loaded again", got=last, remedy="report this as a bug")
    comparison: dict[str, object] = json.loads(process.stdout.strip().splitlines()[-1])
    return comparison


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        output: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits[0]
    return output.float().cpu().contiguous()


def main(settings: str, probes: str, weights: str | None = None) -> None:
    """Entry point of the fresh process."""
    model, _ = load_model(ModelConfig.model_validate_json(settings))
    tensors = load_file(probes)
    numbers = [name.partition("/")[2] for name in tensors if name.startswith("ids/")]
    differences = [
        float((_logits(model, tensors[f"ids/{number}"]) - tensors[f"logits/{number}"]).abs().max())
        for number in numbers
    ]
    fingerprint = None if weights is None else model_fingerprint(model)
    result = {"max_logit_difference": max(differences), "fingerprint": fingerprint}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
