"""The `cadenza` program."""

import sys
import warnings

import typer

from cadenza import __version__
from cadenza.apps.cli import CANCELLED, bench, data, encode, evaluate, generate, import_, inspect, models, train
from cadenza.core.errors import CadenzaError

app = typer.Typer(
    name="cadenza", help="Controllable audio generation.", no_args_is_help=True,
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip
for command in (
    generate.generate, train.train, train.finetune_, encode.encode, encode.decode, data.corpus, evaluate.evaluate_,
    import_.import_, import_.export_, inspect.inspect, models.models, bench.bench,
):  # fmt: skip
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(data.app)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command; print a user's mistake as one line with exit status 2, and each warning as one line."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without the line of code
    try:
        status = app(standalone_mode=False)
    except CadenzaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        status = CANCELLED
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if (show := getattr(error, "show", None)) is None:  # only errors of usage have it
            raise
        show()
        sys.exit(2)
    if status == CANCELLED:  # typer returns this status for Ctrl-C, and prints nothing
        print("cancelled", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)
