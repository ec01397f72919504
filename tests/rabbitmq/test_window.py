"""The window of a publisher: one line for small messages and large ones, and nothing of it is ever lost."""

import asyncio

from scoop_outbox_rabbitmq.window import Window

from tests.waiting import until


class Visitors:
    """Those who enter a window of ten places, in the order in which they get in."""

    def __init__(self) -> None:
        self.window = Window(10)
        self.inside: list[str] = []

    def enter(self, name: str, places: int) -> asyncio.Task[None]:
        async def wait() -> None:
            await self.window.enter(places)
            self.inside.append(name)

        return asyncio.create_task(wait())

    async def all_of(self, names: str) -> None:
        await until(lambda: self.inside == list(names))


async def test_small_ones_wait_behind_a_large_one() -> None:
    visitors = Visitors()
    tasks = [visitors.enter(name, places) for name, places in (("a", 6), ("b", 6), ("c", 1), ("d", 1), ("e", 3))]
    await visitors.all_of("a")

    visitors.window.leave(6)
    await visitors.all_of("abcd")
    visitors.window.leave(6)
    await visitors.all_of("abcde")

    assert all(task.done() for task in tasks)


async def test_who_gives_up_lets_the_others_in_and_takes_no_place() -> None:
    visitors = Visitors()
    first, large, small = visitors.enter("a", 9), visitors.enter("b", 9), visitors.enter("c", 1)
    await visitors.all_of("a")
    assert not small.done()

    large.cancel()
    await asyncio.wait((large,))
    await visitors.all_of("ac")
    waiting = visitors.enter("d", 5)
    await asyncio.wait((waiting,), timeout=0)
    # It has been let in, and is cancelled before it knows.
    visitors.window.leave(9)
    waiting.cancel()
    await asyncio.wait((waiting,))
    whole = visitors.enter("e", 9)

    await visitors.all_of("ace")
    assert (first.done(), waiting.cancelled(), whole.done()) == (True, True, True)
