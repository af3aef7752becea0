"""Ready experiments as files; `ddfed reproduce --list` shows them."""
