"""Draws docs/images/architecture.svg, which the book shows in place of the Mermaid diagram of ARCHITECTURE.md.

    npm install mermaid
    python3 tools/book/draw_architecture.py node_modules/mermaid/dist/mermaid.min.js

The script requires Chromium; the environment variable `CHROMIUM` names another program. The current image was drawn with mermaid 11.
"""

import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = """<!doctype html><meta charset="utf-8"><pre id="source" hidden>{source}</pre><div id="drawing"></div>
<script src="file://{library}"></script>
<script>
mermaid.initialize({{startOnLoad: false, theme: "neutral", htmlLabels: false, flowchart: {{htmlLabels: false}}, deterministicIds: true}});
mermaid.render("architecture", document.getElementById("source").textContent)
    .then(drawn => document.getElementById("drawing").textContent = drawn.svg);
</script>"""


def main():
    source = (ROOT / "ARCHITECTURE.md").read_text().split("```mermaid\n")[1].split("\n```")[0]
    escaped = html.escape(source, quote=False)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(PAGE.format(source=escaped, library=Path(sys.argv[1]).resolve()))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom"]
        program = os.environ.get("CHROMIUM", "chromium")
        shown = subprocess.run([program, *flags, f"file://{page}"], capture_output=True, text=True, check=True).stdout
    svg = html.unescape(re.search(r'<div id="drawing">(.*?)</div>\s*<script', shown, re.DOTALL).group(1))
    width, height = (round(float(size)) for size in re.search(r'viewBox="([^"]*)"', svg).group(1).split()[2:])
    svg = svg.replace('width="100%"', f'width="{width}" height="{height}"', 1)
    svg = re.sub(r'style="max-width:[^"]*"', 'style="background:#fff"', svg, count=1)
    svg = re.sub(r"^(<svg[^>]*>)", lambda tag: f"{tag.group(1)}<desc>{escaped}</desc>", svg, count=1)
    (ROOT / "docs/images/architecture.svg").write_text(svg + "\n")


main()
