"""AsFT by hand: TRL's SFTTrainer, a LoRA adapter of PEFT, and the safety basin in two lines.

python examples/asft_trl.py ALIGNED BASE ROWS.jsonl OUT     (ROWS: prompt and completion, as TRL takes them)
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import seawall

TARGETS = ("q_proj", "v_proj")
ROLES = {"prompt": "user", "completion": "assistant"}


def turn(line: str) -> dict[str, list[dict[str, str]]]:
    row = json.loads(line)
    return {name: [{"role": role, "content": row[name]}] for name, role in ROLES.items()}


def main(aligned: str, base: str, rows: str, out: str) -> None:
    basin = seawall.SafetyBasin.between(aligned, base, targets=TARGETS, rank=8, weight=1.0)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(aligned),
        processing_class=AutoTokenizer.from_pretrained(aligned),
        train_dataset=Dataset.from_list([turn(line) for line in Path(rows).read_text().splitlines()]),
        args=SFTConfig(out, num_train_epochs=1, learning_rate=5e-5, logging_steps=1, bf16=False, report_to="none"),
        peft_config=LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=list(TARGETS)),
    )
    basin.attach(trainer)
    trainer.train()
    print([line["safety_penalty"] for line in trainer.state.log_history if "safety_penalty" in line])
    trainer.model.save_pretrained(Path(out) / "adapter")


if __name__ == "__main__":
    main(*sys.argv[1:5])
