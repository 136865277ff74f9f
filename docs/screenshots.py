"""`python -m docs.screenshots`: the pictures of the console, of a demonstration that it runs. Needs playwright and Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1120, 700


def main() -> int:
    """Run the demonstration and write the pictures."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "rewardserve", "demo", "--no-browser", "--minutes=1.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo, sync_playwright() as playwright:
        try:
            console = ""
            for line in demo.stdout or ():
                print(line, end="")
                if match := re.search(r"console: (\S+)", line):
                    console = match.group(1)
                if line.startswith("the replay has ended"):
                    break
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            for name, path in (("home", ""), ("run", "/run?run=hacked"), ("queue", "/queue?run=hacked&sampling=alert")):
                page.goto(console + path)
                page.screenshot(path=IMAGES / f"console-{name}.png")
        finally:
            demo.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
