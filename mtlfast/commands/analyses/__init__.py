"""One file per analysis of `mtlfast analyze`, built as the commands are."""
