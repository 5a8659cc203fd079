"""The command line: one thin function per verb. `--help` imports neither torch nor transformers."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `seawall` command."""
    from seawall.cli.app import run

    run()
