"""Print the command that README.md shows under a marker: `python readme_command.py README.md tests`.

The command is the fenced bash block that directly follows the line `<!-- tests -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def readme_command(text: str, marker: str) -> str:
    block = rf"(?ms)^<!-- {re.escape(marker)} -->\s*\n```bash\n(.*?)^```"
    commands = re.findall(block, text)
    if len(commands) != 1:
        raise SystemExit(f"README.md has {len(commands)} bash blocks after <!-- {marker} -->, expected one.")
    return commands[0].strip()


if __name__ == "__main__":
    print(readme_command(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]))
