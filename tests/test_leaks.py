"""What the leak check sees."""

from __future__ import annotations

import asyncio

from tests.leaks import Running, pending_tasks


def test_a_task_that_has_not_ended_is_seen_though_one_that_has_is_kept():
    async def nothing() -> None:
        pass

    async def look() -> None:
        before = Running.now()
        kept = asyncio.create_task(nothing())
        await kept
        for _ in range(3):
            assert not Running.now().beyond(before)
            running = asyncio.create_task(asyncio.sleep(60), name="left")
            assert "left" in Running.now().beyond(before)
            assert running in pending_tasks()
            running.cancel()
            await asyncio.wait({running})
            assert not Running.now().beyond(before)

    asyncio.run(look())
