"""A program beside this one over several gateways, since what it imports takes seconds to do so.

`python over_each.py PROGRAM KEY BASE_URL...` prints what the program prints for each.
"""

from __future__ import annotations

import sys
from runpy import run_path

program, key, *urls = sys.argv[1:]
for url in urls:
    sys.argv = [program, url, key]
    run_path(program)
