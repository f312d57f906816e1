"""``harness models``: list, fetch and check model pairs, choose a draft's vocabulary."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.generate import PAIR_HELP, JsonOption
from harness.core.terminal import say, say_json

if TYPE_CHECKING:
    from harness.models.compatibility import Compatibility
    from harness.models.families import Suggestion
    from harness.models.room import Room

models_app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")

OfflineOption = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")]


@models_app.command("list")
def list_pairs(
    pairs: Annotated[list[str] | None, typer.Argument(metavar="PAIR...", help=f"These instead of the shipped ones. {PAIR_HELP}")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show pairs and what of them is already on this machine.

    Example: `harness models list`
    """
    from harness.models.naming import find_pair, shipped_pairs
    from harness.models.weights import is_cached

    found = []
    for named in map(find_pair, pairs or [name for name, _ in shipped_pairs()]):
        config = named.config
        wanted = [config.target, *([config.draft] if config.draft else [])]
        missing = [model for model in wanted if not is_cached(model, named.base)]
        size = sum(model.download_mb or 0 for model in missing)
        state = (
            "ready" if not missing else f"{size} MB to fetch" if size else "to fetch" if config.target in missing else "ready without draft"
        )
        loose = " (not pinned)" if any(model.unpinned for model in wanted) else ""
        facts = {"description": config.description, "ready": not missing, "download_mb": size, "pinned": not loose}
        found.append({"name": named.name, "state": state, **facts})
        if not as_json:
            say(f"{named.name:<12} {state:<18} {config.description}{loose}")
    if as_json:
        say_json(found)


@models_app.command("pull")
def pull(
    pair: Annotated[str, typer.Argument(metavar="PAIR", help=PAIR_HELP)],
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch and convert a pair now instead of on first use.

    Example: `harness models pull smollm2`
    """
    from harness.models.weights import pull_pair

    folders = pull_pair(pair, offline=offline)
    if as_json:
        say_json({role: folder and {"path": str(folder.path), "sha256": folder.hash} for role, folder in folders.items()})
        return
    for role, folder in folders.items():
        say(f"{role}: {folder.path}, sha256 {folder.hash}" if folder else f"{role}: not on this machine")


@models_app.command("suggest")
def suggest_draft(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Hub name, folder, .gguf file, or a pair (its target).")],
    as_json: JsonOption = False,
) -> None:
    """Name a draft of the target's family, a draft length to start from, and what fits into this machine's memory. Asks no network.

    Example: `harness models suggest Qwen/Qwen2.5-7B-Instruct`
    """
    from harness.core.errors import HarnessError
    from harness.models.families import families, suggest
    from harness.models.naming import family_name
    from harness.models.room import room

    found = suggest(family_name(target))
    if found is None:
        names = ", ".join(family.family for family in families())
        raise HarnessError(
            f"no family known for {target!r} (known: {names})",
            "Any model with the same tokenizer drafts: `harness models check`. Without one use lookup or early exit.",
        )
    here = room()
    if as_json:
        say_json(_plain(found, here))
        return
    say("\n".join([*_describe(found), *_fit(found, here)]))
    if found.draft:
        say(f'try it: harness generate "Write a haiku" --models {target}+{found.draft}')


def _plain(found: Suggestion, here: Room) -> dict[str, Any]:
    """The suggestion for other programs: sizes in gigabytes by format, and the formats that fit."""
    alone = partial(found.gigabytes, draft=False)
    return {
        "family": found.family.family, "target": found.target, "drafts": list(found.drafts), "k": found.k, "note": found.note,
        "gigabytes": {form: found.gigabytes(form) for form in here.forms}, "room_gigabytes": here.gigabytes,
        "fits": here.fitting(found.gigabytes), "fits_alone": here.fitting(alone),
    }  # fmt: skip


def _describe(found: Suggestion) -> list[str]:
    """Target, drafts and the advice that goes with them."""
    family, model = found.family, found.family.models[found.target]
    used = f" ({model.active:g} B for a token)" if model.active else ""
    lines = [f"{family.family}: {found.target}, {model.size:g} B parameters{used}, {family.licence_of(found.target)}"]
    for i, name in enumerate(found.drafts):
        draft = family.models[name]
        lines.append(f"{'or   ' if i else 'draft'} {name}, {draft.size:g} B, {family.licence_of(name)}" + ("" if i else f", K {found.k}"))
    if not found.drafts:
        lines.append("no draft model: use lookup (the default of a target alone), early_exit, or a draft cut from it (`harness distill`)")
    return lines + ([found.note] if found.note else [])


def _fit(found: Suggestion, here: Room) -> list[str]:
    """Sizes in the formats that this machine computes with, and what fits."""
    fitting, alone = here.fitting(found.gigabytes), here.fitting(partial(found.gigabytes, draft=False))
    shown = ", ".join(f"{found.gigabytes(form):.1f} GB in {form}" for form in here.forms)
    lines = [f"{'both take' if found.draft else 'it takes'} {shown}; models may take {here.gigabytes:.1f} GB here"]
    if fitting:
        return [*lines, f"fits: {', '.join(fitting)}"]
    if alone:
        return [*lines, f"with the draft it does not fit; alone it does ({', '.join(alone)}): use lookup"]
    smaller = [name for name, model in found.family.models.items() if here.fitting(model.gigabytes)]
    return [*lines, "does not fit; " + (f"of its family these do: {', '.join(smaller)}" if smaller else "nor does any of its family")]


@models_app.command("check")
def check(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Hub name, folder, .gguf file, or a pair (its target).")],
    draft: Annotated[str, typer.Argument(metavar="DRAFT", help="Hub name, folder, .gguf file, or a pair (its target).")],
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell whether a draft shares the target's tokenizer, or can be translated; exit 1 when neither. Fetches no weights.

    Example: `harness models check Qwen/Qwen2.5-7B-Instruct Qwen/Qwen2.5-0.5B-Instruct`
    """
    from harness.models.compatibility import check_folders
    from harness.models.weights import tokenizer_folder

    with tokenizer_folder(target, offline=offline) as one, tokenizer_folder(draft, offline=offline) as two:
        result = check_folders(one, two)
    if as_json:
        facts = {"compatible": not result.problem, "translated": result.translated, "problem": result.problem, "lost": result.lost}
        say_json({**facts, "notes": list(result.notes)})
    else:
        for note in result.notes:
            say(f"note: {note}")
        say(_verdict(result))
    if result.lost:
        raise typer.Exit(1)


def _verdict(result: Compatibility) -> str:
    if result.problem is None:
        return "compatible"
    if result.translated:
        return f"compatible by translation, the draft's text put into the target's tokens: {result.problem}"
    return f"not compatible: {result.problem}; {result.lost}"


@models_app.command("vocab")
def vocab(
    pair: Annotated[str, typer.Argument(metavar="PAIR", help=PAIR_HELP)],
    answers: Annotated[Path, typer.Option("--from", metavar="DIR", help="Target answers: the folder of `harness collect`.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the ids go; name it as `draft_vocab` in the pair's file.")],
    size: Annotated[int, typer.Option(min=2, help="Ids kept.")] = 24576,
    offline: OfflineOption = False,
) -> None:
    """Choose the tokens a draft may propose, so that its output head is small: those its target used, then the most common ones.

    A head of 152,000 rows is a quarter of a 0.5B draft's step. Tokens of prompt and answer are always allowed, and output stays exact.

    Example: `harness models vocab qwen-coder --from answers --out qwen-coder.vocab.json`
    """
    from harness.answers.collect import read_answers
    from harness.core.errors import HarnessError
    from harness.models.forward import useful_vocab
    from harness.models.pair import vocab_size
    from harness.models.vocab import write_vocab
    from harness.models.weights import pull_pair

    folders = pull_pair(pair, offline=offline)
    target, draft = folders["target"], folders.get("draft")
    if target is None or draft is None or draft.is_cut:
        raise HarnessError(f"the draft of {pair!r} has no whole vocabulary to choose from", "Name a pair with a full draft model.")
    stored = list(read_answers(answers, target.hash))
    ids = useful_vocab((s.trajectory() for s in stored), size, min(vocab_size(model.path) for model in folders.values() if model))
    tokens = sum(len(s.rollout.tokens) for s in stored)
    write_vocab(out, ids, f"{size} ids for {pair}, by their probability in {tokens} tokens of {len(stored)} target answers")
    say(f"{len(ids)} ids in {out}")
