"""``harness generate`` and ``harness collect``: one prompt, or the target's answers to many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.asking import (
    LenienceOption,
    MessagesOption,
    MinPOption,
    Shown,
    StopOption,
    SystemOption,
    TopKOption,
    TopPOption,
    conversation,
)
from harness.cli.shards import ShardsBackendOption, ShardsOption, sharded
from harness.cli.worker import ClusterOption, joined, pool_of
from harness.core.drafter_kinds import check_needs, described, drafter_kinds, find_kind, needs_draft, split_name
from harness.core.limits import BATCH, MAX_TOKENS, TOP_K
from harness.core.progress import notes_to
from harness.core.settings_file import DecodeSettings, load_settings, naming
from harness.core.terminal import read_input, say

if TYPE_CHECKING:
    from harness.core.records import Generation, Sample

PAIR_HELP = "A configured pair, a YAML file, TARGET or TARGET+DRAFT: hub names, folders, .gguf files."
PairOption = Annotated[str, typer.Option("--models", metavar="PAIR", help=PAIR_HELP)]
FallbackOption = Annotated[
    bool, typer.Option("--fallback", help="Where the draft cannot be had or does not fit, go on with the target alone.")
]
SettingsOption = Annotated[
    Path | None, typer.Option("--settings", metavar="FILE", help="Decode as this file says, such as a report's settings.yaml; options win.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use only what is in the cache.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The user turn; - reads it from standard input. Without it --messages ends with one."),
    ] = None,
    models: Annotated[str | None, typer.Option(metavar="PAIR", help=PAIR_HELP, show_default="smollm2")] = None,
    drafter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"By default generic, or lookup. {described()}; none for plain decoding.",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="Draft with this adapter of `harness train`, alone or in --drafter.")
    ] = None,
    route: Annotated[bool, typer.Option("--route", help="Let the pair's router choose the adapter.")] = False,
    k: Annotated[
        str | None,
        typer.Option(
            "-k",
            "--k",
            metavar="N",
            help="Draft length: a number, dynamic or auto. The pair's own by default, with --route the router's.",
            show_default=False,
        ),
    ] = None,
    loop: Annotated[str | None, typer.Option(help="own (this project's loop) or mlx-lm (mlx-lm's own).", show_default="own")] = None,
    rule: Annotated[str | None, typer.Option(help="match or rejection.", show_default="match")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.", show_default="0.0")] = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    lenience: LenienceOption = None,
    stop: StopOption = None,
    system: SystemOption = None,
    messages: MessagesOption = None,
    settings: SettingsOption = None,
    draft_context: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of a longer prompt the draft reads its last N tokens; the answer is the same.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = MAX_TOKENS,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    fallback: FallbackOption = False,
    offline: OfflineOption = False,
    shards: ShardsOption = 1,
    shards_backend: ShardsBackendOption = None,
) -> None:
    """Answer one prompt with speculative decoding and show the counts.

    The answer goes to standard output, the counts to standard error.

    Example: `harness generate "Write a haiku" --drafter lookup -k 4 --max-tokens 64`
    """

    from harness.core.limits import check, written_length

    one_of("--loop", loop or "own", ("own", "mlx-lm"))
    one_of("--rule", rule or "match", ("match", "rejection"))
    check(temperature=temperature or 0.0, max_tokens=max_tokens, seed=seed)
    length = written_length(k)
    if shards > 1 and prompt == "-":
        from harness.core.errors import HarnessError

        raise HarnessError("--shards reads no prompt from standard input", "Give the prompt on the command line.")
    asked = conversation(read_input() if prompt == "-" else prompt, system, messages)
    given = load_settings(settings) if settings else DecodeSettings()
    filters = {"top_p": top_p, "top_k": top_k, "min_p": min_p, "lenience": lenience}
    chosen = given.replace(models=models, loop=loop, rule=rule, temperature=temperature, **filters)
    if settings is None or drafter is not None or adapter is not None or route:
        name = _drafter(chosen.models, drafter, adapter, route)
    else:
        name = _named_in(settings, chosen)
    options = _options(chosen)
    from harness import api

    with sharded(shards, shards_backend) as parts, notes_to(lambda line: say(line, err=True)):
        pair = api.load_pair(
            chosen.models, offline=offline, draft=needs_draft(name), fallback=fallback, draft_context=draft_context, shards=parts
        )
        if pair.without_draft is not None:
            name = "lookup"
        if split_name(name or "")[1] == "router":
            api.pair_router(pair, offline=offline)
        shown = Shown(pair.decode, stop or ())
        result = api.generate(
            pair,
            asked,
            drafter=name,
            loop=chosen.loop,
            rule=chosen.rule,
            temperature=chosen.temperature,
            max_tokens=max_tokens,
            seed=seed,
            on_step=lambda step: say("".join(map(shown.add, step.tokens)), end=""),
            stop=shown.stop,
            lenience=chosen.lenience,
            k=chosen.k if length is None else length,
            **chosen.filters(),
            **options,
        )
        say(shown.rest())
        say(summary(result), err=True)


def _named_in(path: Path, chosen: DecodeSettings) -> str | None:
    """The drafter of a settings file, checked before any model loads.

    Raises:
        HarnessError: it is not there.
    """
    from harness.adapt.adapters.names import check_drafter
    from harness.models.head_config import check_head
    from harness.models.naming import find_pair

    around, inner = split_name(chosen.drafter or "")
    if inner == "router":
        return _drafter(chosen.models, around, None, True)
    with naming(path):
        pair = find_pair(chosen.models)
        check_drafter(pair.name, chosen.drafter)
        check_head(pair, chosen.drafter)
    return chosen.drafter


def _options(chosen: DecodeSettings) -> dict[str, Any]:
    """Options of the drafter as :func:`harness.api.generate` takes them."""
    if not chosen.options.given():
        return {}
    from harness.decode.making import DrafterOptions

    return {"options": DrafterOptions(**chosen.options.given())}


def _drafter(models: str, drafter: str | None, adapter: str | None, route: bool) -> str | None:
    """Turn the three options into the name :func:`harness.api.generate` takes, checked before any model loads.

    Raises:
        HarnessError: an adapter and the router, an unknown name, or no router.
    """
    from harness.adapt.adapters.names import check_around, installed
    from harness.core.errors import HarnessError, did_you_mean
    from harness.models.head_config import check_head
    from harness.models.naming import find_pair

    if adapter is not None and route:
        raise HarnessError("--adapter and --route exclude each other", "Give one of them.")
    if drafter is not None and (adapter is not None or route):
        check_around(drafter, adapter or "router")
        return f"{drafter}+{_drafter(models, None, adapter, route)}"
    pair = find_pair(models)
    if drafter is not None:
        if find_kind(drafter) is None:
            one_of("--drafter", drafter, (*drafter_kinds(), "none"))
        check_needs(pair.name, drafter)
        check_head(pair, drafter)
        return None if drafter == "none" else drafter
    if route:
        from harness.adapt.routers.routed import router_path

        if not router_path(pair.name).is_file():
            raise HarnessError(f"no router for pair {pair.name!r}", "Train one with `harness train-router`.")
        return "router"
    if adapter is None:
        return "generic" if pair.config.draft else "lookup"
    names = sorted(installed(pair.name))
    if adapter not in names:
        hint = did_you_mean(adapter, names) if names else "none is installed"
        raise HarnessError(f"no adapter {adapter!r} for pair {pair.name!r}: {hint}", "Train one with `harness train`.")
    return adapter


def one_of(flag: str, value: str, known: Sequence[str]) -> None:
    """Check a choice before anything is loaded.

    Raises:
        HarnessError: ``value`` is not in ``known``; names the nearest.
    """
    if value not in known:
        from harness.core.errors import HarnessError, did_you_mean

        raise HarnessError(f"{flag} {value}: {did_you_mean(value, list(known))}", f"Use one of: {', '.join(known)}.")


def summary(result: Generation) -> str:
    """One line of counts and times."""
    parts = [
        f"{result.emitted} tokens in {result.wall_s:.2f} s ({result.emitted / result.wall_s:.1f} tok/s)",
        f"first after {result.ttft_s:.2f} s",
    ]
    if result.drafter is not None:
        rate = "none drafted" if result.rate is None else f"{result.rate:.3f}"
        parts += [
            f"accepted {result.accepted} of {result.drafted} drafted ({rate})",
            f"{result.tau:.2f} tokens per target pass",
        ]
    if result.finish == "context":
        parts.append("cut where the context is full")
    if result.route_s is not None:
        parts.append(f"routed to {result.drafter or 'plain decoding'} in {1000 * result.route_s:.1f} ms")
    if result.swap_s is not None:
        parts.append(f"adapter swapped in {1000 * result.swap_s:.2f} ms")
    return ", ".join(parts)


def collect(
    source: Annotated[str, typer.Argument(metavar="SUITE|FILE", help="A suite, or a file of prompts (JSONL, JSON, CSV, TSV, Parquet).")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the trajectories, answers/SUITE-PAIR by default; finished batches there are kept."),
    ] = None,
    models: PairOption = "smollm2",
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts per domain.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = MAX_TOKENS,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together.")] = BATCH,
    top_k: Annotated[int, typer.Option(min=1, help="Target probabilities kept per token.")] = TOP_K,
    seed: Annotated[
        int | None, typer.Option(help="Seed of sampling and of generated datasets; the suite's without it.", show_default=False)
    ] = None,
    offline: OfflineOption = False,
    cluster: ClusterOption = None,
) -> None:
    """Write the target's answers to prompts: the raw material of training.

    Example: `harness collect suites/quick.yaml --split train --limit 100`
    """
    from harness.core.limits import check

    seed = source_seed(source) if seed is None else seed
    check(temperature=temperature, max_tokens=max_tokens, seed=seed)
    samples = read_samples(source, split=split, limit=limit, seed=seed, offline=offline)
    from rich.progress import track

    from harness.answers.collect import collect as rollouts
    from harness.models.naming import pair_name
    from harness.models.pair import load_pair
    from harness.results.store import check_writable

    out = out or Path("answers", f"{_stem(source)}-{pair_name(models)}")
    check_writable(out)
    say(f"answers go to {out}", err=True)
    pair = load_pair(models, offline=offline, draft=False, lazy=cluster is not None)
    with joined(cluster) as workers:
        how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "batch": batch, "top_k": top_k, "seed": seed}
        answers = rollouts(pair, samples, out=out, pool=pool_of(workers, pair, models, offline=offline), **how)
        tokens = sum(len(t.tokens) for t in track(answers, total=len(samples), description="collecting"))
    say(f"{len(samples)} answers, {tokens} tokens in {out}")


def _stem(source: str) -> str:
    """A file's name without folder and endings."""
    from harness.datasets.rows_file import kind_of

    return Path(source).name.removesuffix(".gz").removesuffix(kind_of(source) or ".yaml")


def source_seed(source: str) -> int:
    """The seed of a suite; 0 for a file of prompts."""
    from harness.datasets.rows_file import kind_of
    from harness.suite.suite import load_suite

    return 0 if kind_of(source) else load_suite(source).seed


def read_samples(source: str, *, split: str, limit: int | None, offline: bool, seed: int | None = None) -> Sequence[Sample]:
    """Load the prompts of a suite's domains, or of one file of prompts; generated ones with the suite's seed where none is given."""
    from harness.datasets import DatasetSpec, load_samples
    from harness.datasets.rows_file import kind_of
    from harness.suite.suite import load_suite

    one_of("--split", split, ("train", "validation", "test", "all"))
    specs: dict[str | None, DatasetSpec] = {}
    if kind_of(source):
        specs[None] = DatasetSpec(dataset="local", path=source)
    else:
        specs.update(load_suite(source).domains)
    changed = {name: spec.model_copy(update={"split": split, "limit": limit or spec.limit}) for name, spec in specs.items()}
    seed = source_seed(source) if seed is None else seed
    return [s for name, spec in changed.items() for s in load_samples(spec, domain=name, seed=seed, offline=offline)]
