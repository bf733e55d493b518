"""Run the command line of ssl_lightning from a checkout: ``python cli.py --help``."""

from ssl_lightning.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
