"""`python -m mtlfast` is the command `mtlfast`."""

from mtlfast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
