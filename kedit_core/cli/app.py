"""The application: core's commands and those of the plugins."""

import logging

import typer

from kedit_core.cli import edit, evaluate, list_methods, scope, show
from kedit_core.plugins import Plugins

log = logging.getLogger(__name__)


def application(plugins: Plugins) -> typer.Typer:
    """Return the ``kedit`` command with all its subcommands.

    Args:
        plugins: whose commands are added; each command finds them as ``context.obj``.
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

    for command in (list_methods, show, edit, evaluate, scope):
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        app.command(name=name)(command.run)
    plugins.call_all("register_commands", cli=app)
    return app
