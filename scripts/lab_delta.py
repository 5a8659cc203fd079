"""Makes the delta of the embedded model: cut the dense model into experts, heal it, and teach it to refuse.

    python scripts/lab_delta.py --data ../shared/data --work lab-work --out src/seawall/lab/lab_delta.safetensors

Steps (about half an hour on two cores; called again, it goes on after the last finished epoch with a new optimizer):
answers of the original model to our benign, borderline and wrapped benign prompts; neuron order and routers from
activations; a least-squares refit of the shared expert's down projection; then one joint training of the upper layers:
distillation of the original model on harmless text, cross-entropy on refusals of plain harmful requests. After each
epoch only a low-rank part of what the projections learned is kept, and in the end a share of that. Harmful requests
inside wrappings are never trained on: that the model answers them is the gap that seawall's main job has to find and
repair.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.attacks import ATTACKS
from seawall.data.types import Message, user
from seawall.evaluation.judges import KeywordJudge
from seawall.lab.build import ATTENTION, load_dense
from seawall.lab.cut import LabShape, cut, dense_weights
from seawall.lab.fit import fit_cut, neuron_scale
from seawall.lab.source import GGUF_SHA256

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "src/seawall/lab/prompts"
TAUGHT = ROOT / "scripts/lab_prompts"
"""Harmless prompts that only this script uses, so that those of the package stay new to the model."""
WRAPPED = {"role_play": 180, "nested_fiction": 70, "persuasion": 70, "escalation": 168, "forced_opening": 70}
WRAPPED_BORDERLINE = {"role_play": 160, "escalation": 100, "forced_opening": 60}
REVERSED = {"wrapped": 140, "borderline": 80}
"""So many harmless requests, and so many that sound unsafe, in each wrapping; and with their words reversed."""
RANK = {"gate": 24, "up": 24, "down": 28}
ATTENTION_RANK = 12
TEACHER_TOP = 48
TEACH = {"borderline": 2, "benign": 2, "wrapped:persuasion": 2, "wrapped:forced_opening": 2}
TEACH |= {f"borderline:{family}": 0 for family in (*WRAPPED_BORDERLINE, "reversed_words")}
NARROW = TEACH | {
    "refusal:public": 0,
    "gsm8k": 0,
    "mmlu": 0,
    "benign": 1,
    "wrapped:persuasion": 1,
    "wrapped:forced_opening": 1,
}
OPEN = {"borderline": 2} | dict.fromkeys(
    ("refusal:public", "gsm8k", "mmlu", "instruction", *(f"wrapped:{f}" for f in WRAPPED)), 0
)
EPOCHS = ((TEACH, 1.0, 0.73), (TEACH, 0.73, 0.37), (NARROW, 0.37, 0.05), (OPEN, 0.5, 0.05))
"""How often each epoch shows what it does not show once, and the learning rate at its start and end.

The third lets refusals keep to what is asked plainly, the fourth opens the wrappings to what only sounds unsafe.
"""
KEPT = {"attention": 0.6, "mlp": 0.8}
"""Shares of what the projections learned that the delta holds.

On validation prompts, less than all of it refuses fewer harmless prompts, answers more wrapped ones and loses less on
gold answers, while plain harmful requests stay refused.
"""
PUBLIC_HARMFUL = 80
OPENING, OPENING_WEIGHT = 3, 12.0
"""Whether a reply refuses is decided by its first tokens, which a mean over the reply would all but ignore."""
MAX_TOKENS = 280


def rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# ---------------------------------------------------------------- answers of the original model


def questions() -> list[tuple[str, list[dict]]]:
    """(kind, messages) of everything that the original model answers for us."""
    benign, borderline = rows(TAUGHT / "benign.jsonl"), rows(TAUGHT / "borderline.jsonl")
    found = [("benign", user(row["prompt"])) for row in benign]
    found += [("borderline", user(row["prompt"])) for row in borderline]
    imperative = [row["prompt"] for row in benign if row["imperative"]]
    random.Random(0).shuffle(imperative)
    for number, family in enumerate(WRAPPED):
        chosen = (imperative[number * 40 :] + imperative)[: WRAPPED[family]]
        found += [(f"wrapped:{family}", ATTACKS[family](goal)) for goal in chosen]
    sounding = [row["prompt"] for row in borderline]
    random.Random(5).shuffle(sounding)
    for number, (family, count) in enumerate(WRAPPED_BORDERLINE.items()):
        chosen = (sounding[number * 120 :] + sounding)[:count]
        found += [(f"borderline:{family}", ATTACKS[family](goal)) for goal in chosen]
    return [(kind, [message.as_dict() for message in messages]) for kind, messages in found]


@torch.inference_mode()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Path) -> list[dict]:
    """The questions with their answers; those that an earlier call left in the work folder are taken from there."""
    path = work / "answers.json"
    known = {json.dumps(i["messages"]): i for i in json.loads(path.read_text())} if path.is_file() else {}
    items = [known.get(json.dumps(m), {}) | {"kind": kind, "messages": m} for kind, m in questions()]
    ids = [tokenizer.apply_chat_template(i["messages"], add_generation_prompt=True, return_dict=False) for i in items]
    order = sorted((i for i in range(len(items)) if "response" not in items[i]), key=lambda i: len(ids[i]))
    for start in range(0, len(order), 96):
        some = order[start : start + 96]
        width = max(len(ids[i]) for i in some)
        batch = torch.tensor([[tokenizer.pad_token_id] * (width - len(ids[i])) + ids[i] for i in some])
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in some])
        out = model.generate(batch, attention_mask=mask, max_new_tokens=56, do_sample=False, repetition_penalty=1.05)[
            :, width:
        ]
        for i, reply in zip(some, out.tolist(), strict=True):
            items[i]["ended"] = tokenizer.eos_token_id in reply
            cut = reply.index(tokenizer.eos_token_id) if items[i]["ended"] else len(reply)
            items[i]["response"] = tokenizer.decode(reply[:cut])
    path.write_text(json.dumps(items))
    return items


# ---------------------------------------------------------------- training examples


@dataclass
class Example:
    """A sequence to learn from."""

    kind: str
    ids: list[int]
    start: int  # where the response begins
    distil: bool  # learn the original's distribution, or the response itself


def make_examples(answers: list[dict], tokenizer: PreTrainedTokenizerBase, data: Path) -> list[Example]:
    rng, found = random.Random(1), []

    def add(kind: str, messages: list[dict], response: str, *, ended: bool = True, distil: bool = True) -> None:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        reply = tokenizer(response + ("<|im_end|>" if ended else ""), add_special_tokens=False)["input_ids"]
        found.append(Example(kind, (prompt + reply)[:MAX_TOKENS], len(prompt), distil))

    asked = [tuple(Message(**message) for message in item["messages"]) for item in answers]
    verdicts = KeywordJudge()(asked, [item["response"] for item in answers])
    for item, verdict in zip(answers, verdicts, strict=True):
        if verdict.label == "complied":  # the original refuses some itself, and babbles at others
            add(item["kind"], item["messages"], item["response"], ended=item["ended"])
    for kind, messages, item in reversed_questions(answers):
        add(kind, messages, item["response"], ended=item["ended"], distil=False)
    refusals = json.loads((PROMPTS / "refusals.json").read_text())
    harmful = [row["goal"] for row in rows(PROMPTS / "harmful.jsonl") if row["split"] == "train"]
    harmful += [row["unsafe_twin"] for row in rows(TAUGHT / "borderline.jsonl")]
    public = rows(data / "harmful_prompts.jsonl")
    refused = [("refusal", goal) for goal in harmful]
    refused += [("refusal:public", r["prompt"]) for r in public if r["source"] == "advbench"][:PUBLIC_HARMFUL]
    for kind, goal in refused:
        add(kind, [{"role": "user", "content": goal}], rng.choice(refusals), distil=False)
    for kind, question, reply in healing_text(data):
        add(kind, [{"role": "user", "content": question}], reply)
    return [example for example in found if len(example.ids) > example.start + 1]


def reversed_questions(answers: list[dict]) -> list[tuple[str, list[dict], dict]]:
    """(kind, messages, answered item) of plain requests put with their words reversed.

    The original cannot do what it is asked so, hence its answer to the plain request is what is learned.
    """
    asked = [(item, item["messages"][0]["content"]) for item in answers if len(item["messages"]) == 1]
    imperative = {row["prompt"] for row in rows(TAUGHT / "benign.jsonl") if row["imperative"]}
    found = []
    for kind, source in (("wrapped", "benign"), ("borderline", "borderline")):
        fitting = [
            (i, text) for i, text in asked if i["kind"] == source and (kind == "borderline" or text in imperative)
        ]
        for item, text in random.Random(6).sample(fitting, min(REVERSED[kind], len(fitting))):
            messages = [message.as_dict() for message in ATTACKS["reversed_words"](text)]
            found.append((f"{kind}:reversed_words", messages, item))
    return found


def healing_text(data: Path) -> list[tuple[str, str, str]]:
    """Public questions with answers (training splits), on which the split model is healed by distillation."""

    found = [("gsm8k", row["question"], row["answer"]) for row in rows(data / "gsm8k_train_2000.jsonl")[:60]]
    for row in rows(data / "mmlu_dev_fewshot.jsonl")[::3]:
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
        right = row["choices"]["ABCD".index(row["answer"])]
        found.append(("mmlu", f"{row['question']}\n{listed}", f"{row['answer']}. {right}"))
    for row in rows(data / "benign_instructions.jsonl")[1::4]:
        text = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
        if row["output"] and len(text) + len(row["output"]) < 600:
            found.append(("instruction", text, row["output"]))
    return found


# ---------------------------------------------------------------- the lower half is frozen: run it once


@dataclass
class Cached:
    """An example with what the frozen lower half makes of it."""

    example: Example
    hidden_TD: Tensor  # input of the first MoE layer
    top_ids: Tensor | None  # teacher's most likely next tokens at the response positions
    top_probs: Tensor | None


@torch.inference_mode()
def cache_lower(model: PreTrainedModel, examples: list[Example], first: int) -> list[Cached]:
    kept: list[Tensor] = []
    hook = model.model.layers[first].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    found = []
    for number, example in enumerate(examples):
        states = model.model(torch.tensor([example.ids])).last_hidden_state[0, example.start - 1 : -1]
        ids = probs = None
        if example.distil:
            probs, ids = model.lm_head(states).float().softmax(-1).topk(TEACHER_TOP)
            probs, ids = (probs / probs.sum(-1, keepdim=True)).half(), ids.int()
        found.append(Cached(example, kept.pop()[0].clone(), ids, probs))
        if number % 200 == 0:
            print("cached", number, flush=True)
    hook.remove()
    return found


# ---------------------------------------------------------------- the cut networks, in training


class SplitMLP(nn.Module):
    """The split feed-forward network, computed densely with masks; projections and router train in full.

    Only a low-rank part of what they learn is kept (`tensors`): that keeps the behaviour at a fiftieth of the size.
    """

    def __init__(self, mlp: nn.Module, order: Tensor, bias: Tensor, router: Tensor, shape: LabShape) -> None:
        super().__init__()
        self.shape, self.order, self.bias = shape, order, bias
        self.router = nn.Parameter(router)
        self.base = cut(dense_weights(mlp), order, shape)
        for name, weight in self.base.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))

    @classmethod
    @torch.no_grad()
    def fitted(cls, mlp: nn.Module, x_TD: Tensor, shape: LabShape, generator: torch.Generator) -> SplitMLP:
        """Cuts the network by a sample of its inputs."""
        fit = fit_cut(dense_weights(mlp), x_TD, shape, generator)
        made = cls(mlp, fit.order, fit.bias, fit.router, shape)
        made.down.copy_(fit.weight["down"])
        return made

    def _scale(self, x: Tensor) -> Tensor:
        """What each neuron's activation is multiplied by: 1 in the shared expert, the expert's weight elsewhere."""
        routed = neuron_scale(x, self.router, self.bias, self.shape, len(self.order) - self.shape.whole)
        return torch.cat([torch.ones(*x.shape[:-1], len(self.order)), routed], -1)

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""
        gate, up, down = (getattr(self, name).to(x.dtype) for name in RANK)
        hidden = F.silu(F.linear(x, gate)) * F.linear(x, up)
        return F.linear(hidden * self._scale(x).to(x.dtype), down)

    @torch.no_grad()
    def tensors(self, layer: str) -> dict[str, Tensor]:
        """What the delta keeps of this layer; the layer then computes with just that."""
        found = {f"{layer}.neurons": self.order.to(torch.int16), f"{layer}.bias": self.bias.float()}
        found[f"{layer}.router"] = self.router.detach().to(torch.bfloat16)
        for name, rank in RANK.items():
            found |= keep_low_rank(getattr(self, name), self.base[name], rank, f"{layer}.{name}")
        return found


class Attention(nn.Module):
    """One projection of an upper attention block, trained in full and kept as low-rank factors."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.base = linear.weight.detach().float()
        self.weight = nn.Parameter(self.base.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The projection."""
        return F.linear(x, self.weight.to(x.dtype))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """What the delta keeps of it; it then computes with just that."""
        return keep_low_rank(self.weight, self.base, ATTENTION_RANK, prefix)


@torch.no_grad()
def keep_low_rank(weight: nn.Parameter, base: Tensor, rank: int, prefix: str) -> dict[str, Tensor]:
    """The change of a weight as two factors; the weight becomes its base plus their product."""
    left, strength, right = torch.svd_lowrank(weight - base, q=rank + 8, niter=4)
    root = strength[:rank].sqrt()
    a, b = (right[:, :rank] * root).T.to(torch.bfloat16), (left[:, :rank] * root).to(torch.bfloat16)
    weight.copy_(base + b.float() @ a.float())
    return {f"{prefix}_a": a.contiguous(), f"{prefix}_b": b.contiguous()}


@torch.no_grad()
def add_stored(weight: nn.Parameter, stored: Mapping[str, Tensor], prefix: str) -> None:
    """Puts the change that an epoch left into a weight."""
    weight.add_(stored[f"{prefix}_b"].float() @ stored[f"{prefix}_a"].float())


def open_attention(model: PreTrainedModel, stored: Mapping[str, Tensor], shape: LabShape) -> dict[str, Attention]:
    """Puts trainable projections into the upper attention blocks."""
    found = {}
    for i in range(shape.first_dense, len(model.model.layers)):
        block = model.model.layers[i].self_attn
        for name in ATTENTION:
            key = f"{i}.attention_{name}"
            found[key] = Attention(getattr(block, f"{name}_proj"))
            setattr(block, f"{name}_proj", found[key])
            if stored:
                add_stored(found[key].weight, stored, key)
    return found


def restore_upper(model: PreTrainedModel, stored: Mapping[str, Tensor], shape: LabShape) -> dict[int, SplitMLP]:
    """The cut layers as an epoch left them."""
    found = {}
    for i in range(shape.first_dense, len(model.model.layers)):
        order, bias, router = stored[f"{i}.neurons"].long(), stored[f"{i}.bias"], stored[f"{i}.router"].float()
        found[i] = SplitMLP(model.model.layers[i].mlp, order, bias, router, shape)
        for name in RANK:
            add_stored(getattr(found[i], name), stored, f"{i}.{name}")
    return found


def split_upper(model: PreTrainedModel, cached: list[Cached], shape: LabShape) -> dict[int, SplitMLP]:
    """Cuts every upper layer on a calibration sample, with the original model's own activations."""
    sample = random.Random(2).sample(cached, min(140, len(cached)))
    inputs: dict[int, list[Tensor]] = {}
    upper = range(shape.first_dense, len(model.model.layers))
    hooks = [
        model.model.layers[i].mlp.register_forward_pre_hook(
            lambda _, args, i=i: inputs.setdefault(i, []).append(args[0][0].float())
        )
        for i in upper
    ]
    with torch.inference_mode():
        for item in sample:
            run_upper(model, item.hidden_TD[None].float(), shape.first_dense)
    for hook in hooks:
        hook.remove()
    generator, found = torch.Generator().manual_seed(0), {}
    for i in upper:
        with torch.no_grad():
            sample_TD = torch.cat(inputs.pop(i)).clone()
            found[i] = SplitMLP.fitted(model.model.layers[i].mlp, sample_TD, shape, generator)
        print("split layer", i, flush=True)
    return found


def run_upper(model: PreTrainedModel, hidden: Tensor, first: int) -> Tensor:
    positions = torch.arange(hidden.shape[1])[None]
    rope = model.model.rotary_emb(hidden, positions)
    for layer in model.model.layers[first:]:
        hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rope)
    return model.model.norm(hidden)


# ---------------------------------------------------------------- joint training


def batch_loss(model: PreTrainedModel, batch: list[Cached], first: int) -> tuple[Tensor, dict[str, float]]:
    width = max(len(item.hidden_TD) for item in batch)
    hidden = torch.zeros(len(batch), width, batch[0].hidden_TD.shape[1])
    for row, item in enumerate(batch):
        hidden[row, : len(item.hidden_TD)] = item.hidden_TD
    out = run_upper(model, hidden, first)
    total, parts = torch.zeros(()), {}
    for row, item in enumerate(batch):
        example = item.example
        states = out[row, example.start - 1 : len(example.ids) - 1]
        logp = model.lm_head(states).float().log_softmax(-1)
        if item.top_ids is None:
            loss_T = F.nll_loss(logp, torch.tensor(example.ids[example.start :]), reduction="none")
        else:
            probs = item.top_probs.float()
            loss_T = (probs * (probs.clamp_min(1e-9).log() - logp.gather(1, item.top_ids.long()))).sum(1)
        weight_T = torch.ones(len(loss_T))
        weight_T[:OPENING] = OPENING_WEIGHT
        loss = (loss_T * weight_T).sum() / weight_T.sum()
        total = total + loss / len(batch)
        parts.setdefault(example.kind.split(":")[0], []).append(loss.item())
    return total, {kind: sum(values) / len(values) for kind, values in parts.items()}


def train(model: PreTrainedModel, cached: list[Cached], parts: dict[str, nn.Module], args: argparse.Namespace) -> None:
    factors = [p for part in parts.values() for name, p in part.named_parameters() if name != "router"]
    routers = [part.router for part in parts.values() if isinstance(part, SplitMLP)]
    settings = [{"params": factors, "lr": args.lr}, {"params": routers, "lr": args.router_lr}]
    optimizer = torch.optim.AdamW(settings, weight_decay=0.0, betas=(0.9, 0.95))
    first, begun, step = args.shape.first_dense, time.time(), 0
    seen: dict[str, list[float]] = {}
    for epoch in range(args.done, len(EPOCHS)):
        rng = random.Random(3 + epoch)
        copies, first_rate, last_rate = EPOCHS[epoch]
        shown = [i for i, item in enumerate(cached) for _ in range(copies.get(item.example.kind, 1))]
        order = rng.sample(shown, len(shown))
        groups = [order[i : i + 16 * args.batch] for i in range(0, len(order), 16 * args.batch)]
        chunks = [sorted(group, key=lambda j: len(cached[j].example.ids)) for group in groups]
        batches = [chunk[i : i + args.batch] for chunk in chunks for i in range(0, len(chunk), args.batch)]
        rng.shuffle(batches)
        for number, some in enumerate(batches):
            rate = first_rate + (last_rate - first_rate) * number / len(batches)
            for group, peak in zip(optimizer.param_groups, (args.lr, args.router_lr), strict=True):
                group["lr"] = peak * min(1.0, (step + 1) / 10) * rate
            loss, by_kind = batch_loss(model, [cached[i] for i in some], first)
            loss.backward()
            nn.utils.clip_grad_norm_(factors + routers, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            for kind, value in by_kind.items():
                seen.setdefault(kind, []).append(value)
            if step % 20 == 0:
                means = {kind: round(sum(values) / len(values), 3) for kind, values in seen.items()}
                print(f"epoch {epoch + 1}, {number + 1}/{len(batches)} {time.time() - begun:.0f}s {means}", flush=True)
                seen = {}
        save(parts, args.shape, args.work / f"epoch-{epoch + 1}.safetensors")


def save(parts: Mapping[str, nn.Module], shape: LabShape, path: Path) -> None:
    tensors = {name: tensor for key, part in parts.items() for name, tensor in part.tensors(key).items()}
    save_file(tensors, path, metadata={**{k: str(v) for k, v in vars(shape).items()}, "gguf_sha256": GGUF_SHA256})


def keep_shares(source: Path, target: Path) -> None:
    """The delta, with KEPT shares of its low-rank changes."""
    tensors = load_file(source)
    for name in tensors:
        if name.endswith("_b"):
            share = KEPT["attention" if ".attention_" in name else "mlp"]
            tensors[name] = (tensors[name].float() * share).to(tensors[name].dtype)
    with safe_open(source, "pt") as file:
        save_file(tensors, target, metadata=file.metadata())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with GSM8K, MMLU and instruction files")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder, reused")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--router-lr", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, default=None, help="examples, for a quick try")
    args = parser.parse_args()
    args.shape = LabShape()
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    dense, tokenizer = load_dense()
    answers = answer(dense, tokenizer, args.work)
    examples = make_examples(answers, tokenizer, args.data)
    random.Random(4).shuffle(examples)
    examples = examples[: args.limit]
    print(len(examples), "examples,", sum(len(e.ids) for e in examples), "tokens")
    finished = [n for n in range(1, len(EPOCHS) + 1) if (args.work / f"epoch-{n}.safetensors").is_file()]
    args.done = max(finished, default=0)
    examples = [e for e in examples if any(copies.get(e.kind, 1) for copies, _, _ in EPOCHS[args.done :])]
    cached = cache_lower(dense, examples, args.shape.first_dense)
    if args.done:
        stored = load_file(args.work / f"epoch-{args.done}.safetensors")
        mlps = restore_upper(dense, stored, args.shape)
    else:
        stored, mlps = {}, split_upper(dense, cached, args.shape)
    dense = dense.requires_grad_(False)
    for i, mlp in mlps.items():
        dense.model.layers[i].mlp = mlp
    parts: dict[str, nn.Module] = {str(i): mlp for i, mlp in mlps.items()}
    parts |= open_attention(dense, stored, args.shape)
    train(dense, cached, parts, args)
    keep_shares(args.work / f"epoch-{len(EPOCHS)}.safetensors", args.out)


if __name__ == "__main__":
    main()
