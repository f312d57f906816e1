"""``harness export``: a draft, an adapter, a recommendation or a run in the forms that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from harness.cli.generate import OfflineOption
from harness.cli.run import ResultsOption
from harness.core.terminal import say

if TYPE_CHECKING:
    from harness.adapt.adapters.quantised import Bits


def export(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A pair, a run, or a settings file such as a report's settings.yaml.")],
    to: Annotated[
        Literal["mlx", "gguf", "peft", "adapter", "profile", "every-eval-ever"],
        typer.Option(
            "--to",
            help="mlx: a folder for mlx-lm, LM Studio, transformers and vLLM. adapter: as kept here. The last two describe a run.",
        ),
    ] = "mlx",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder; exported/NAME when absent.")] = None,
    part: Annotated[Literal["draft", "target"], typer.Option(help="Whose weights.")] = "draft",
    adapter: Annotated[str | None, typer.Option(metavar="NAME", help="Adapter to fuse into the draft, or to write alone.")] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32", "q8_0"] | None,
        typer.Option(help="Type of the weights; float16 for a draft, as stored for a target."),
    ] = None,
    bits: Annotated[
        Literal["4", "6", "8"] | None, typer.Option(help="Bits a number, for --to adapter: small, and read by this project alone.")
    ] = None,
    organisation: Annotated[str, typer.Option(metavar="NAME", help="Who ran the run, for every-eval-ever.")] = "unknown",
    results: ResultsOption = Path("results"),
    offline: OfflineOption = False,
) -> None:
    """Write a draft, an adapter or a run's recommendation for other programs, with a card and the flags of engines.

    A draft that was cut from its target becomes a plain llama model with a whole output head. A run also gives its profile of
    acceptance by position and step costs, and a record for Every Eval Ever.

    Example: `harness export smollm2 --adapter code --to gguf --out exported/code`
    """
    import shlex
    import sys

    from harness.export.export import Request
    from harness.export.export import export as write
    from harness.export.source import find_source

    source = find_source(what, part=part, adapter=adapter, results=results)
    form = source.run.manifest.run if source.run is not None and to in ("profile", "every-eval-ever") else source.name
    folder = out or Path("exported") / f"{form}-{to}"
    command = shlex.join(["harness", *sys.argv[1:]])
    request = Request(
        form=to, dtype=dtype, bits=cast("Bits | None", bits and int(bits)), command=command, organisation=organisation, offline=offline
    )
    write(source, request, folder)
    say("\n".join(str(path) for path in sorted(folder.rglob("*")) if path.is_file()))
    if (folder / "flags.txt").is_file():
        say("\n" + (folder / "flags.txt").read_text(encoding="utf-8").rstrip())
