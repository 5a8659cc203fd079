"""Signed folders: tampering is found and named, and model-signing's own command agrees, in both directions."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="model-signing is not installed (seawall[sign])")

from commands import forked, refused
from seawall.errors import ArtifactError, ConfigError
from seawall.formats.signature import check_signature, sign_folder
from seawall.formats.signers import SigningKey, TrustedSigner
from signing_keys import write_certificate, write_key


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model/parts").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "parts/delta.safetensors"):
        (tmp_path / "model" / name).write_text(f"content of {name}")
    return tmp_path / "model"


def model_signing(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_signed_folder_passes_and_every_kind_of_tampering_is_named(folder: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    signature = sign_folder(folder, SigningKey(private))
    assert signature == folder.parent / "model.sig"
    trusted = TrustedSigner(public)
    result = check_signature(folder, signature, trusted)
    assert (result.passed, result.files, result.lines()) == (True, 3, ["passed  3 signed files"])

    weights = folder / "model.safetensors"
    weights.write_text(weights.read_text().replace("c", "d", 1))
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    result = check_signature(folder, signature, trusted)
    assert result.problem is None
    assert (result.changed, result.deleted, result.added) == (
        ("model.safetensors",),
        ("config.json",),
        ("tokenizer.json",),
    )
    assert not result.passed


def test_model_signings_own_verifier_accepts_ours_and_finds_tampering(folder: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    signature = sign_folder(folder, SigningKey(private))
    words = ("verify", "key", folder, "--signature", signature, "--public_key", public)
    accepted = model_signing(*words)
    assert accepted.returncode == 0, accepted.stderr
    (folder / "config.json").write_text("{}")
    assert model_signing(*words).returncode == 1


def test_we_accept_model_signings_own_signature(folder: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    signature = folder / "model.sig"
    signed = model_signing("sign", "key", folder, "--signature", signature, "--private_key", private)
    assert signed.returncode == 0, signed.stderr
    result = check_signature(folder, signature, TrustedSigner(public))
    assert (result.passed, result.files, result.ignored) == (True, 3, ("model.sig",))
    (folder / "added.py").write_text("")
    assert check_signature(folder, signature, TrustedSigner(public)).added == ("added.py",)


def test_certificates(folder: Path, tmp_path: Path) -> None:
    private, certificate, root = write_certificate(tmp_path, "lab")
    signature = sign_folder(folder, SigningKey(private, certificate=certificate, chain=(root,)))
    assert check_signature(folder, signature, TrustedSigner(chain=(root,))).passed
    accepted = model_signing("verify", "certificate", folder, "--signature", signature, "--certificate_chain", root)
    assert accepted.returncode == 0, accepted.stderr
    _, _, stranger = write_certificate(tmp_path, "stranger")
    result = check_signature(folder, signature, TrustedSigner(chain=(stranger,)))
    assert result.problem is not None


def test_another_key_and_a_changed_signature_are_not_accepted(
    folder: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    _, other = write_key(tmp_path, "other")
    signature = sign_folder(folder, SigningKey(private))
    assert check_signature(folder, signature, TrustedSigner(other)).problem is not None
    bundle = json.loads(signature.read_text())
    payload = bundle["dsseEnvelope"]["payload"]
    statement = base64.b64decode(payload).decode().replace("config.json", "c0nfig.json")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement.encode()).decode()
    signature.write_text(json.dumps(bundle))
    result = check_signature(folder, signature, TrustedSigner(public))
    assert result.problem is not None
    assert not result.passed


def test_a_key_with_a_password(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = write_key(tmp_path, "locked", password=b"open")
    monkeypatch.setenv("KEY_PASSWORD", "open")
    signature = sign_folder(folder, SigningKey(private, password_env="KEY_PASSWORD"))
    assert check_signature(folder, signature, TrustedSigner(public)).passed
    monkeypatch.setenv("KEY_PASSWORD", "shut")
    with pytest.raises(ConfigError, match="no private key that can sign"):
        sign_folder(folder, SigningKey(private, password_env="KEY_PASSWORD"), tmp_path / "again.sig")


def test_symbolic_links_are_refused_when_signing_and_found_when_checking(
    folder: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    signature = sign_folder(folder, SigningKey(private))
    (folder / "link.json").symlink_to(folder / "config.json")
    assert not check_signature(folder, signature, TrustedSigner(public)).passed
    with pytest.raises(ConfigError, match="link"):
        sign_folder(folder, SigningKey(private), tmp_path / "again.sig")
    assert not list(tmp_path.glob("*.part"))


def test_a_run_is_signed_and_checked_by_the_command_line(
    planted_run: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    run = shutil.copytree(planted_run, tmp_path / "run")
    done = forked("sign", run, "--key", private)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "run.sig")), done.stderr
    words = ("verify", run, "--signature", tmp_path / "run.sig", "--public-key", public)
    assert forked(*words).returncode == 0
    samples = run / "eval-after/samples.jsonl"
    samples.write_bytes(samples.read_bytes().replace(b"refused", b"refuted", 1))
    failed = forked(*words)
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[0] == "changed  eval-after/samples.jsonl"
    document = json.loads(forked(*words, "--json").stdout)
    assert (document["passed"], document["changed"]) == (False, ["eval-after/samples.jsonl"])


def test_wrong_input(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    signature = sign_folder(folder, SigningKey(private))
    check = ("verify", folder, "--signature", signature)
    refused("sign", folder, saying="needs one signer; got neither --key nor --sigstore")
    refused("sign", folder, "--key", private, saying="model.sig already exists")
    refused("sign", folder, "--key", tmp_path / "no.key", "-o", tmp_path / "a.sig", saying="No such file")
    refused("sign", folder, "--key", public, "-o", tmp_path / "a.sig", saying="no private key that can sign")
    refused("sign", tmp_path / "none", "--key", private, saying="got no such folder")
    refused(*check, saying="needs a trusted signer")
    refused(*check, "--public-key", public, "--vllm", saying="checks files, not a server")
    refused(*check, "--public-key", private, saying="is no public key")
    refused("verify", folder, "--signature", folder / "config.json", "--public-key", public, saying="is no signature")
    refused("verify", folder, "--public-key", public, saying="need --signature")
    with pytest.raises(ArtifactError, match="cannot be read"):
        check_signature(folder, tmp_path / "none.sig", TrustedSigner(public))
