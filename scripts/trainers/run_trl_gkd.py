"""Run TRL's GKD trainer: PYTHON run_trl_gkd.py TEACHER STUDENT WINDOWS.json OUT STEPS BATCH RATE

Runs in TRL's environment. λ is 0, so the student writes no text. β is 0, so the loss is the KL of teacher and student.
All is float32, without gradient checkpointing, with one micro-batch per step. Prints one JSON line with the seconds of
every step, the losses, and the peak memory.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import peak_bytes
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer


class Clock(TrainerCallback):
    """Records the time at which each step ended, in seconds. The first entry is the start of the first step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_begin(self, *arguments: Any, **options: Any) -> None:
        if not self.ends:
            self.ends.append(time.perf_counter())

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.ends.append(time.perf_counter())


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def main(teacher: str, student: str, windows: str, out: str, steps: str, batch: str, rate: str) -> None:
    ids = json.loads(Path(windows).read_text())
    arguments = GKDConfig(
        output_dir=out,
        max_steps=int(steps),
        per_device_train_batch_size=int(batch),
        learning_rate=float(rate),
        lmbda=0.0,
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    big, small = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (teacher, student))
    clock = Clock()
    trainer = GKDTrainer(
        model=small,
        teacher_model=big,
        args=arguments,
        data_collator=collate,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        processing_class=AutoTokenizer.from_pretrained(teacher),
        callbacks=[clock],
    )
    trainer.train()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print("\n" + json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
