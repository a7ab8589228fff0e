"""What `tgi-local` does besides serving: its sub-commands, which import only what they need."""

from collections.abc import Callable, Mapping, Sequence

from tgi_local.errors import StartupError

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C has ended


def run(args: Sequence[str]) -> int | None:
    """The exit status of the sub-command that `args` begin with; None when they name none. Raises StartupError."""
    command = _COMMANDS.get(args[0]) if args else None
    try:
        return None if command is None else command(args[1:])
    except KeyboardInterrupt:
        return INTERRUPTED


def _print_schema(args: Sequence[str]) -> int:
    if args:
        raise StartupError("print-schema takes no arguments")
    from tgi_local.api.openapi import document_text

    print(document_text())
    return 0


def _bench(args: Sequence[str]) -> int:
    from tgi_local.bench.command import run as bench

    return bench(args)


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {"print-schema": _print_schema, "bench": _bench}
