"""Entry point: assembles the commands and turns every error into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from mmsurgery.errors import InternalError, MachineFault, MmsurgeryError, UsageError, printable
from mmsurgery.interruption import Interrupted, interrupt
from mmsurgery.ranks import Ranks
from mmsurgery_cli import chain, crash, looking, making, patching, running, sharing
from mmsurgery_cli.context import state

PIPE_CLOSED = 128 + signal.SIGPIPE
"""Exit code where the reader of the output went away, as a shell reports it."""
SEVERAL_RANKS = ("saliency", "apply", "eval")
"""Commands that ranks share; several processes of any other would do the same thing at the same time."""

app = typer.Typer(
    name="mmsurgery",
    help="Model surgery on multimodal LLMs: saliency maps and masks as first-class artifacts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        import mmsurgery

        typer.echo(f"mmsurgery {mmsurgery.__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Work on this workspace instead of the current folder's.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    state.workspace = workspace
    state.debug = debug
    if context.invoked_subcommand not in SEVERAL_RANKS and (ranks := Ranks.here()).count > 1:
        raise UsageError(
            f"'{context.invoked_subcommand}' runs in one process, not in {ranks.count}",
            f"start it without torchrun, which is for {', '.join(SEVERAL_RANKS[:-1])} and {SEVERAL_RANKS[-1]}",
        )


for module in (making, chain, looking, running, patching, sharing):
    module.register(app)


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one stops at once
    interrupt(number)
    _say("stopping after this step; a second signal stops at once")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see `mmsurgery.errors`)."""
    state.reset()
    try:
        app(args=None if arguments is None else list(arguments))
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # click and rich exit with 1, the code of a missed gate
            return PIPE_CLOSED
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except InternalError as error:
        return _fail(error, crash.line(error, arguments), error.code)
    except MmsurgeryError as error:
        return _fail(error, error.line(), error.code)
    except Interrupted as stop:
        name = signal.Signals(stop.number).name
        kept = "it goes on where it stopped" if stop.saved else "parts that were finished are kept"
        _say(f"interrupted ({name}) - next: run the same command again; {kept}")
        return 128 + stop.number
    except MemoryError as error:
        fault = MachineFault("not enough memory", "use a smaller batch or a machine with more memory")
        return _fail(error, fault.line(), fault.code)
    except BrokenPipeError:
        return PIPE_CLOSED
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            wrong = UsageError(f"a name is too long: {str(error.filename)[:60]} ...", "shorten it")
            return _fail(error, wrong.line(), wrong.code)
        where = f"{error.filename}: " if error.filename else "cannot read or write: "
        fault = MachineFault(f"{where}{error.strerror or error}", "check the disk and its permissions")
        return _fail(error, fault.line(), fault.code)
    except Exception as error:
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error):  # torch's
            fault = MachineFault("not enough memory", "use a smaller batch; --plan says what a command needs")
            return _fail(error, fault.line(), fault.code)
        if isinstance(error, ImportError) and "failed to map segment" in str(error):  # of a shared library
            fault = MachineFault("not enough memory", "raise the limit of address space (ulimit -v)")
            return _fail(error, fault.line(), fault.code)
        if type(error).__name__ == "OutOfMemoryError":  # torch's is a RuntimeError; by name, for torch takes seconds
            fault = MachineFault(
                "not enough memory on the GPU", "use a smaller batch; --plan says what a command needs"
            )
            return _fail(error, fault.line(), fault.code)
        return _fail(error, crash.line(error, arguments), InternalError.code)
    return 0


def _fail(error: BaseException, line: str, code: int) -> int:
    if state.debug:
        _say("".join(traceback.format_exception(error)).rstrip())
    _say(printable(line))
    return code


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # where stderr is full or closed, the exit code says it alone
        print(crash.redacted(text), file=sys.stderr, flush=True)


def main() -> NoReturn:
    """The console script."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _interrupt)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _open_streams()
    code = run()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # what is still buffered would be written again at exit, and fail with a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if code == 0:
                fault = MachineFault(f"cannot write the output: {error.strerror}", "check where it goes")
                code = PIPE_CLOSED if isinstance(error, BrokenPipeError) else _fail(error, fault.line(), fault.code)
    sys.exit(code)


def _open_streams() -> None:
    """Point standard streams that were closed by the caller at nothing: what is opened next must not get
    their numbers, and nothing printed may fail."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - open to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of what its encoding has no letters for
