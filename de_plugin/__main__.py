"""`python -m de_plugin` is `de-plugin`."""

from de_plugin.cli import main

main()
