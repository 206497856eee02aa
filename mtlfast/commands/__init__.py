"""One file per command of `mtlfast`.

Each has NAME, USAGE (what follows the name), HELP, DESCRIPTION, EXAMPLES, `add_arguments(parser)`,
and `run(options)`, which returns the exit status. With PASSES_ON, arguments that are not declared
are no errors but left in `options.rest`.

What a command needs beyond the standard library is imported in `run`, so that `--help` is quick.
"""
