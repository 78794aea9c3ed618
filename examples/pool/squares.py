"""Needs HEADWAY_URL."""

from concurrent.futures import ProcessPoolExecutor

from headway.integrations.executors import reported


def square(n):
    return n * n


if __name__ == "__main__":
    with reported(ProcessPoolExecutor(2), "squares") as pool:
        print(sum(pool.map(square, range(10))))
