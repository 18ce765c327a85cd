"""All benchmarks: ``python -m bench.run [--data FOLDER] [--batch N] [--rounds N]``. Markdown on standard output."""

from __future__ import annotations

import argparse

from bench import data_rate, vilt_step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--data", help="a folder of captioned JPEGs; without it the loader is not measured")
    parser.add_argument("--batch", type=int, default=8, choices=range(2, 9), help="samples of a training step")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    vilt_step.run(arguments.batch, rounds=arguments.rounds)
    if arguments.data:
        data_rate.run(arguments.data, rounds=arguments.rounds)
    else:
        print("\nThe loader was not measured: give --data FOLDER.")


if __name__ == "__main__":
    main()
