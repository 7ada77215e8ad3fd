"""What a cluster would be sent, as a file that can be read and kept."""

from __future__ import annotations

from typing import Any

import yaml


def as_yaml(sent: dict[str, Any]) -> str:
    """A manifest of Kubernetes, or a request to Ray's job server."""
    return yaml.dump(sent, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Without references, and with texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
