"""The command line: one thin function per command. `--help` imports neither torch nor transformers."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `seawall` command."""
    from seawall.cli.app import run

    run()
