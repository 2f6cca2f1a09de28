"""The application: core's commands and those of the plugins."""

import sys
from importlib import import_module

import typer

from kedit_core.cli.list_methods import show_methods
from kedit_core.cli.opening import Json
from kedit_core.plugins import Plugins

_COMMANDS = (
    "show",
    "edit",
    "evaluate",
    "scope",
    "export",
    "run",
    "log",
    "undo",
    "verify",
    "doctor",
    "new-method",
)


def application(plugins: Plugins, wanted: str | None = None) -> typer.Typer:
    """Return the ``kedit`` command with its subcommands.

    Args:
        plugins: whose commands are added; each command finds them as ``context.obj``.
        wanted: the subcommand that will run, if it is known: when it is core's own, no other is built,
            since each option of each command costs start-up time.
    """
    app = typer.Typer(
        name="kedit",
        help="Edit facts in language models, judge the edits, and take every one of them out again.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @app.callback()
    def remember(context: typer.Context) -> None:
        context.obj = plugins

    @app.command(name="list-methods")
    def list_methods(context: typer.Context, as_json: Json = False) -> None:
        """List the methods that are installed, and plugins that are broken."""
        show_methods(context.obj, as_json=as_json)

    for name in _COMMANDS if wanted not in _COMMANDS else (wanted,):
        module = import_module(f"kedit_core.cli.{name.replace('-', '_')}")
        app.command(name=name)(module.run)
    if wanted not in _COMMANDS:
        _add_commands(app, plugins)
    return app


def _add_commands(app: typer.Typer, plugins: Plugins) -> None:
    for row in plugins.rows():
        if "register_commands" not in row.hooks:
            continue
        try:
            plugins.call_one("register_commands", row.name, cli=app)
        # A stranger's mistake must not take the other commands away.
        except Exception as error:  # noqa: BLE001
            sys.stderr.write(f"kedit: plugin {row.name!r} cannot add its commands: {error}\n")
