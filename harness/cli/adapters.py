"""``harness adapters``: list, import, export and remove the adapters installed for a pair."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.generate import JsonOption, OfflineOption, PairOption
from harness.cli.storage import YesOption
from harness.core.terminal import say

if TYPE_CHECKING:
    from harness.adapt.shelf import Shelved

adapters_app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the adapter, as `harness adapters list` shows it.")]


@adapters_app.command("list")
def list_adapters(
    models: Annotated[str | None, typer.Option("--models", metavar="PAIR", help="Only this pair's; all pairs' without it.")] = None,
    json_: JsonOption = False,
) -> None:
    """Show the adapters, installed or of the package: pair, domain, rank, what they gained in training, size, hash, and what uses them.

    Example: `harness adapters list --models smollm2`
    """
    from harness.adapt.shelf import pairs_with_adapters, shelved
    from harness.core.errors import HarnessError
    from harness.models.naming import pair_name

    found, broken = [], []
    for pair in [pair_name(models)] if models else pairs_with_adapters():
        try:
            found += shelved(pair)
        except HarnessError as error:
            broken.append(f"{pair}: {error.problem}")
    if json_:
        import json

        say(json.dumps([_facts(adapter) for adapter in found], indent=1, ensure_ascii=False))
    else:
        say("\n".join(_line(adapter) for adapter in found) or "no adapters; they come from `harness train` and from sessions")
    for line in broken:
        say(line, err=True)


@adapters_app.command("import")
def import_adapter(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Adapter folder of PEFT (LoRA or DoRA, safetensors) or of this project.")],
    models: PairOption = "smollm2",
    name: Annotated[str | None, typer.Option(help="What to call it; the folder's name without it.")] = None,
    domain: Annotated[str | None, typer.Option(help="Domain to note for a PEFT adapter.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of an adapter of that name.")] = False,
    offline: OfflineOption = False,
) -> None:
    """Install an adapter from elsewhere for a pair's draft.

    Weights must be safetensors and fit the draft; an option of PEFT that has no equal here is refused.

    Example: `harness adapters import exported/peft --models smollm2 --name code`
    """
    from harness.adapt.shelf import free_place, put_in
    from harness.models.naming import pair_name

    chosen = name or folder.resolve().name
    free_place(pair_name(models), chosen, replace=replace)
    from harness.models.pair import load_pair

    place = put_in(load_pair(models, offline=offline), folder, chosen, domain=domain, replace=replace)
    say(f"installed {chosen}: {place}\nuse it: harness generate PROMPT --models {models} --adapter {chosen}")


@adapters_app.command("export")
def export_adapter(
    name: NameArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    models: PairOption = "smollm2",
) -> None:
    """Write an installed adapter as a PEFT folder.

    Example: `harness adapters export code --models smollm2 --out exported/peft`
    """
    from harness.adapt.adapters.peft import export_peft
    from harness.adapt.shelf import find
    from harness.models.naming import pair_name

    pair = pair_name(models)
    say(f"PEFT adapter: {export_peft(find(pair, name), out, base_model=f'draft of {pair}')}")


@adapters_app.command("remove")
def remove_adapter(
    name: NameArgument,
    models: PairOption = "smollm2",
    yes: YesOption = False,
) -> None:
    """Delete an installed adapter, with what its training left in its folder. Asks first.

    Example: `harness adapters remove code --models smollm2 --yes`
    """
    from harness.adapt.shelf import find, look_at, take_away
    from harness.core.errors import HarnessError
    from harness.models.naming import pair_name

    pair = pair_name(models)
    adapter = look_at(pair, name, find(pair, name))
    say(_line(adapter))
    if adapter.shipped:
        raise HarnessError(f"the adapter {name!r} comes with the package", "Install one of your own under this name: it comes first.")
    if adapter.used_by:
        say(f"in use by {', '.join(adapter.used_by)}: a router has to be trained again, a session goes back to the plain draft")
    if not yes:
        if not sys.stdin.isatty():
            raise HarnessError("nobody is there to say yes", "Add --yes to delete it without a question.")
        typer.confirm(f"Delete {adapter.folder}?", abort=True)
    take_away(adapter.folder)
    say(f"removed {name}")


def _line(a: Shelved) -> str:
    rates = [f"{d} {a.info.before[d]:.3f} -> {a.info.after[d]:.3f}" for d in a.info.before if d in a.info.after]
    parts = [
        f"{a.pair}/{a.name}: {a.info.domain or 'mixed'}, rank {a.info.rank}",
        f"{a.info.metric} " + ", ".join(rates) if rates else "",
        f"gain {a.gain.signed()}" if a.gain is not None else "",
        f"{a.size_bytes / 2**20:.1f} MiB",
        f"sha256 {a.sha256[:12]}",
        "comes with the package" if a.shipped else "",
        f"used by {', '.join(a.used_by)}" if a.used_by else "",
    ]
    return ", ".join(part for part in parts if part)


def _facts(a: Shelved) -> dict[str, object]:
    gain = None if a.gain is None else {key: getattr(a.gain, key) for key in ("value", "low", "high", "n")}
    return {
        "pair": a.pair, "name": a.name, "folder": str(a.folder), "shipped": a.shipped, "domain": a.info.domain, "rank": a.info.rank,
        "metric": a.info.metric, "before": dict(a.info.before), "after": dict(a.info.after), "gain": gain,
        "examples": a.info.examples, "created": a.info.created, "draft_hash": a.info.draft_hash, "sha256": a.sha256,
        "size_bytes": a.size_bytes, "used_by": list(a.used_by),
    }  # fmt: skip
