"""One file per command of `mtlfast`.

Each has NAME, HELP, DESCRIPTION and EXAMPLES, `add_arguments(parser)` and `run(options)`, which
returns the exit status. What a command needs beyond the standard library is imported in `run`, so
that `--help` is quick.
"""
