"""Runs an adapter, or tells the version of its package. It imports nothing of neuralreg, so that any Python runs it."""

import importlib.metadata
import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path


def main(words):
    name = words[1] if words[0] == "--version" else words[0]
    peer = runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))
    if words[0] == "--version":
        if importlib.util.find_spec(peer["MODULE"]) is None or not peer.get("usable", lambda: True)():
            sys.exit(1)
        print(importlib.metadata.version(peer["PACKAGE"]))
        return
    fixed, moving, out = (str(Path(word).resolve()) for word in words[1:4])
    os.chdir(Path(out).parent)  # where some leave more files than they were asked for
    peer["register"](fixed, moving, out, int(words[4]), **json.loads(words[5]))


if __name__ == "__main__":
    main(sys.argv[1:])
