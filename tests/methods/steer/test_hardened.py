"""`seawall.load`: a model with the direction that a folder holds, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import seawall
from families import WIDTH, random_ids, tiny, tiny_tokenizer
from planted_refusal import ATTENTION, REFUSE, harmful, refusing_by_attention, refusing_tokenizer
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.hardening import Effect, Hardening
from seawall.errors import ArtifactError, ConfigError
from seawall.methods.steer import hardening
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.hidden.harden import harden, is_hardened

ONES = torch.ones(WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny("olmoe").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def _hardening(fingerprint: str, path: Path, *, layer: int = 1, vector: Tensor = ONES) -> Path:
    before, after = (Rate(rate, 0.0, 1.0, 10, 0) for rate in (0.9, 0.1))
    effects = {"attack:story": Effect(before, after, difference=-0.8, low=-0.9, high=-0.7, p=0.01)}
    Hardening(fingerprint, "float32", layer, -1, 0.5, effects, vector).save(path)
    return path


def test_a_hardened_model_is_the_model_with_its_direction(folder: Path, tmp_path: Path) -> None:
    plain, _ = seawall.load(str(folder), device="cpu")
    steering = _hardening(model_fingerprint(plain), tmp_path / "steer/hardening")
    hardened, tokenizer = seawall.load(str(folder), steering=steering, device="cpu")
    assert tokenizer.chat_template
    assert is_hardened(hardened)
    assert not is_hardened(plain)
    assert model_fingerprint(hardened) == model_fingerprint(plain)
    harden(plain, torch.ones(WIDTH), layer=1, coefficient=0.5)
    with torch.no_grad():
        assert torch.equal(*(model(input_ids=random_ids()).logits for model in (plain, hardened)))


def test_the_hardening_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    steering = _hardening("sha256:" + "0" * 64, tmp_path / "hardening")
    with pytest.raises(ArtifactError, match="the hardening was made from another model"):
        seawall.load(str(folder), steering=steering, device="cpu")
    with pytest.raises(ArtifactError, match=r"hardening\.json is missing"):
        seawall.load(str(folder), steering=tmp_path, device="cpu")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_forged_hardening_that_loses_refusals_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: float
) -> None:
    """Its seal and its claims fit, but the direction points away from the refusal."""
    model = refusing_by_attention()
    model.save_pretrained(tmp_path / "model")
    refusing_tokenizer().save_pretrained(tmp_path / "model")
    direction = torch.zeros(model.config.hidden_size)
    direction[REFUSE] = sign * 10.0
    steering = _hardening(model_fingerprint(model), tmp_path / "hardening", layer=ATTENTION + 1, vector=direction)
    monkeypatch.setattr(hardening, "probe_prompts", lambda: harmful(12))
    if sign > 0:
        assert is_hardened(seawall.load(str(tmp_path / "model"), steering=steering, device="cpu")[0])
    else:
        with pytest.raises(ArtifactError, match="refuse less; got 0 of 12 plain harmful requests refused, 12 without"):
            seawall.load(str(tmp_path / "model"), steering=steering, device="cpu")


def test_probe_prompts_come_from_all_parts_of_the_list() -> None:
    prompts = hardening.probe_prompts()
    assert len({prompt[0].content for prompt in prompts}) == 12


@pytest.mark.parametrize(
    ("wrong", "saying"),
    [({"device": "tpu"}, "seawall.load: device is wrong; got 'tpu'"), ({"dtype": "int4"}, "seawall.load: dtype is")],
)
def test_wrong_arguments_are_one_line(folder: Path, wrong: dict[str, str], saying: str) -> None:
    with pytest.raises(ConfigError, match=saying):
        seawall.load(str(folder), **wrong)


def test_importing_seawall_imports_no_torch() -> None:
    code = "import seawall, sys; seawall.load; sys.exit(int('torch' in sys.modules or 'transformers' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
