"""Cases and providers by op, and the runner that times them. The command line is their only caller."""
