"""``python -m neuralreg.bench``: the suite ``kernels`` of ``neuralreg bench``."""

from __future__ import annotations

import sys

from neuralreg.cli import app

if __name__ == "__main__":
    app(["bench", "kernels", *sys.argv[1:]])
