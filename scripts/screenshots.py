"""Photographs a run's report in light and dark, for the README: docs/report-light.png and docs/report-dark.png.

    python scripts/screenshots.py RUN [--height 900]

Needs chromium. The page follows `prefers-color-scheme`, which the browser is told by a setting of its own.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=3000",
)
SCHEMES = {"light": 1, "dark": 0}
"""The browser's numbers for what a page sees as `prefers-color-scheme`."""


def photograph(browser: str, page: Path, target: Path, *, scheme: str, size: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={target}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=300)


def main() -> None:
    parser = argparse.ArgumentParser(description="Photographs a run's report in light and dark.")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=900)
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no chromium in PATH")
    page = args.run / "report.html"
    if not page.is_file():
        sys.exit(f"{page} does not exist: name the folder of a finished run")
    for scheme in SCHEMES:
        target = DOCS / f"report-{scheme}.png"
        photograph(browser, page, target, scheme=scheme, size=(args.width, args.height))
        print(target)


if __name__ == "__main__":
    main()
