"""The command ``ragft``: one module per subcommand."""
