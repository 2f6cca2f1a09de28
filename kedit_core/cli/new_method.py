"""``kedit new-method``: a method of one's own that works from the first minute."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kedit_core.cli.opening import Json
from kedit_core.cli.screen import print_json, screen
from kedit_core.errors import KeditError
from kedit_core.plugins import Plugins
from kedit_core.template_files import MethodNames, names_for, write_template


def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Of the method, for example anchor.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to make; default: kedit-NAME here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a method of your own from a template that works and passes the contract."""
    plugins: Plugins = context.obj
    names = names_for(name)
    taken = {row.name: row.package for row in plugins.rows()}
    if name in taken:
        raise KeditError(f"{taken[name] or 'an installed plugin'} offers {name!r} already")
    folder = Path(names.distribution) if out is None else out
    made = write_template(names, folder)
    if as_json:
        print_json({"method": name, "folder": str(folder), "files": [str(path) for path in made]})
    else:
        _show(names, folder, made)


def _show(names: MethodNames, folder: Path, made: tuple[Path, ...]) -> None:
    console = screen()
    recipe = f"{names.package}/_{names.identifier}.py"
    lines = [
        f"{folder} holds a method that works and passes the contract:",
        *(f"  {path.relative_to(folder)}" for path in made),
        "",
        "next:",
        f"  pip install -e {shlex.quote(f'{folder}[testing]')}",
        f"  pytest {shlex.quote(str(folder))}",
        f"  kedit show {names.method}",
        f"then put your idea into {recipe}, and keep the tests green;",
        "docs/write-a-method.md goes with you from there to a published wheel",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)
