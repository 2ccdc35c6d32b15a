"""``greedy`` for a Python that has picsl_greedy and no executable: a script that takes greedy's own arguments.

It imports nothing of neuralreg, so that any interpreter runs it and its cost is greedy's.
"""

from __future__ import annotations

import shlex
import sys

if __name__ == "__main__":
    import picsl_greedy

    words = sys.argv[1:]
    greedy = picsl_greedy.Greedy2D() if words[words.index("-d") + 1] == "2" else picsl_greedy.Greedy3D()
    greedy.execute(shlex.join(words))
