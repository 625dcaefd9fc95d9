"""Trains the model on the token arrays that corpus.py wrote.

    python train.py --work .train --model onnx_moe/data/tiny-glm --device cuda --minutes 8

The forward pass runs in bfloat16 exactly as the saved model will; AdamW updates float32 master weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from evaluate import mean_loss
from model import create_model
from routing import LoadCounter, load_statistics
from torch.nn import functional
from transformers import AutoTokenizer, GenerationConfig


@dataclass(frozen=True)
class Settings:
    """What the command line sets; training ends at ``steps`` or ``minutes``, whichever comes first."""

    work: Path
    model: Path
    out: Path
    device: str = "cuda"
    minutes: float = 8.0
    steps: int = 1_000_000
    batch: int = 32
    sequence: int = 2048
    learning_rate: float = 6e-3
    weight_decay: float = 0.2
    warmup_steps: int = 300
    balance_step: float = 1e-3
    evaluations: int = 24
    compile: bool = False
    seed: int = 0


def _settings() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder with tokenizer and heldout.txt")
    parser.add_argument("--out", type=Path, help="where the model goes; default: --model")
    parser.add_argument("--compile", action="store_true")
    for name, default in (("device", "cuda"), ("minutes", 8.0), ("steps", 1_000_000), ("batch", 32)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    for name, default in (("sequence", 2048), ("seed", 0), ("evaluations", 24)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    for name, default in (("learning-rate", 6e-3), ("weight-decay", 0.2)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    values = vars(parser.parse_args())
    return Settings(**{**values, "out": values["out"] or values["model"]})


def _batches(tokens: torch.Tensor, settings: Settings) -> Iterator[torch.Tensor]:
    """Random windows of one token more than the sequence length, for ever."""
    generator = torch.Generator(device=tokens.device).manual_seed(settings.seed)
    offsets = torch.arange(settings.sequence + 1, device=tokens.device)
    while True:
        starts = torch.randint(
            len(tokens) - settings.sequence - 1,
            (settings.batch, 1),
            generator=generator,
            device=tokens.device,
        )
        yield tokens[starts + offsets].long()


class MasterWeights:
    """Float32 copies of bfloat16 parameters, updated by AdamW; matrices decay, norms and embedding do not."""

    def __init__(self, model: torch.nn.Module, settings: Settings) -> None:
        named = list(model.named_parameters())
        self._parameters: list[torch.Tensor] = [parameter for _, parameter in named]
        self._masters = [parameter.detach().float().clone() for parameter in self._parameters]
        decays = [parameter.dim() >= 2 and "embed_tokens" not in name for name, parameter in named]
        groups = [
            {
                "params": [master for master, decay in zip(self._masters, decays, strict=True) if decay is wanted],
                "weight_decay": settings.weight_decay if wanted else 0.0,
            }
            for wanted in (True, False)
        ]
        fused = settings.device.startswith("cuda")
        self._optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=fused)

    @torch.no_grad()
    def step(self, learning_rate: float) -> torch.Tensor:
        """One update from the parameters' gradients, clipped to norm 1; the norm before clipping."""
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            master.grad = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        torch._foreach_copy_(self._parameters, self._masters)
        return norm


class Run:
    """A training run: its clock, log and best checkpoint so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self.tokenizer = AutoTokenizer.from_pretrained(settings.model)
        self.model = create_model(len(self.tokenizer), self.device)
        self.counter = LoadCounter(self.model)
        self.weights = MasterWeights(self.model, settings)
        arrays = {name: np.load(settings.work / f"{name}.npy") for name in ("train", "validation")}
        text = (settings.model / "heldout.txt").read_text(encoding="utf-8")
        self.train_tokens = torch.from_numpy(arrays["train"].astype(np.int32)).to(self.device)
        self.held_out = {
            "validation": torch.from_numpy(arrays["validation"].astype(np.int64)),
            "heldout": torch.tensor(self.tokenizer(text)["input_ids"]),
        }
        self.best = math.inf
        self.started = time.monotonic()
        settings.out.mkdir(parents=True, exist_ok=True)
        self.log = (settings.out / "training_log.jsonl").open("w", encoding="utf-8")

    def progress(self, step: int) -> float:
        """0 at the start, 1 when the steps or the minutes are used up."""
        minutes = (time.monotonic() - self.started) / 60
        return min(1.0, max(step / self.settings.steps, minutes / self.settings.minutes))

    def evaluate(self, step: int, **figures: float) -> None:
        """Logs perplexities and expert loads on held-out text; saves the model when it is the best so far."""
        self.model.eval()
        self.counter.take()
        losses = {name: mean_loss(self.model, tokens, self.settings.sequence) for name, tokens in self.held_out.items()}
        counts = self.counter.take()
        self.model.train()
        record = {
            "step": step,
            "tokens": step * self.settings.batch * self.settings.sequence,
            "minutes": round((time.monotonic() - self.started) / 60, 2),
            **{name: round(value, 5) for name, value in figures.items()},
            **{f"{name}_perplexity": round(math.exp(loss), 4) for name, loss in losses.items()},
            "expert_load": load_statistics(counts),
        }
        line = json.dumps(record)
        print(line, file=self.log, flush=True)
        print(line, flush=True)
        if losses["validation"] < self.best:
            self.best = losses["validation"]
            self.model.save_pretrained(self.settings.out)

    def train(self) -> None:
        """The loop: cosine schedule by steps or by the clock, router balancing after every step."""
        settings = self.settings
        forward = torch.compile(self.model) if settings.compile else self.model
        step, evaluated = 0, 0
        self.model.train()
        batches = _batches(self.train_tokens, settings)
        recent = torch.zeros((), device=self.device)
        recent_steps = 0
        while (progress := self.progress(step)) < 1:
            batch = next(batches)
            logits = forward(input_ids=batch[:, :-1], use_cache=False).logits
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
            loss.backward()
            decay = 0.5 * (1 + math.cos(math.pi * progress))
            rate = settings.learning_rate * min(1.0, (step + 1) / settings.warmup_steps) * decay
            self.weights.step(rate)
            self.counter.balance(self.counter.take(), settings.balance_step * decay)
            step, recent_steps = step + 1, recent_steps + 1
            recent += loss.detach()
            if (due := int(self.progress(step) * settings.evaluations)) > evaluated:
                evaluated = due
                self.evaluate(step, loss=float(recent) / recent_steps, learning_rate=rate)
                recent.zero_()
                recent_steps = 0

    def finish(self) -> None:
        """Writes what belongs to the model besides its weights."""
        GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=1, do_sample=False).save_pretrained(
            self.settings.out
        )
        used = {name: str(value) for name, value in asdict(self.settings).items() if not isinstance(value, Path)}
        (self.settings.work / "settings.json").write_text(json.dumps(used, indent=1) + "\n", encoding="utf-8")
        self.log.close()


def main() -> None:
    run = Run(_settings())
    run.train()
    run.finish()


if __name__ == "__main__":
    main()
