"""``harness distill``: a small draft out of the target itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.generate import OfflineOption
from harness.cli.validate import TrackOption
from harness.cli.worker import ClusterOption, joined, pool_of
from harness.core.progress import notes_to
from harness.core.terminal import say


@notes_to(partial(say, err=True))
def distill(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a name in configs/drafts.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the finished draft goes; default: drafts/ in the cache.")] = None,
    work: Annotated[Path | None, typer.Option(metavar="DIR", help="Rollouts and checkpoints; default: the cache.")] = None,
    stages: Annotated[str, typer.Option(help="Comma-separated part of collect,train,ship.")] = "collect,train,ship",
    gsm8k: Annotated[Path | None, typer.Option(metavar="PATH", help="GSM8K training problems (JSONL), for math prompts.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one key of the file; repeatable.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores when absent.")] = None,
    offline: OfflineOption = False,
    cluster: ClusterOption = None,
    track: TrackOption = None,
) -> None:
    """Build a small draft from a target: collect its answers, train a cut of it or a head that reads it, quantise, measure, write the card.

    Hours on a CPU. Stop it at any moment: run again, it goes on where it was.

    Example: `harness distill configs/drafts/smollm2.yaml --gsm8k train.jsonl`
    """
    import shlex
    import sys

    from harness.core.errors import HarnessError
    from harness.core.paths import cache_dir
    from harness.core.tracking import check_tracker, tracking
    from harness.distill.distill_config import load_distill_config

    overrides = [*(set_ or []), *([f"rollouts.gsm8k_path={gsm8k}"] if gsm8k else [])]
    settings = load_distill_config(config, overrides)
    check_tracker(track)
    from harness.distill.distillation import Distillation
    from harness.distill.pipeline import distill as build
    from harness.models.pair import load_pair
    from harness.models.weights import pull_pair
    from harness.report.tables import number

    folder = pull_pair(settings.pair, offline=offline)["target"]
    assert folder is not None
    if threads:
        import torch

        torch.set_num_threads(threads)
    chosen = [stage.strip() for stage in stages.split(",")]
    if cluster is not None and "collect" not in chosen:
        raise HarnessError("only the stage collect is worked on by a cluster", "Leave --cluster out, or add collect to --stages.")
    pair = load_pair(settings.pair, offline=offline, draft=False, lazy=cluster is not None)
    tracked = tracking(track, f"distill {settings.name}", settings.model_dump())
    with joined(cluster) as workers, tracked as tracker:
        job = Distillation(
            config=settings,
            pair=pair,
            pool=pool_of(workers, pair, settings.pair, offline=offline, fast=True),
            folder=folder.path,
            work=work or cache_dir() / "distill" / settings.name,
            out=out or cache_dir() / "drafts" / settings.name,
            command=shlex.join(["harness", *sys.argv[1:]]),
            numbers=lambda row: tracker.log({name: row[name] for name in ("loss", "match", "tokens_per_s")}, step=int(row["step"])),
        )
        scores = build(job, chosen)
        rows = [(s.domain, str(s.k), str(s.prompts), number(s.rate), number(s.tau, 2)) for s in scores]
        if rows:
            tracker.table("Held-out prompts", ("domain", "K", "prompts", "acceptance rate", "tokens per target pass"), rows)
            tracker.file(job.out / "card.md")
    for domain, k, _, rate, tau in rows:
        say(f"{domain}: K {k}, acceptance rate {rate}, {tau} tokens per target pass")
    if "ship" in chosen:
        say(f"draft: {job.out}")
    else:
        say(f"checkpoint: {job.fitted}" if "train" in chosen else f"answers: {job.rollouts}")
