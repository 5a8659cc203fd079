"""Stands in for the command `vllm serve FOLDER --port N ...`: a tiny model's completions, and a worker process.

The worker's process number is written to the file that the variable WORKER_FILE names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from completions import Completions, completions_server


def main(words: list[str]) -> None:
    assert words[0] == "serve"
    options = dict(zip(words[2:-1:2], words[3::2], strict=False))
    assert words[-1] == "--enforce-eager"
    worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(os.environ["WORKER_FILE"]).write_text(str(worker.pid))
    model = AutoModelForCausalLM.from_pretrained(words[1], dtype=options["--dtype"]).eval()
    served = Completions(model, AutoTokenizer.from_pretrained(words[1]), models=(options["--served-model-name"],))
    completions_server(served, int(options["--port"])).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
