"""Run the command line of ssl_lightning from a checkout: ``.venv/bin/python cli.py --help``."""

import sys

try:
    from ssl_lightning.cli import main
except ModuleNotFoundError as error:
    if error.name != "ssl_lightning":
        raise
    sys.exit(
        "cli.py: this Python has no ssl_lightning. `make environment` makes one that has: then "
        "`.venv/bin/python cli.py`, or `source .venv/bin/activate`."
    )

if __name__ == "__main__":
    raise SystemExit(main())
