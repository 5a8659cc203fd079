"""The parity certificate: an exported checkpoint, loaded in a fresh process, gives the logits of the repaired model.

`python -m seawall.models.files.parity MODEL_SETTINGS PROBES` prints one JSON object.
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
from seawall.errors import ArtifactError
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.open import Checkpoint


def probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], path: Path) -> None:
    """Saves token ids and the model's logits (T, V) for each prompt."""
    tensors: dict[str, Tensor] = {}
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        tensors[f"ids/{number}"] = ids
        tensors[f"logits/{number}"] = _logits(model, ids)
    save_file(tensors, path)


def compare_in_fresh_process(checkpoint: Checkpoint, probes: Path) -> dict[str, object]:
    """{"max_logit_difference", "fingerprint"} of a checkpoint, measured in another process.

    Raises:
        ArtifactError: the checkpoint cannot be loaded there.
    """
    command = [sys.executable, "-m", "seawall.models.files.parity", checkpoint.config.model_dump_json(), str(probes)]
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


def main(settings: str, probes: str) -> None:
    """Entry point of the fresh process."""
    model, _ = load_model(ModelConfig.model_validate_json(settings))
    tensors = load_file(probes)
    numbers = [name.partition("/")[2] for name in tensors if name.startswith("ids/")]
    differences = [
        float((_logits(model, tensors[f"ids/{number}"]) - tensors[f"logits/{number}"]).abs().max())
        for number in numbers
    ]
    result = {"max_logit_difference": max(differences), "fingerprint": model_fingerprint(model)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
