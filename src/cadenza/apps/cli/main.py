"""The `cadenza` program."""

import sys
import warnings

import typer

from cadenza import __version__
from cadenza.apps.cli import (
    CANCELLED,
    bench,
    corpus,
    data,
    encode,
    evaluate,
    export,
    finetune,
    generate,
    import_,
    inspect,
    models,
    train,
)
from cadenza.core.errors import CadenzaError

app = typer.Typer(
    name="cadenza",
    help="Controllable audio generation.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("train")(train.train)
app.command("finetune")(finetune.finetune)
app.command("encode")(encode.encode)
app.command("decode")(encode.decode)
app.command("corpus")(corpus.corpus)
app.command("evaluate")(evaluate.evaluate)
app.command("import")(import_.import_)
app.command("export")(export.export)
app.command("inspect")(inspect.inspect)
app.command("models")(models.models)
app.command("bench")(bench.bench)
app.add_typer(data.app)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Runs a verb; mistakes that a user can mend are one clear line and exit status 2, warnings a line each."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # where in our code is of no use to a user
    try:
        status = app(standalone_mode=False)
    except CadenzaError as error:
        sys.exit(_say(f"error: {error}", 2))
    except typer.Abort:
        status = CANCELLED
    except KeyboardInterrupt:
        status = CANCELLED
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if (show := getattr(error, "show", None)) is None:  # only a usage error of the command line can show itself
            raise
        show()
        sys.exit(2)
    if status == CANCELLED:  # typer turns Ctrl-C into this status without a word
        _say("cancelled", CANCELLED)
    sys.exit(status if isinstance(status, int) else 0)


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status
