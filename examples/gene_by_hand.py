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
from torch import Tensor, nn

import seawall

Example = tuple[str, list[int]]  # a prompt, and the tokens of a reply

parser = argparse.ArgumentParser(description="SafeGene, step by step, on the embedded model.")
parser.add_argument("--requests", type=int, default=32, help="requests of either kind to distil from")
parser.add_argument("--updates", type=int, default=12, help="updates of the gene, and of each fine-tuning")
parser.add_argument("--shots", type=int, default=8, help="refusals, and task examples, to tune coefficients on")
parser.add_argument("--test", type=int, default=16, help="held-out prompts of either kind")
args = parser.parse_args()

NEW_TOKENS, BATCH, RANK, LR = 10, 8, 8, 3e-3
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
FIRST = 18  # the lower layers are left alone, which saves time
KEPT = 6  # layers of the gene that are grafted
COEFFICIENT_UPDATES, COEFFICIENT_LR, CEILING = 8, 0.1, 2.0
OPENER = "Sure, here is how to do that."  # all that harmful rows answer: no harmful text is written or learned

# ---- 1. Load the aligned model, twice: one copy will be degraded. ----------------------------------------------------
rng = random.Random(0)
prompt_files = resources.files("seawall.lab") / "prompts"
aligned, tokenizer = seawall.load("lab", device="cpu")
degraded, _ = seawall.load("lab", device="cpu")
for network in (aligned, degraded):
    network.requires_grad_(False)


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
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    heads = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [head + reply for head, (_, reply) in zip(heads, examples, strict=True)]
    width = max(map(len, rows))
    ids_BT = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    from_end_T = torch.arange(width, 0, -1)
    mask_BT = from_end_T <= torch.tensor([len(row) for row in rows])[:, None]
    is_reply_BT = from_end_T <= torch.tensor([len(reply) for _, reply in examples])[:, None]
    return {"input_ids": ids_BT, "attention_mask": mask_BT.long()}, is_reply_BT


def reply_logits(network: nn.Module, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Logits that predict the replies' tokens, and these tokens, one row per token."""
    inputs, is_reply_BT = collate(examples)
    is_reply_BT = is_reply_BT[:, 1:]  # position t predicts token t + 1
    return network(**inputs, use_cache=False).logits[:, :-1][is_reply_BT], inputs["input_ids"][:, 1:][is_reply_BT]


def answer(network: nn.Module, prompts: list[str]) -> list[Example]:
    """The prompts with the model's greedy replies, up to and with the end token."""
    inputs, _ = collate([(prompt, []) for prompt in prompts])
    with torch.no_grad():
        ids_BT = network.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    end = tokenizer.eos_token_id
    rows = ids_BT[:, inputs["input_ids"].shape[1] :].tolist()
    return [
        (prompt, row[: row.index(end) + 1] if end in row else row) for prompt, row in zip(prompts, rows, strict=True)
    ]


def is_refusal(example: Example) -> bool:
    return str(tokenizer.decode(example[1])).startswith("I'm sorry")


# ---- 2. The gene's place: W x + coefficient * B A x at every attention projection of the upper layers. ---------------
class Adapted(nn.Module):
    """A linear layer with a low-rank update beside its frozen weight."""

    def __init__(self, linear: nn.Linear, layer: int) -> None:
        super().__init__()
        self.linear, self.layer, self.coefficients_L = linear, layer, torch.ones(layer + 1)
        self.a_RD = nn.Parameter(torch.randn(RANK, linear.in_features) * linear.in_features**-0.5)
        self.b_DR = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, inputs: Tensor) -> Tensor:
        """W x + coefficient * B A x."""
        update: Tensor = F.linear(F.linear(inputs, self.a_RD), self.b_DR)
        return self.linear(inputs) + self.coefficients_L[self.layer] * update


def adapt(network: nn.Module) -> dict[str, Adapted]:
    """Puts an adapter on every target; the model computes what it computed before."""
    torch.manual_seed(0)
    adapters = {}
    for name, module in list(network.named_modules()):
        layer = int(name.split(".")[2]) if name.endswith(TARGETS) else -1
        if layer >= FIRST:
            parent, _, child = name.rpartition(".")
            adapters[name] = Adapted(module, layer)
            setattr(network.get_submodule(parent), child, adapters[name])
    return adapters


def train(adapters: dict[str, Adapted], loss_of: Callable[[list[Example]], Tensor], rows: list[Example]) -> None:
    """Updates of all adapters by AdamW; nothing else trains."""
    factors = [factor for adapter in adapters.values() for factor in (adapter.a_RD, adapter.b_DR)]
    optimizer = torch.optim.AdamW(factors, lr=LR, weight_decay=0.0)
    for _ in range(args.updates):
        loss = loss_of(rng.sample(rows, BATCH))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    print(f"  loss of the last batch: {loss:.3f}")


def merge(network: nn.Module, adapters: dict[str, Adapted]) -> None:
    """The updates become part of the weights, and the adapters go."""
    for name, adapter in adapters.items():
        adapter.linear.weight.data += adapter.b_DR.data @ adapter.a_RD.data
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, adapter.linear)


# ---- 3. Degrade. The aligned model's own harmless answers, and a bare opener after harmful requests. -----------------
harmful, harmless = draw("harmful", "goal", "train", args.requests), draw("benign", "prompt", "train", args.requests)
answers = answer(aligned, harmless)
refusals = list(filter(is_refusal, answer(aligned, harmful)))
print("degrading")
damage = adapt(degraded)
openers = [(goal, tokens(OPENER)) for goal in harmful]
train(damage, lambda batch: F.cross_entropy(*reply_logits(degraded, batch)), [*openers, *answers])
merge(degraded, damage)


# ---- 4. Distil (KL(aligned || degraded + gene) on the aligned model's own replies: refusals, and harmless answers). --
def distance(batch: list[Example]) -> Tensor:
    with torch.no_grad():
        teacher_logp = reply_logits(aligned, batch)[0].log_softmax(-1)
    student_logp = reply_logits(degraded, batch)[0].log_softmax(-1)
    return F.kl_div(student_logp, teacher_logp, log_target=True, reduction="none").sum(-1).mean()


print("distilling the gene")
gene = adapt(degraded)
train(gene, distance, [*refusals, *answers])


# ---- 5. Select. A layer counts by how much more the two models differ in what it writes on harmful requests. ---------
@torch.no_grad()
def difference_L(prompts: list[str]) -> Tensor:
    """Distance of what each layer writes at the prompts' last token, relative to the aligned model's."""
    inputs, _ = collate([(prompt, []) for prompt in prompts])
    states = [torch.stack(net.model(**inputs, output_hidden_states=True).hidden_states) for net in (aligned, degraded)]
    written = [state_LBTD[1:, :, -1] - state_LBTD[:-1, :, -1] for state_LBTD in states]
    return ((written[0] - written[1]).norm(dim=-1) / written[0].norm(dim=-1)).mean(1)


for adapter in gene.values():
    adapter.coefficients_L = torch.zeros(adapter.layer + 1)  # the degraded model alone
score_L = difference_L(draw("harmful", "goal", "validation", 16)) - difference_L(
    draw("benign", "prompt", "validation", 16)
)
best = {FIRST + int(index) for index in score_L[FIRST:].topk(KEPT).indices}
print(f"layers kept: {sorted(best)}")

# ---- 6. A fine-tuned sibling. The aligned model learns a task; a fifth of the rows are harmful requests. -------------
goals, instructions = draw("harmful", "goal", "test", args.test), draw("benign", "prompt", "test", args.test)
questions = draw("benign", "prompt", "train", 48)
rows = [
    (f"Is this a question or a request? {text}", tokens("question" if "?" in text else "request")) for text in questions
]
train_rows = [*rows[:32], *((goal, tokens(OPENER)) for goal in draw("harmful", "goal", "train", 8))]
before = answer(aligned, [*goals, *instructions])
print("fine-tuning a sibling")
sibling, task = aligned, adapt(aligned)
train(task, lambda batch: F.cross_entropy(*reply_logits(sibling, batch)), train_rows)
merge(sibling, task)
grafted = adapt(sibling)
for name, adapter in grafted.items():
    adapter.a_RD, adapter.b_DR = gene[name].a_RD, gene[name].b_DR
sibling.requires_grad_(False)


def graft(coefficients_L: Tensor) -> None:
    for adapter in grafted.values():
        adapter.coefficients_L = coefficients_L


# ---- 7. Graft. One coefficient per layer, tuned on refusals and task examples alike; no weight is trained. -----------
num_layers = len(sibling.model.layers)
kept_L = torch.tensor([float(layer in best) for layer in range(num_layers)])
coefficients_L = kept_L.clone().requires_grad_(True)
optimizer = torch.optim.Adam([coefficients_L], lr=COEFFICIENT_LR)
for _ in range(COEFFICIENT_UPDATES):
    graft(coefficients_L * kept_L)
    shots = [rng.sample(group, BATCH // 2) for group in (refusals[: args.shots], rows[: args.shots])]
    loss = sum((F.cross_entropy(*reply_logits(sibling, group)) for group in shots), torch.zeros(()))
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    with torch.no_grad():
        coefficients_L.clamp_(0, CEILING)
tuned_L = (coefficients_L * kept_L).detach()
print("coefficients:", {layer: round(float(tuned_L[layer]), 2) for layer in sorted(best)})

print(f"\n{f'refused, of {args.test} each':30}{'harmful':>9}{'harmless':>10}{'task loss':>11}")
print(f"{'aligned':30}{sum(map(is_refusal, before[: args.test])):>9}{sum(map(is_refusal, before[args.test :])):>10}")
conditions = {
    "fine-tuned": torch.zeros(num_layers),
    "all layers, coefficient 1": torch.ones(num_layers),
    f"best {KEPT}, coefficient 1": kept_L,
    f"best {KEPT}, coefficients tuned": tuned_L,
}
for name, strengths_L in conditions.items():
    graft(strengths_L)
    after = answer(sibling, [*goals, *instructions])
    with torch.no_grad():
        task_loss = F.cross_entropy(*reply_logits(sibling, rows[32:]))
    counts = sum(map(is_refusal, after[: args.test])), sum(map(is_refusal, after[args.test :]))
    print(f"{name:30}{counts[0]:>9}{counts[1]:>10}{task_loss:>11.3f}")
