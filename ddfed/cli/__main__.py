"""``python -m ddfed.cli``: the command line without an installed script."""

from ddfed.cli import main

main()
