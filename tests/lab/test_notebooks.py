"""The notebooks of `examples/` run on the embedded model, and hold no outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from places import REPOSITORY
from seawall.errors import ArtifactError
from seawall.lab.build import lab_model_folder, original_model_folder

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
SMALL = {
    "audit_a_model.ipynb": 'model = "lab"\ngoals = 2\ntokens = 6',
    "graft_a_gene.ipynb": "requests = 8\nepochs = 1\nrows = 16\nprompts = 2\ntokens = 6\nshots = 4",
}
"""What stands in the cell with the tag `parameters`, for a minute or two of one core."""


@pytest.mark.lab
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat  # this and the next take seconds, which every process that collects tests would spend
    from nbclient import NotebookClient

    try:
        lab_model_folder()
        original_model_folder()
    except ArtifactError as error:
        pytest.skip(f"the embedded model is not in the cache and cannot be fetched: {error}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book: Any = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    (parameters,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert [line.split(" = ")[0] for line in parameters.source.splitlines()] == [
        line.split(" = ")[0] for line in SMALL[path.name].splitlines()
    ]
    parameters.source = SMALL[path.name]
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert outputs
    assert any("text/html" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs"), path.name
        assert cell.get("execution_count") is None, path.name
        source = "".join(cell["source"])
        assert "import seawall." not in source
        assert "from seawall" not in source
