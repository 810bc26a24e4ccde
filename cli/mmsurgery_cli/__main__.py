"""`mmsurgery`, `python -m mmsurgery_cli`, `torchrun -m mmsurgery_cli`: the command. Its code takes a moment to load, in
which a signal is answered in one line, too."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn


def _stop(number: int, frame: Any) -> NoReturn:
    name = signal.Signals(number).name
    os.write(2, f"interrupted ({name}) - next: run the same command again; nothing was begun\n".encode())
    os._exit(128 + number)


def main() -> NoReturn:
    """The console script."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _stop)
    from mmsurgery_cli.main import main as command

    command()


if __name__ == "__main__":
    main()
