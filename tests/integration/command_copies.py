"""Commands one after the other, each in a process of its own, whose imports are made once."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

from tests.unit.run_apart import Copies

_COMMAND = """
import sys
from dist_embed.cli.main import main
sys.argv[1:] = {arguments!r}
sys.exit(main())
"""


class Commands(Copies):
    """For a ``with`` block, where what a command imports, and what that says, is not the point."""

    def call(self, *arguments: str, cwd: Path, code: int = 0) -> CompletedProcess[str]:
        """Run ``dist-embed`` in a folder; it must end with ``code``."""
        done = self.run(_COMMAND.format(arguments=list(arguments)), cwd)
        assert done.returncode == code, done.stdout + done.stderr
        return done
