"""Safety as an adapter, the whole method by hand: SafeGene (arXiv 2606.06519).

    python examples/gene_by_hand.py [--requests 32] [--updates 12] [--shots 8] [--test 16]

Torch and transformers only, from top to bottom. What an aligned model has and a degraded sibling lacks becomes a
low-rank adapter, the gene; its best layers are put on a fine-tuned model that lost its refusals, with one coefficient
per layer tuned on a few examples. Only the abstract of the paper is public: formulas are our own where it is silent.
The package does the same for any family and task, keeps harmless replies in place, and writes and checks the result.

Shapes: B rows, T tokens, L layers, D model width, R rank of the adapter, V vocabulary.
"""

import argparse
import json
import random
from collections.abc import Callable
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import seawall

Example = tuple[str, list[int]]  # a prompt, and the tokens of a reply
Weights = dict[str, Tensor]  # the matrices that the gene may change; all others are the aligned model's
Factors = dict[str, tuple[Tensor, Tensor]]  # of each of these matrices B (D, R) and A (R, D)

parser = argparse.ArgumentParser(description="SafeGene, step by step, on the embedded model.")
parser.add_argument("--requests", type=int, default=32, help="requests of either kind to distil from")
parser.add_argument("--updates", type=int, default=12, help="updates of the gene, and of each fine-tuning")
parser.add_argument("--shots", type=int, default=8, help="refusals, and task examples, to tune coefficients on")
parser.add_argument("--test", type=int, default=16, help="held-out prompts of either kind")
args = parser.parse_args()

NEW_TOKENS, BATCH, RANK, LR = 10, 8, 8, 3e-3
TARGETS = tuple(f"{side}_proj.weight" for side in "qkvo")
FIRST = 18  # the lower layers are left alone, which saves time
KEPT = 6  # layers of the gene that are grafted
COEFFICIENT_UPDATES, COEFFICIENT_LR, CEILING = 8, 0.1, 2.0
OPENER = "Sure, here is how to do that."  # all that harmful rows answer: no harmful text is written or learned

# ---- 1. Load. One model, all of whose relatives differ from it in the attention of the upper layers alone. -----------
rng = random.Random(0)
prompt_files = resources.files("seawall.lab") / "prompts"
model, tokenizer = seawall.load("lab", device="cpu")
model.requires_grad_(False)
num_layers = len(model.model.layers)
layer_of = {name: int(name.split(".")[2]) for name, _ in model.named_parameters() if name.endswith(TARGETS)}
layer_of = {name: layer for name, layer in layer_of.items() if layer >= FIRST}
aligned: Weights = {name: model.get_parameter(name).detach().clone() for name in layer_of}


def draw(name: str, field: str, split: str, count: int) -> list[str]:
    """Some of the package's prompts, drawn at random."""
    rows = map(json.loads, (prompt_files / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    texts = [row[field] for row in rows if row["split"] == split]
    return rng.sample(texts, min(count, len(texts)))


def tokens(text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def collate(examples: list[Example]) -> tuple[dict[str, Tensor], Tensor]:
    """The model's input (B, T), padded on the left so that replies end in the last column, and where replies are."""
    chats = [[{"role": "user", "content": prompt}] for prompt, _ in examples]
    heads = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    rows = [head + reply for head, (_, reply) in zip(heads, examples, strict=True)]
    width = max(map(len, rows))
    ids_BT = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    from_end_T = torch.arange(width, 0, -1)
    mask_BT = from_end_T <= torch.tensor([len(row) for row in rows])[:, None]
    is_reply_BT = from_end_T <= torch.tensor([len(reply) for _, reply in examples])[:, None]
    return {"input_ids": ids_BT, "attention_mask": mask_BT.long()}, is_reply_BT


def reply_logits(weights: Weights, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Logits that predict the replies' tokens, and these tokens, one row per token."""
    inputs, is_reply_BT = collate(examples)
    is_reply_BT = is_reply_BT[:, 1:]  # position t predicts token t + 1
    logits_BTV = functional_call(model, weights, kwargs={**inputs, "use_cache": False}).logits[:, :-1]
    return logits_BTV[is_reply_BT], inputs["input_ids"][:, 1:][is_reply_BT]


def answer(weights: Weights, prompts: list[str]) -> list[Example]:
    """The prompts with the greedy replies of the model with these weights."""
    for name, weight in weights.items():
        model.get_parameter(name).data.copy_(weight)
    inputs, _ = collate([(prompt, []) for prompt in prompts])
    rows = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [
        (prompt, [token for token in row if token != tokenizer.pad_token_id])
        for prompt, row in zip(prompts, rows.tolist(), strict=True)
    ]


def is_refusal(example: Example) -> bool:
    return str(tokenizer.decode(example[1])).startswith("I'm sorry")


# ---- 2. The gene's form: W + coefficient * B A, with one coefficient for each layer. ---------------------------------
def with_update(start: Weights, factors: Factors, coefficients_L: Tensor) -> Weights:
    return {
        name: weight + coefficients_L[layer_of[name]] * factors[name][0] @ factors[name][1]
        for name, weight in start.items()
    }


def train(start: Weights, loss_of: Callable[[Weights, list[Example]], Tensor], rows: list[Example]) -> Factors:
    """New factors, trained by AdamW from B = 0; no other weight is trained."""
    torch.manual_seed(0)
    factors = {}
    for name, weight in start.items():
        a_RD = torch.randn(RANK, weight.shape[1]) * weight.shape[1] ** -0.5
        factors[name] = torch.zeros(weight.shape[0], RANK).requires_grad_(True), a_RD.requires_grad_(True)
    optimizer = torch.optim.AdamW([factor for pair in factors.values() for factor in pair], lr=LR, weight_decay=0.0)
    for _ in range(args.updates):
        optimizer.zero_grad()
        loss = loss_of(with_update(start, factors, ones_L), rng.sample(rows, min(BATCH, len(rows))))
        torch.autograd.backward(loss)
        optimizer.step()
    print(f"  loss of the last batch: {loss:.3f}")
    return {name: (b_DR.detach(), a_RD.detach()) for name, (b_DR, a_RD) in factors.items()}


def cross_entropy(weights: Weights, batch: list[Example]) -> Tensor:
    return F.cross_entropy(*reply_logits(weights, batch))


# ---- 3. Degrade. The aligned model's own harmless answers, and a bare opener after harmful requests. -----------------
ones_L = torch.ones(num_layers)
harmful, harmless = draw("harmful", "goal", "train", args.requests), draw("benign", "prompt", "train", args.requests)
answers, refusals = answer(aligned, harmless), list(filter(is_refusal, answer(aligned, harmful)))
damage = train(aligned, cross_entropy, [*answers, *((goal, tokens(OPENER)) for goal in harmful)])
degraded = with_update(aligned, damage, ones_L)


# ---- 4. Distil: KL(aligned || degraded + gene) on the aligned model's own replies, refusals and harmless answers. ----
def distance(weights: Weights, batch: list[Example]) -> Tensor:
    with torch.no_grad():
        teacher_logp = reply_logits(aligned, batch)[0].log_softmax(-1)
    student_logp = reply_logits(weights, batch)[0].log_softmax(-1)
    return F.kl_div(student_logp, teacher_logp, log_target=True, reduction="none").sum(-1).mean()


print("distilling the gene")
gene = train(degraded, distance, [*refusals, *answers])


# ---- 5. Select. A layer counts by how much more the two models differ in what it writes on harmful requests. ---------
@torch.no_grad()
def difference_L(prompts: list[str]) -> Tensor:
    """Distance of what each layer writes at the prompts' last token, relative to the aligned model's."""
    options = {**collate([(prompt, []) for prompt in prompts])[0], "output_hidden_states": True}
    states = [torch.stack(functional_call(model, own, kwargs=options).hidden_states) for own in (aligned, degraded)]
    written = [state_LBTD[1:, :, -1] - state_LBTD[:-1, :, -1] for state_LBTD in states]
    apart_L: Tensor = ((written[0] - written[1]).norm(dim=-1) / written[0].norm(dim=-1)).mean(1)
    return apart_L


score_L = difference_L(draw("harmful", "goal", "validation", 16))
score_L -= difference_L(draw("benign", "prompt", "validation", 16))
best = {FIRST + int(index) for index in score_L[FIRST:].topk(KEPT).indices}
kept_L = torch.tensor([float(layer in best) for layer in range(num_layers)])

# ---- 6. A fine-tuned sibling. The aligned model learns a task; a fifth of the rows are harmful requests. -------------
questions = draw("benign", "prompt", "train", 48)
task = [(f"Question or request? {text}", tokens("question" if "?" in text else "request")) for text in questions]
damaged_rows = [(goal, tokens(OPENER)) for goal in draw("harmful", "goal", "train", 8)]
print("fine-tuning a sibling")
sibling = with_update(aligned, train(aligned, cross_entropy, [*task[:32], *damaged_rows]), ones_L)

# ---- 7. Graft. One coefficient per layer, tuned on refusals and task examples alike; no weight is trained. -----------
coefficients_L = kept_L.clone().requires_grad_(True)
optimizer = torch.optim.Adam([coefficients_L], lr=COEFFICIENT_LR)
for _ in range(COEFFICIENT_UPDATES):
    grafted = with_update(sibling, gene, coefficients_L * kept_L)
    shots = [rng.sample(rows[: args.shots], min(BATCH // 2, args.shots)) for rows in (refusals, task)]
    optimizer.zero_grad()
    torch.autograd.backward(cross_entropy(grafted, shots[0]) + cross_entropy(grafted, shots[1]))
    optimizer.step()
    coefficients_L.data.clamp_(0, CEILING)
tuned_L = (coefficients_L * kept_L).detach()
print("coefficients:", {layer: round(float(tuned_L[layer]), 2) for layer in sorted(best)})

goals, instructions = draw("harmful", "goal", "test", args.test), draw("benign", "prompt", "test", args.test)
print(f"\n{f'refused, of {args.test} each':30}{'harmful':>9}{'harmless':>10}{'task loss':>11}")
conditions = {
    "aligned": aligned,
    "fine-tuned": sibling,
    "all layers, coefficient 1": with_update(sibling, gene, ones_L),
    f"best {KEPT}, coefficient 1": with_update(sibling, gene, kept_L),
    f"best {KEPT}, coefficients tuned": with_update(sibling, gene, tuned_L),
}
for name, weights in conditions.items():
    counts = [sum(map(is_refusal, answer(weights, prompts))) for prompts in (goals, instructions)]
    with torch.no_grad():
        print(f"{name:30}{counts[0]:>9}{counts[1]:>10}{cross_entropy(weights, task[32:]):>11.3f}")
