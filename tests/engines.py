"""Speculative decoding by other programs, greedy: ``python engines.py ENGINE TARGET DRAFT K MOST``, prompts of token ids as JSON on stdin.

Prints, per prompt, the emitted ``tokens``, the target passes they took (``rounds``), and the tokens ``drafted`` and ``accepted``.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def mlx_lm(target: str, draft: str, prompts: list[list[int]], k: int, most: int) -> list[dict[str, Any]]:
    """mlx-lm's own loop, through the call that its server and its command line make."""
    from harness.models.blas import mx  # a fast BLAS on Linux; mlx-lm itself is as it comes

    assert mx is not None
    from mlx_lm import stream_generate
    from mlx_lm.utils import load

    model, tokenizer = load(target)
    small, _ = load(draft)
    rows = []
    for prompt in prompts:
        answers = stream_generate(model, tokenizer, prompt, max_tokens=most, draft_model=small, num_draft_tokens=k)
        found = [(int(a.token), a.from_draft) for a in answers][:most]
        own = [i for i, (_, drafted) in enumerate(found) if not drafted]
        begins = [0, *(i + 1 for i in own if i + 1 < len(found))]  # a round ends with a token of the target's own
        drafts = sum(min(k, most - i) for i in begins)
        rows.append({"tokens": [t for t, _ in found], "rounds": len(begins), "drafted": drafts, "accepted": len(found) - len(own)})
    return rows


def mlx_lm_server(words: list[str]) -> None:
    """mlx-lm's own server, started by the words of a command line."""
    from harness.models.blas import mx  # as above

    assert mx is not None
    from mlx_lm import server

    sys.argv = words
    server.main()


def transformers(target: str, draft: str, prompts: list[list[int]], k: int, most: int) -> list[dict[str, Any]]:
    """Assisted generation of transformers with a constant number of draft tokens."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation import candidate_generator

    torch.set_num_threads(1)
    model, small = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (target, draft))
    small.generation_config.num_assistant_tokens = k
    small.generation_config.num_assistant_tokens_schedule = "constant"
    small.generation_config.assistant_confidence_threshold = 0.0
    counts: list[int] = []
    candidates = candidate_generator.AssistedCandidateGenerator.get_candidates

    def counted(self: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        found = candidates(self, ids, *args, **kwargs)
        counts.append(found[0].shape[1] - ids.shape[1])
        return found

    candidate_generator.AssistedCandidateGenerator.get_candidates = counted
    rows = []
    for prompt in prompts:
        counts.clear()
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=small, do_sample=False, max_new_tokens=most)
        tokens = out[0, len(prompt) :].tolist()
        rows.append({"tokens": tokens, "rounds": len(counts), "drafted": sum(counts), "accepted": len(tokens) - len(counts)})
    return rows


def llama_cpp(target: str, draft: str, prompts: list[list[int]], k: int, most: int) -> list[dict[str, Any]]:
    """llama.cpp's server, as the PyPI package xllamacpp builds it, with a draft model."""
    from urllib.request import Request, urlopen

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = target, 2048, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # threads that wait for each other lose much beside other work
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    params.speculative.draft.mparams.path = draft
    params.speculative.draft.n_max, params.speculative.draft.n_min, params.speculative.draft.p_min = k, 0, 0.0
    params.speculative.draft.cpuparams.n_threads = params.speculative.draft.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    rows = []
    for prompt in prompts:
        asked = {"prompt": prompt, "n_predict": most, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        request = Request(f"{server.listening_address}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"})
        answer = json.load(urlopen(request))
        drafted, accepted = (answer["timings"].get(name) or 0 for name in ("draft_n", "draft_n_accepted"))
        tokens = answer["tokens"]
        rows.append({"tokens": tokens, "rounds": len(tokens) - accepted, "drafted": drafted, "accepted": accepted})
    return rows


def llama_cpp_python(target: str, draft: str, prompts: list[list[int]], k: int, most: int) -> list[dict[str, Any]]:
    """llama-cpp-python's own loop, which takes any callable for a draft: here the exported draft's favourites."""
    from itertools import islice

    import numpy as np
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaDraftModel

    how: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    greedy = {"temp": 0.0, "repeat_penalty": 1.0}
    small, passes = Llama(draft, **how), []

    class Exported(LlamaDraftModel):
        def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
            passes.append(len(input_ids))
            return np.array(list(islice(small.generate(input_ids.tolist(), **greedy), k)), dtype=np.intc)

    model = Llama(target, draft_model=Exported(), **how)
    rows = []
    for prompt in prompts:
        passes.clear()
        tokens: list[int] = []
        for token in model.generate(prompt, **greedy):
            tokens.append(token)
            if len(tokens) == most or token == model.token_eos():
                break
        rounds = len(passes) + 1  # the pass over the prompt verifies nothing
        drafted = sum(max(0, min(k, most - (read - len(prompt)) - 1)) for read in passes)  # what fits into the answer
        rows.append({"tokens": tokens, "rounds": rounds, "drafted": drafted, "accepted": len(tokens) - rounds})
    return rows


ENGINES = {"mlx-lm": mlx_lm, "transformers": transformers, "llama.cpp": llama_cpp, "llama-cpp-python": llama_cpp_python}

if __name__ == "__main__":
    name, target_path, draft_path, k_text, most_text = sys.argv[1:]
    print(json.dumps(ENGINES[name](target_path, draft_path, json.load(sys.stdin), int(k_text), int(most_text))))
