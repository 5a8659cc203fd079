"""Cuts any Llama- or Qwen2-like dense model into a mixture of experts, without training, and measures what that costs.

    python -m seawall.lab.upcycle MODEL -o OUT

The result is a testbed for methods that work on experts: its refusals are those of the dense model's makers.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from transformers import PreTrainedConfig

from seawall.config.model import ModelConfig, known_device
from seawall.errors import ConfigError, Interrupted, SeawallError
from seawall.lab.architecture import require_fit, require_settings
from seawall.lab.card import base_name, cost_table, model_card
from seawall.lab.costs import KINDS, CostPrompts, Costs, Measurement, costs, judge_version, measure, read_prompts
from seawall.lab.cut import LabShape
from seawall.lab.experts import Calibration, Say, checked_shape, cut_model
from seawall.models.files.checkpoint import read_headers
from seawall.models.files.hub import locate, stated_licence
from seawall.models.files.load import load_architecture, load_model
from seawall.models.files.placement import DTYPES
from seawall.models.files.save import save_model
from seawall.runs.files import write_json, write_text
from seawall.runs.publish import published, require_free
from seawall.version import __version__
from seawall.visible import visible_line

COST_FILE = "upcycle.json"
_NOTICES = ("LICEN[SC]E*", "NOTICE*")
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_WRONG_INPUT, _INTERRUPTED = 2, 3
_MIN_TOKENS = 256


@dataclass(frozen=True)
class Options:
    """The options of `python -m seawall.lab.upcycle`; None stands for a default that depends on the model.

    Attributes:
        model: a local folder or a Hub id.
        output: a new folder.
        revision: branch, tag or commit on the Hub.
        first_dense: first layers that stay dense; None: half.
        experts: routed experts per layer.
        top_k: experts per token.
        shared_neurons: neurons that belong to the shared expert alone (`--whole`); None: about three quarters.
        routed_share: share of a routed neuron's output that its expert carries.
        calibration_tokens: number of tokens that the cut is fitted to.
        dtype: type of the written weights; `auto`: the source's.
        seed: of calibration prompts and clustering.
        device: device to compute on.
        is_measured: whether dense and cut model are measured.
        files: prompt file by kind (harmful, borderline, benign, gold).
        goals: maximum number of prompts of each kind.
        reply_tokens: maximum length of a measured reply, in tokens.
        base_model: the source's Hub id for the model card; None: as `model` says.
    """

    model: str
    output: Path
    revision: str | None = None
    first_dense: int | None = None
    experts: int = 32
    top_k: int = 4
    shared_neurons: int | None = None
    routed_share: float = 1.0
    calibration_tokens: int = 12_000
    dtype: str = "auto"
    seed: int = 0
    device: str = "auto"
    is_measured: bool = True
    files: Mapping[str, str] = field(default_factory=dict)
    goals: int = 60
    reply_tokens: int = 32
    base_model: str | None = None


def upcycle(options: Options, say: Say) -> dict[str, Any]:
    """Writes the cut model with its costs to `options.output`, atomically; returns the content of `upcycle.json`.

    Raises:
        SeawallError: an option, the model or a file is wrong; nothing is written then.
    """
    require_free(options.output)
    prompts = read_prompts(options.files, options.goals) if options.is_measured else None
    config = ModelConfig(id=options.model, revision=options.revision, dtype="float32", device=options.device)
    folder = locate(config)
    architecture = load_architecture(folder, config)
    require_settings(architecture)
    shape = _shape(options, architecture)
    dense, tokenizer = load_model(config)
    require_fit(dense)
    dtype = _written_dtype(options, folder)
    model, calibration = cut_model(
        dense, tokenizer, shape, tokens=options.calibration_tokens, seed=options.seed, dtype=DTYPES[dtype], say=say
    )
    del dense
    document = _document(options, folder, shape, calibration) | {"dtype": dtype}
    with published(options.output) as scratch:
        save_model(model, tokenizer, scratch)
        del model
        result = None if prompts is None else _costs(folder, scratch, prompts, options, say)
        document["measured"] = _measurement(options, prompts, result)
        write_json(scratch / COST_FILE, document)
        write_text(scratch / "README.md", model_card(document, result))
        for notice in (path for pattern in _NOTICES for path in folder.glob(pattern)):
            shutil.copyfile(notice, scratch / notice.name)
    for line in [] if result is None else cost_table(result, document):
        say(line)
    return document


def _shape(options: Options, config: PreTrainedConfig) -> LabShape:
    return checked_shape(
        config,
        experts=options.experts,
        top_k=options.top_k,
        routed_share=options.routed_share,
        first_dense=options.first_dense,
        shared_neurons=options.shared_neurons,
    )


def _written_dtype(options: Options, folder: Path) -> str:
    if options.dtype != "auto":
        return options.dtype
    stored = {header.dtype for header in read_headers(folder).values()}
    return next((name for code, name in _STORED.items() if code in stored), "float32")


def _costs(dense: Path, cut: Path, prompts: CostPrompts, options: Options, say: Say) -> Costs:
    """The costs, with both models as they are stored and in the type that is written."""

    def measured(name: str, folder: Path) -> Measurement:
        say(f"measuring the {name} model: {len(prompts.gold)} reference answers, {', '.join(KINDS)} requests")
        dtype = _written_dtype(options, folder)
        config = ModelConfig.model_validate({"id": str(folder), "dtype": dtype, "device": options.device})
        return measure(*load_model(config), prompts, max_new_tokens=options.reply_tokens)

    return costs(measured("dense", dense), measured("cut", cut), prompts)


def _document(options: Options, folder: Path, shape: LabShape, calibration: Calibration) -> dict[str, Any]:
    return {
        "seawall": __version__,
        "base_model": options.base_model or base_name(options.model, folder),
        "revision": options.revision,
        "licence": stated_licence(folder),
        "shape": asdict(shape),
        "calibration": asdict(calibration),
    }


def _measurement(options: Options, prompts: CostPrompts | None, result: Costs | None) -> dict[str, Any] | None:
    if prompts is None or result is None:
        return None
    return {
        "judge": judge_version(),
        "max_new_tokens": options.reply_tokens,
        "files": {kind: Path(path).name for kind, path in prompts.files.items()},
        **result.document(),
    }


class _Parser(argparse.ArgumentParser):
    """Reports wrong words of the command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises `ConfigError`."""
        raise ConfigError(message, remedy=f"try `{self.prog} --help`")


def parse(words: Sequence[str]) -> Options:
    """The options of a command line.

    Raises:
        ConfigError: an option is unknown, or its value is wrong.
    """
    default = {name: item.default for name, item in Options.__dataclass_fields__.items()}
    parser = _Parser(prog="python -m seawall.lab.upcycle", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("model", metavar="MODEL", help="local folder or Hub id of a dense model")
    add("-o", "--output", type=Path, required=True, help="new folder")
    add("--revision", help="branch, tag or commit on the Hub")
    add("--first-dense", type=int, help="first layers that stay dense (default: half)")
    add("--experts", type=int, default=default["experts"], help="routed experts per layer (default: %(default)s)")
    add("--top-k", type=int, default=default["top_k"], help="experts per token (default: %(default)s)")
    add("--whole", dest="shared_neurons", type=int, help="neurons kept whole in the shared expert (default: about 3/4)")
    add(
        "--routed-share",
        type=float,
        default=default["routed_share"],
        help="share of a routed neuron's output that its expert carries (default: %(default)s)",
    )
    add("--calibration-tokens", type=_at_least(_MIN_TOKENS), default=default["calibration_tokens"])
    add("--dtype", choices=("auto", *DTYPES), default=default["dtype"], help="of the written weights")
    add("--seed", type=int, default=default["seed"])
    add("--device", type=_device, default=default["device"], help="auto, cpu, mps, cuda, cuda:N")
    add("--no-measure", dest="is_measured", action="store_false", help="write no costs")
    for kind in (*KINDS, "gold"):
        add(f"--{kind}", metavar="FILE", help=f"JSONL file of {kind} prompts to measure (default: built-in)")
    add("--goals", type=_at_least(1), default=default["goals"], help="maximum prompts of a kind (default: %(default)s)")
    add("--reply-tokens", type=_at_least(1), default=default["reply_tokens"], help="(default: %(default)s)")
    add("--base-model", help="Hub id of the source, for the model card of a local folder")
    values = vars(parser.parse_args(words))
    files = {kind: values.pop(kind) for kind in (*KINDS, "gold")}
    return Options(**values, files={kind: path for kind, path in files.items() if path is not None})


def _at_least(minimum: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"got {value}, expected at least {minimum}")
        return value

    return number


def _device(text: str) -> str:
    try:
        return known_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text}, expected auto, cpu, mps, cuda or cuda:N") from error


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 for wrong input, or 3 where it was interrupted (nothing is written then)."""
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        upcycle(parse(sys.argv[1:] if words is None else words), _write)
    except SeawallError as error:
        sys.stderr.write(f"seawall: {visible_line(str(error))}\n")
        return _WRONG_INPUT
    except (Interrupted, KeyboardInterrupt):
        sys.stderr.write("seawall: interrupted; nothing was written\n")
        return _INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 0


def _write(line: str) -> None:
    sys.stdout.write(f"{visible_line(line)}\n")
    sys.stdout.flush()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


if __name__ == "__main__":
    sys.exit(main())
