"""Packages that not every installation has: of one that is missing it is said what brings it.

torch, torchrec and fbgemm must be builds that load together, which pip does not know:
`launch/setup.sh` chooses them. The others come with an extra of the project.
"""

from __future__ import annotations

import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from dist_embed.errors import UserError, causes

# Names as they are imported. The last three are torchrec's own needs: two of them ask for torch.
CHOSEN_BY_SETUP = (
    "torch", "torchrec", "fbgemm_gpu", "tensordict", "torchmetrics", "pyre_extensions",
)  # fmt: skip
WORKERS_NEED = CHOSEN_BY_SETUP[:3]  # the others are missed where torchrec is imported
EXTRAS = {
    "ray": "ray",
    "grpc": "ray",  # brought by ray[default], as the next
    "requests": "ray",
    "matplotlib": "plots",
    "scipy": "plots",
    "sklearn": "plots",
    "ctranslate2": "export",
    "safetensors": "export",
    "gcsfs": "gcs",
    "adlfs": "azure",
    "kubernetes": "kubernetes",
    "argcomplete": "completion",
    "gensim": "dev",
}


class MissingPackage(UserError):
    """A package is not installed; the message names what brings it."""


def own_version() -> str:
    """Empty where dist_embed is imported from a folder, without an installation."""
    try:
        return version("dist_embed")
    except PackageNotFoundError:
        return ""


def check_version(elsewhere: str, told: str) -> None:
    """Refuse to work on what another dist_embed has sent that may mean something else: a change of
    the version's second number may change what is written to disk, one of the third does not.

    Args:
        elsewhere: the version of who has sent it; ``""``: not known.
        told: where that is, for the error: "the command has".
    """
    here = own_version()
    if here.split(".")[:2] != elsewhere.split(".")[:2]:
        raise UserError(
            f"this node ({socket.gethostname()}) has dist_embed {here or 'that is not installed'}, "
            f"but {told} {elsewhere or 'another version'}: install the same on both"
        )


def require(*packages: str) -> None:
    """To be called before an import, and before long work that an import comes after.

    Imports nothing itself. Raises MissingPackage for the first of ``packages`` (names as they are
    imported) that is not installed.
    """
    for package in packages:
        if not (sys.modules.get(package) or find_spec(package)):
            raise MissingPackage(_told(package))


def missing_package(error: BaseException | None) -> MissingPackage | None:
    """What an import that failed with ``error``, or with what that came from, lacks of these."""
    for step in causes(error):
        if not isinstance(step, ImportError):
            break
        package = (step.name or "").partition(".")[0]
        # Another ImportError: it is there, but cannot be loaded.
        known = package in CHOSEN_BY_SETUP or package in EXTRAS
        if isinstance(step, ModuleNotFoundError) and known:
            return MissingPackage(_told(package))
    return None


def _told(package: str) -> str:
    if package in CHOSEN_BY_SETUP:
        return (
            f"{package} is not installed: `bash launch/setup.sh`, in dist_embed's folder, installs "
            "builds of torch, torchrec and fbgemm that load together"
        )
    extra = EXTRAS[package]
    return (
        f"{package} is not installed: it comes with dist_embed's extra `{extra}` "
        f"(pip install '.[{extra}]' in dist_embed's folder)"
    )
