"""One file per table or figure of `mtlfast reproduce`, each as described in mtlfast.commands."""
