"""Pictures of what was trained; they need matplotlib."""

from __future__ import annotations

from skcvxbn.diagnostics.path_display import PathDisplay

__all__ = ["PathDisplay"]
