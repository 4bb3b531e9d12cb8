"""`python -m llava` is the console script `autoprune`."""

from llava.cli import dispatch as main
from llava.common import program

if __name__ == "__main__":
    program.run(main)
