"""`python -m seawall`, as `accelerate launch -m seawall` starts it."""

from seawall.cli import main

if __name__ == "__main__":
    main()
