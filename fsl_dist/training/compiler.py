"""The compiler that torch.compile calls."""

import os
import shutil
import socket
import sys

from fsl_dist.errors import RequestError


def check_compiler() -> None:
    """RequestError where torch.compile would not find its C++ compiler: it says so in a hundred lines."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise RequestError(
            f"training.compile=true needs a C++ compiler on {socket.gethostname()}, and there is no '{compiler}' "
            "(install one, name it by CXX, or train without training.compile)"
        )
