"""Loss of a model on held-out tokens, and what its routers do there.

    python evaluate.py --work .train --model onnx_moe/data/tiny-glm

Loads the saved model as any user would, on the CPU in bfloat16, and writes ``evaluation.json`` to the
work folder.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from routing import LoadCounter, divergence_bits, load_statistics
from tokenizer import CONTEXT_LENGTH, END_OF_TEXT
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

_PROMPTS = (
    "A function in Rust is",
    "The following options are available:",
    "if __name__ == '__main__':",
    "def main(argv=None):\n    parser = argparse.ArgumentParser(",
)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, tokens: torch.Tensor, window: int, batch: int = 16) -> float:
    """Mean negative log-likelihood (nats) of all tokens but the first.

    Windows follow one another and share one token, so each token is predicted once, from what precedes it in
    its window.
    """
    device = next(model.parameters()).device
    pieces = [tokens[start : start + window + 1] for start in range(0, len(tokens) - 1, window)]
    total = 0.0
    while pieces:
        group = [pieces.pop(0)]
        while pieces and len(group) < batch and len(pieces[0]) == len(group[0]):
            group.append(pieces.pop(0))
        ids = torch.stack(group).to(device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        total += functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
    return total / (len(tokens) - 1)


def _figures(loss: float, tokens: int, size: int) -> dict[str, float]:
    """Perplexity per token and bits per byte of text."""
    return {
        "perplexity": round(math.exp(loss), 3),
        "bits_per_byte": round(loss / math.log(2) * (tokens - 1) / size, 4),
    }


def _randomised_routing(counter: LoadCounter, routed: Callable[[], float]) -> float:
    """The result of ``routed`` while each token goes to experts drawn at random, its weights unchanged."""
    generator = torch.Generator().manual_seed(0)

    def shuffle(
        _module: torch.nn.Module, _inputs: object, outputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        logits, weights, chosen = outputs
        keys = torch.rand(logits.shape, generator=generator)
        return logits, weights, keys.topk(chosen.shape[1]).indices

    hooks = [router.register_forward_hook(shuffle) for router in counter.routers]
    try:
        return routed()
    finally:
        for hook in hooks:
            hook.remove()


def _continue(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=80, do_sample=False)
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


def evaluate(folder: Path, manifest: dict[str, dict[str, float]]) -> dict[str, object]:
    """Perplexity, n-gram baselines, expert loads by kind of text, and greedy continuations."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    counter = LoadCounter(model)
    text = (folder / "heldout.txt").read_text(encoding="utf-8")
    kinds = [source["kind"] for source in json.loads((folder / "heldout_sources.json").read_text())]
    size = len(text.replace(END_OF_TEXT, "").encode())
    tokens = torch.tensor(tokenizer(text)["input_ids"])

    def loss() -> float:
        return mean_loss(model, tokens, CONTEXT_LENGTH)

    results: dict[str, object] = {
        "parameters": model.num_parameters(),
        "tokens": len(tokens),
        "bytes": size,
        "model": _figures(loss(), len(tokens), size),
        "expert_load": load_statistics(counter.take()),
        "random_experts": _figures(_randomised_routing(counter, loss), len(tokens), size),
    }
    for name, bits in manifest["bits_per_token"].items():
        results[name] = _figures(bits * math.log(2), len(tokens), size)

    loads = {}
    for kind in ("prose", "code"):
        texts = [part for part, its in zip(text.split(END_OF_TEXT), kinds, strict=True) if its == kind]
        halves = []
        for half in (texts[::2], texts[1::2]):
            counter.take()
            mean_loss(model, torch.tensor(tokenizer(END_OF_TEXT.join(half))["input_ids"]), CONTEXT_LENGTH)
            halves.append(counter.take())
        loads[kind] = halves[0] + halves[1]
        ids = torch.tensor(tokenizer(END_OF_TEXT.join(texts))["input_ids"])
        results[kind] = {
            **_figures(mean_loss(model, ids, CONTEXT_LENGTH), len(ids), len("".join(texts).encode())),
            "expert_load": load_statistics(loads[kind]),
            "divergence_between_halves": divergence_bits(*halves),
        }
    results["divergence_prose_code"] = divergence_bits(loads["prose"], loads["code"])
    results["generations"] = [_continue(model, tokenizer, prompt) for prompt in _PROMPTS]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    arguments = parser.parse_args()
    manifest = json.loads((arguments.work / "manifest.json").read_text(encoding="utf-8"))
    results = evaluate(arguments.model, manifest)
    (arguments.work / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
