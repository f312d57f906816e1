"""``harness train-router`` and ``harness route``: learn which adapter suits which prompt, and ask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.generate import JsonOption, OfflineOption, PairOption, source_seed
from harness.cli.run import ResultsOption
from harness.cli.worker import ClusterOption, crew_of, joined
from harness.core.limits import BATCH, MAX_TOKENS
from harness.core.progress import note, notes_to
from harness.core.terminal import read_input, say

if TYPE_CHECKING:
    from harness.adapt.routers.fitting import RouterData
    from harness.core.records import Sample
    from routing.policy import Decision, PromptRouter

AdaptersOption = Annotated[Path | None, typer.Option("--adapters", metavar="DIR", help="Folder of adapters; else the installed ones.")]
RouterFileOption = Annotated[Path | None, typer.Option("--router", metavar="FILE", help="Router file; else the pair's own.")]


@notes_to(partial(say, err=True))
def train_router(
    source: Annotated[str, typer.Argument(metavar="SUITE|FILE|RUN", help="A suite or JSONL file of prompts, or a finished run.")],
    models: Annotated[str | None, typer.Option("--models", metavar="PAIR", help="Model pair; the run's, or smollm2, without it.")] = None,
    config: Annotated[str, typer.Option(help="Router settings: a name in configs/router or a path.")] = "default",
    k: Annotated[str | None, typer.Option("-k", "--k", metavar="N", help="A number, or auto; the pair's or the run's without it.")] = None,
    split: Annotated[str, typer.Option(help="Prompts to learn from: train or validation; test and all need a flag.")] = "train",
    limit: Annotated[int, typer.Option(min=1, help="Prompts per domain.")] = 100,
    skip: Annotated[int, typer.Option(min=0, help="Leave out this many per domain first, such as those the adapters learned from.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the target.")] = MAX_TOKENS,
    batch: Annotated[int, typer.Option(min=1, help="Prompts answered together.")] = BATCH,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a router setting.")] = None,
    adapters: AdaptersOption = None,
    router_file: RouterFileOption = None,
    results: ResultsOption = Path("results"),
    table_only: Annotated[bool, typer.Option("--table-only", help="Print the table and save no router.")] = False,
    evaluation_prompts: Annotated[
        bool, typer.Option("--evaluation-prompts", help="Learn from test prompts too: they can then judge this router no more.")
    ] = False,
    as_json: JsonOption = False,
    offline: OfflineOption = False,
    cluster: ClusterOption = None,
) -> None:
    """Learn which adapter suits which prompt, and show what that gains.

    Every installed adapter is replayed on every prompt, and the pair's memory where it has one, alone and before each draft; or the
    outcomes are read from a run's records (adapters trained in the run are installed). The table compares the router, by grouped
    cross-validation, with each drafter fixed, the best fixed one, a random choice, the true domain's adapter, and the best choice of
    every prompt, and says who proposed how many of the tokens.

    Example: `harness train-router suites/full.yaml --limit 100 -k 4`
    """
    from harness.adapt.routers.routed import fit_router, load_router_config, router_path, save_router

    settings, length = load_router_config(config, set_ or []), _length(k)
    allow_test = table_only or evaluation_prompts
    if _is_run(source, results):
        name, material = _from_run(source, results, models, adapters, length, allow_test, offline)
    else:
        name = _pair_name(models or "smollm2")
        folders = _adapters(name, adapters, memory=settings.memory)
        settings = settings.seeded(source_seed(source))
        samples = _prompts(source, split, limit, skip, allow_test, offline)
        from harness.adapt.adapters.names import installed
        from harness.adapt.routers.fitting import replay_material
        from harness.models.pair import load_pair

        how: dict[str, Any] = {"k": length or _own_k(models or "smollm2"), "max_tokens": max_tokens, "batch": batch}
        how |= {"calibrated": settings.reward == "speedup", "memory": settings.memory}
        pair = load_pair(models or "smollm2", offline=offline, lazy=cluster is not None)
        if not adapters and pair.draft is not None:
            folders = installed(name, pair.draft.hash)
        _note_known(folders, samples)
        with joined(cluster) as workers:
            crew = crew_of(workers, pair, models or "smollm2", offline=offline)
            material = replay_material(pair, samples, folders, crew=crew, **how)
    from harness.adapt.routers.fitting import install_adapters
    from harness.adapt.routers.judging import compare, describe, report, show

    hashes = material.adapter_hashes
    router = fit_router(material.table, settings, k=material.k, adapter_hashes=hashes, groups=material.groups, offline=offline)
    route_s = sum(_warm(router, (material.table.prompts or ("",))[0], 5).values())
    note(f"evaluating the router on {len(material.table)} prompts, {settings.folds}-fold")
    evaluation = compare(material, settings, offline=offline, route_s=route_s)
    found = {"pair": name, "run_id": material.run_id, **describe(router), **report(evaluation, settings, material.k, material, route_s)}
    if not table_only:
        if not adapters:
            install_adapters(name, material.folders)
        path = save_router(router, router_file or router_path(name), run_id=material.run_id, adapter_hashes=hashes)
        found["router"] = str(path)
    if as_json:
        say(json.dumps(found, indent=2))
        return
    say(show(found))
    say(f"{found['kind']}, saved to {found['router']}" if "router" in found else f"{found['kind']}, not saved")


def _is_run(source: str, results: Path) -> bool:
    from harness.results.manifest import MANIFEST

    return any((folder / MANIFEST).is_file() for folder in (results / source, Path(source)))


def _adapters(pair_name: str, folder: Path | None, *, memory: bool = False) -> Mapping[str, Path]:
    """Name -> folder of the adapters to choose from; refused when there is none, nor a memory where that counts."""
    from harness.adapt.adapters.adapter_folder import list_adapters
    from harness.adapt.adapters.names import installed
    from harness.core.errors import HarnessError
    from harness.core.paths import found_memory

    found = installed(pair_name) if folder is None else list_adapters(folder)
    if not found and not (memory and found_memory(pair_name)):
        where = f"installed for pair {pair_name!r}" if folder is None else f"in {folder}"
        raise HarnessError(f"there are no adapters {where}", "Train some with `harness train`, or name their folder with --adapters.")
    return found


def _pair_name(models: str) -> str:
    """Name of a pair whose file exists and is valid; nothing is loaded."""
    from harness.models.naming import pair_name

    return pair_name(models)


def _length(text: str | None) -> int | str | None:
    """The draft length that is asked for; None where none is."""
    from harness.core.errors import HarnessError
    from harness.core.limits import written_length

    k = written_length(text)
    if k in (0, "dynamic"):
        raise HarnessError(f"a router does not learn at draft length {text}", "Give -k a number of at least 1, or auto.")
    return k


def _own_k(models: str) -> int:
    """Draft length of a pair where none is asked for."""
    from harness.models.naming import read_pair_config

    return read_pair_config(models).k


def _measured_k(ks: Sequence[int | str | None]) -> int | str:
    """The draft length that most of a run's adapter samples used, a number where there is any."""
    numbers = [k for k in ks if isinstance(k, int)]
    return max(sorted(set(numbers)), key=numbers.count, default="auto" if "auto" in ks else 4)


def _prompts(source: str, split: str, limit: int, skip: int, allow_test: bool, offline: bool) -> Sequence[Sample]:
    """``limit`` prompts per domain of a split, after the first ``skip``; test prompts, and prompts close to one, are refused."""
    from harness.cli.generate import read_samples
    from harness.core.errors import HarnessError
    from harness.datasets.splits import refuse_leaks

    left_out = {s.id for s in read_samples(source, split=split, limit=skip, offline=offline)} if skip else set()
    read = read_samples(source, split=split, limit=skip + limit, offline=offline)
    samples = [s for s in read if s.id not in left_out]
    if not samples:
        raise HarnessError(f"no prompts of split {split!r} are left after the first {skip} of each domain", "Lower --skip.")
    if not allow_test:
        _refuse_test(samples)
        everything = read_samples(source, split="all", limit=10**9, offline=offline)
        refuse_leaks(samples, [s for s in everything if s.split == "test"])
    return samples


def _note_known(folders: Mapping[str, Path], samples: Sequence[Sample]) -> None:
    """Say so where an adapter was trained on prompts that it is now compared on."""
    from harness.adapt.shelf import seen_prompts

    if known := {sample: name for name, folder in folders.items() for sample in seen_prompts(folder, samples)}:
        name = min(known.values())
        note(f"{len(known)} of {len(samples)} prompts trained an adapter, such as {name}, which flatters it: --split validation has others")


def _refuse_test(samples: Sequence[Sample]) -> None:
    from harness.core.errors import HarnessError

    test = [s for s in samples if s.split == "test"]
    if test:
        raise HarnessError(
            f"{len(test)} of {len(samples)} prompts are evaluation prompts (split test), such as {test[0].id}",
            "Use --split train, or --table-only to evaluate without saving, or --evaluation-prompts to learn from them all the same.",
        )


def _from_run(
    source: str, results: Path, models: str | None, adapters: Path | None, k: int | str | None, allow_test: bool, offline: bool
) -> tuple[str, RouterData]:
    from harness.adapt.adapters.names import installed
    from harness.adapt.routers.fitting import recorded_material, run_adapters, run_samples
    from harness.results.manifest import read_manifest, run_folder
    from harness.results.reading import read_records

    folder = run_folder(results, source)
    manifest = read_manifest(folder)
    name = manifest.pair if models is None else _pair_name(models)
    folders = _adapters(name, adapters) if adapters else run_adapters(manifest, installed(name))
    samples = run_samples(manifest, offline=offline)
    if not allow_test:
        _refuse_test(samples)
    records = read_records(folder)
    k = k or _measured_k([r.k for r in records if r.drafter == "adapter"])
    return name, recorded_material(manifest, records, samples, folders, k=k)


def route(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The user turn; - reads it from standard input.")],
    models: PairOption = "smollm2",
    adapters: AdaptersOption = None,
    router_file: RouterFileOption = None,
    encoder: Annotated[str | None, typer.Option(metavar="DIR", help="Sentence encoder of a router trained with a local one.")] = None,
    nearest: Annotated[int, typer.Option(min=0, help="Training prompts to show.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Warm measurements; the median is shown.")] = 5,
    as_json: JsonOption = False,
    offline: OfflineOption = False,
) -> None:
    """Show which adapter the router picks for a prompt, why, and what the choice costs.

    No model is loaded but the sentence encoder.

    Example: `harness route "Write a function that sorts names"`
    """
    import time

    from harness.adapt.routers.routed import load_router, routing_errors
    from harness.core.errors import HarnessError

    text = read_input() if prompt == "-" else prompt
    if not text.strip():
        raise HarnessError("the prompt is empty", "Write the prompt in quotes after `harness route`.")
    name = _pair_name(models)
    folders = _adapters(name, adapters, memory=True)
    start = time.perf_counter()
    router = load_router(name, folders, path=router_file, encoder=encoder, offline=offline)
    with routing_errors():
        decision = router.decide(text, n_nearest=nearest)
        cold_s = time.perf_counter() - start
        warm = _warm(router, text, repeats)
    found = _decided(name, decision, router.shares_.get(decision.arm.name, {}), cold_s, warm)
    say(json.dumps(found, indent=2) if as_json else _show(found))


def _warm(router: PromptRouter, text: str, repeats: int) -> dict[str, float]:
    """Median seconds of embedding and choosing; each repeat is a new text of the same words, so no cache answers it."""
    from statistics import median

    decisions = [router.decide(text + "\n" * i) for i in range(1, repeats + 1)]
    return {"embed_s": median(d.embed_s for d in decisions), "choose_s": median(d.choose_s for d in decisions)}


def _decided(name: str, decision: Decision, shares: Mapping[str, float], cold_s: float, warm: Mapping[str, float]) -> dict[str, Any]:
    return {
        "pair": name,
        "drafter": decision.arm.drafter,
        "k": decision.arm.k,
        "confidence": decision.confidence,
        "abstained": decision.abstained,
        "unfamiliar": decision.unfamiliar,
        "scores": decision.scores,
        "sources": dict(shares),
        "nearest": [{"prompt": n.prompt, "distance": n.distance, "best": n.best} for n in decision.nearest],
        "cold_s": cold_s,
        "warm": warm,
    }


def _show(found: Mapping[str, Any]) -> str:
    reason = "the prompt is unlike the training prompts" if found["unfamiliar"] else "too unsure to leave it"
    why = f"fallback: {reason}" if found["abstained"] else f"confidence {found['confidence']:.2f}"
    ranked = sorted(found["scores"].items(), key=lambda item: -item[1])
    lines = [f"{found['drafter']} ({why})"]
    if found["sources"]:
        from harness.adapt.routers.judging import shares_text

        lines.append(f"its tokens on the training prompts: {shares_text(found['sources'])}")
    lines.append("scores:")
    lines += [f"  {name:<16} {score:.3f}" for name, score in ranked]
    if found["nearest"]:
        lines.append("nearest training prompts:")
        lines += [f"  {n['distance']:.3f}  best {n['best']:<16} {' '.join(n['prompt'].split())[:70]}" for n in found["nearest"]]
    warm = found["warm"]
    lines.append(
        f"cold {1000 * found['cold_s']:.0f} ms (router and encoder loaded), "
        f"warm {1000 * warm['embed_s']:.1f} ms embed + {1000 * warm['choose_s']:.1f} ms choose"
    )
    return "\n".join(lines)
