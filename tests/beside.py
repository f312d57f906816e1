"""Run in a process of its own: what other work leaves behind in a process that decodes. Prints one JSON object.

    python tests/beside.py [--encoder] [--times]

``threads`` of the process, and with ``--times`` ``v``, the cost of five tokens through four blocks of smollm2's widths: at the start,
after each kind of work, and in the end after a product of torch on this very thread, which spoils both where the fault exists.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from adapting import quick_config

from harness.adapt.adapters.surface import adapter_weights, attached
from harness.adapt.training.examples import from_stored, make_batch
from harness.adapt.training.torch_step import TorchStep
from harness.answers.collect import Stored
from harness.answers.torch_batch import TorchTarget
from harness.decode.calibrate import verification_cost
from harness.decode.fast import fast_steps
from harness.decode.sampling import Sampling
from harness.models.blas import blas_name, mx
from routing.encoder import load_encoder

WIDTHS = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 4}
PROMPT = list(range(100, 140))


def small_model() -> Any:
    """Random weights of smollm2's widths."""
    from mlx_lm.models.llama import Model, ModelArgs

    config = {**WIDTHS, "model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 2048, "rope_theta": 1e4, "tie_word_embeddings": True}
    model = Model(ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    return model


def kinds_of_work(model: Any) -> dict[str, Callable[[], Any]]:
    """Everything the harness does beside this project's own loop."""
    decoder, config = TorchTarget(model, frozenset(), "float32"), quick_config(lora={"num_layers": 2})
    step = TorchStep(model, config)

    def answers() -> list[Any]:
        return decoder([PROMPT] * 8, max_tokens=6, temperature=0, top_k=4, seed=0)

    def training() -> None:
        known = {"domain": "code", "prompt_tokens": PROMPT, "finish": "length", "max_tokens": 6, "temperature": 0.0}
        examples = [from_stored(Stored(sample_id=str(i), rollout=r, **known)) for i, r in enumerate(answers())]
        with attached(model, config.lora):
            step(make_batch(examples), None, 0.1, adapter_weights(model))

    def mlx_lm() -> list[Any]:
        return list(fast_steps(model, None, PROMPT, k=0, max_tokens=4, eos=frozenset(), sampling=Sampling()))

    work: dict[str, Callable[[], Any]] = {"answers": answers, "training": training, "mlx-lm": mlx_lm}
    if "--encoder" in sys.argv:
        texts, embed = (f"Sort {n} numbers in Python." for n in itertools.count()), load_encoder("minilm", 256, "auto")
        work["encoder"] = lambda: embed([next(texts) for _ in range(4)])
        work["encoder"]()  # its tokenizer starts threads that stay
    return work


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ahead of other processes, where the system lets us, for the fraction of a second that a measurement takes."""
    with suppress(PermissionError):
        schedule(os.SCHED_RR, 1)
    try:
        yield
    finally:
        schedule(os.SCHED_OTHER, 0)


def schedule(policy: int, priority: int) -> None:
    """Set how all threads of this process are scheduled; one that has just ended needs nothing."""
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            os.sched_setscheduler(int(task), policy, os.sched_param(priority))


def cost(model: Any) -> float | None:
    """v(5) now."""
    if "--times" not in sys.argv:
        return None
    with undisturbed():
        return verification_cost(model, 20)


def threads(most: int) -> int:
    """Threads of this process, once those that are ending have ended."""
    end = time.monotonic() + 5
    while (found := len(os.listdir("/proc/self/task"))) > most and time.monotonic() < end:
        time.sleep(0.01)
    return found


def main() -> None:
    """Do all kinds of work in turns with measurements."""
    model = small_model()
    kinds = kinds_of_work(model)
    start = {"after": "start", "v": (cost(model), cost(model))[1], "threads": (verification_cost(model, 1), threads(0))[1]}
    found = [start]
    for name, work in kinds.items():
        for _ in range(3):
            work()
        found.append({"after": name, "v": cost(model), "threads": threads(start["threads"])})
    torch.nn.functional.silu(torch.ones(512, 512) @ torch.ones(512, 512))
    found.append({"after": "torch on this thread", "v": cost(model), "threads": threads(start["threads"])})
    print(json.dumps({"blas": blas_name(), "found": found}))


if __name__ == "__main__":
    main()
