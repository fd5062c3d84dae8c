"""The benchmarks as one command: ``python -m flashpoint.bench NAME``."""

import click

from . import operations, throughput


@click.group()
def main() -> None:
    """Measure this library on this machine."""


main.add_command(operations.main, "operations")
main.add_command(throughput.main, "throughput")

if __name__ == "__main__":
    main()
