"""Measures one group and leaves it in $RESULTS: guest.py GROUP [ROUNDS]"""

import importlib
import sys

from lab import save

group, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
save(group, importlib.import_module(group).rows(rounds))
