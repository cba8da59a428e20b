"""What mkdocs does beside rendering docs/: pages made of files elsewhere in the checkout, and links that leave the site.

A link to a file that no page shows (a source file, a folder) becomes its text in code type, since the site has no copy of it; on a
forge the same link works as it stands.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MIRRORED = {
    "slurm.md": ROOT / "slurm" / "README.md",
    "shards.md": ROOT / "preprocess" / "README.md",
    "deepspeed.md": ROOT / "ds_configs" / "README.md",
    "results/log.md": ROOT / "benchmarks" / "README.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
}
"""pages of the site, by the file that each shows"""

LINK = re.compile(r"(?<!!)\[([^\]\[]+)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```|    .*?$)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the mirrored files to those of docs/."""
    from mkdocs.structure.files import File

    for name, source in MIRRORED.items():
        files.append(File.generated(config, name, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page into links of the site."""
    return links_of_the_site(markdown, page.file.src_uri)


def links_of_the_site(markdown: str, page: str) -> str:
    """The Markdown of `page` (its place in the site) with each link outside code blocks led to the page that shows the file."""
    source = MIRRORED.get(page, DOCS / page)
    parts = FENCE.split(markdown)  # every second one is code
    parts[::2] = [LINK.sub(lambda match: link(match, page, source), part) for part in parts[::2]]
    return "".join(parts)


def link(match: re.Match[str], page: str, source: Path) -> str:
    text, target = match.groups()
    path, _, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return match.group()
    file = Path(os.path.normpath(source.parent / path))
    shown = next((name for name, mirrored in MIRRORED.items() if mirrored in (file, file / "README.md")), None)
    if shown is None and file.is_relative_to(DOCS) and (file.is_file() or not file.exists()):
        shown = file.relative_to(DOCS).as_posix()  # mkdocs reports it where it does not exist
    if shown is None:
        return text if "`" in text else f"`{text}`"
    return f"[{text}]({os.path.relpath(shown, Path(page).parent)}{'#' + anchor if anchor else ''})"
