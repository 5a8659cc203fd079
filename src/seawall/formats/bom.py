"""A bill of materials of a repaired model, in CycloneDX 1.6 (ECMA-424): base, delta, data by digest, evaluation.

The library `cyclonedx-python-lib` (Apache-2.0) writes and validates the document; model cards, which it does not know
yet, are added to its JSON before its strict validator reads the text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.groups import group_of
from seawall.errors import ArtifactError
from seawall.formats.extras import require_extra
from seawall.runs.files import read_json, storage_errors, write_text
from seawall.runs.folder import MARKER
from seawall.runs.stage import finished_stage, is_done
from seawall.shell.finished import FinishedRun, open_finished
from seawall.version import __version__

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NAMESPACE = uuid.UUID("5ea3a11b-0000-4000-8000-000000000000")
"""Of serial numbers: equal weights and evaluations give an equal document."""
DATA = {
    "attack pairs": ("profile", "pairs.jsonl"),
    "retained replies": ("repair", "retain.jsonl"),
    "judged replies before": ("eval-before", "samples.jsonl"),
    "judged replies after": ("eval-after", "samples.jsonl"),
}
"""Data set -> its stage, and its file there."""
MODEL, BASE, DELTA = "model", "base-model", "delta"
"""References of components."""


def write_bom(path: Path, output: Path) -> Path:
    """Writes the bill of materials of a finished run; files are listed after their hashes are checked.

    Args:
        path: the run folder.
        output: the JSON file.

    Raises:
        RunFolderError: no finished run with a repair.
        ArtifactError: a file was changed, or the output exists.
        ConfigError: cyclonedx-python-lib is not installed.
    """
    require_extra("a bill of materials", package="cyclonedx-python-lib", module="cyclonedx", extra="bom")
    if output.exists() or not output.absolute().parent.is_dir():
        got = "a file of that name" if output.exists() else "no such folder"
        raise ArtifactError(f"{output} cannot be written", got=got, remedy="name another file with -o")
    document = bom_document(open_finished(path))
    text = json.dumps(document, indent=1) + "\n"
    problem = validation_problem(text)
    assert problem is None, problem
    with storage_errors(output.parent):
        write_text(output, text)
    return output


def validation_problem(text: str) -> str | None:
    """What the library's strict validator finds wrong with a CycloneDX 1.6 document; None where it is valid."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return None if problem is None else str(problem)


def bom_document(finished: FinishedRun) -> dict[str, Any]:
    """The document of a finished run, as JSON."""
    from cyclonedx.output.json import JsonV1Dot6

    document: dict[str, Any] = json.loads(JsonV1Dot6(_bom(finished)).output_as_string())
    model = document["metadata"]["component"]
    model["modelCard"] = _card(finished, finished.after.result)
    base = next(row for row in document["components"] if row["bom-ref"] == BASE)
    base["modelCard"] = _card(finished, finished.before.result)
    return document


def _bom(finished: FinishedRun) -> Bom:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

    model = _model(finished)
    base, delta, data = _base(finished), _delta(finished), list(_data(finished))
    frameworks = [
        Component(name=name, version=version, type=ComponentType.FRAMEWORK, bom_ref=f"package:{name}")
        for name, version in _manifest(finished)["environment"]["packages"].items()
        if version and name != "seawall"
    ]
    bom = Bom(components=[base, delta, *data, *frameworks])
    weights = finished.after.result.model_fingerprint
    bom.serial_number = uuid.uuid5(_NAMESPACE, f"{weights} {_manifest(finished)['data']['prompts']}")
    ended = _manifest(finished)["stages"]["eval-after"]["ended"]
    bom.metadata.timestamp = datetime.fromisoformat(ended)
    bom.metadata.component = model
    seawall = Component(name="seawall", version=__version__, type=ComponentType.APPLICATION, bom_ref="tool:seawall")
    bom.metadata.tools.components.add(seawall)
    bom.register_dependency(model, [base, delta, *data, *frameworks])
    return bom


def _model(finished: FinishedRun) -> Component:
    """The repaired model, with the files of its checkpoint where it was exported."""
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    name = _name(finished)
    return Component(
        name=f"{PurePath(name).name}-seawall",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL,
        description=f"{name}, repaired by seawall",
        pedigree=Pedigree(ancestors=[_base(finished, reference=None)]),
        properties=_properties(weights=finished.after.result.model_fingerprint),
        components=list(_files(finished, "model")),
    )


def _base(finished: FinishedRun, *, reference: str | None = BASE) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, described = _name(finished), _manifest(finished)["model"]
    version = described.get("commit") or described.get("revision")
    owner, _, short = name.rpartition("/")
    purl = PackageURL("huggingface", owner, short, version) if _HUB_ID.fullmatch(name) else None
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=reference,
        purl=purl,
        properties=_properties(weights=finished.before.result.model_fingerprint),
    )


def _delta(finished: FinishedRun) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    experts = {name: finished.summary[name] for name in ("selected_experts", "routed_experts")}
    trained = finished.recipe["repair"].get("parameters", "selected")
    return Component(
        name="delta",
        type=ComponentType.DATA,
        bom_ref=DELTA,
        description="the change of the weights: base XOR repaired, bit by bit",
        properties=_properties(**experts, trained_parameters=trained),
        components=list(_files(finished, "delta")) or list(_files(finished, "repair", under="delta/")),
    )


def _data(finished: FinishedRun) -> Iterator[Component]:
    """The data sets of the run by digest, and the sources of the prompts with the digest of all of them."""
    from cyclonedx.model.component import Component, ComponentType

    sources = {
        name: source["kind"]
        for name, source in finished.recipe["data"].items()
        if isinstance(source, dict) and "kind" in source
    }
    properties = _properties(prompts=_manifest(finished)["data"]["prompts"], **sources)
    yield Component(name="prompts", type=ComponentType.DATA, bom_ref="data:prompts", properties=properties)
    for name, (stage, file) in DATA.items():
        digest = _digests(finished, stage).get(file)
        if digest is not None:
            hashes, reference = [_hash(digest)], f"data:{name.replace(' ', '-')}"
            yield Component(name=name, type=ComponentType.DATA, bom_ref=reference, hashes=hashes)


def _files(finished: FinishedRun, stage: str, *, under: str = "") -> Iterator[Component]:
    """The files of a stage as components, with their hashes."""
    from cyclonedx.model.component import Component, ComponentType

    for name, digest in sorted(_digests(finished, stage).items()):
        if name.startswith(under):
            yield Component(name=name, type=ComponentType.FILE, bom_ref=f"file:{stage}/{name}", hashes=[_hash(digest)])


def _digests(finished: FinishedRun, stage: str) -> dict[str, str]:
    """File -> sha256 of a finished stage, checked; empty where the stage is not finished."""
    if not is_done(finished.run, stage):
        return {}
    return dict(read_json(finished_stage(finished.run, stage) / MARKER)["files"])


def _hash(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))


def _properties(**facts: object) -> list[Property]:
    from cyclonedx.model import Property

    return [Property(name=f"seawall:{name}", value=str(value)) for name, value in facts.items()]


def _manifest(finished: FinishedRun) -> dict[str, Any]:
    return read_json(finished.run.manifest)


def _name(finished: FinishedRun) -> str:
    """The base model's id on the Hub; of a local folder the last part of its path."""
    name = str(finished.summary["model"])
    return name if _HUB_ID.fullmatch(name) else PurePath(name).name or name


def _card(finished: FinishedRun, result: EvalResult) -> dict[str, Any]:
    """The model card of one side: its rates with their intervals, and the data by reference."""
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "task": "text-generation",
        "datasets": [{"ref": component.bom_ref.value} for component in _data(finished)],
    }
    config = finished.run.stage("model") / "config.json"
    if config.is_file():
        described: Mapping[str, Any] = read_json(config)
        parameters["architectureFamily"] = str(described.get("model_type", ""))
        parameters["modelArchitecture"] = str((described.get("architectures") or [""])[0])
    metrics = [
        {
            "type": group_of(group).metric,
            "value": "none scored" if rate.rate is None else str(rate.rate),
            "slice": f"{group}, {rate.n} replies, {rate.unscored} unscored",
            "confidenceInterval": {"lowerBound": str(rate.low), "upperBound": str(rate.high)},
        }
        for group, rate in result.groups.items()
    ]
    return {"modelParameters": parameters, "quantitativeAnalysis": {"performanceMetrics": metrics}}
