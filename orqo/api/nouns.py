"""The resources, put together: importing a noun's module is what registers its operations."""

from __future__ import annotations

import importlib

from orqo.api.access import resources

__all__ = ["resources"]

NOUNS = ("workflows", "triggers", "tokens", "runs", "actions", "artifacts", "deliveries", "callbacks", "requests", "instance")
for name in NOUNS:
    importlib.import_module(f"orqo.api.{name}")
