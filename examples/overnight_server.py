"""A service as they are: it allows so many requests a second, fails now and then, and sometimes says nothing.

    python examples/overnight_server.py 100 3    # 100 requests a second, on three ports of the loopback address

It prints its addresses, and ends when its standard input does. `/stats` tells what it has seen.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from time import monotonic

from aiohttp import web

#: The service is closed to everybody after so many requests, for so many seconds: others have used up the limit.
CLOSES_AFTER, CLOSED = 200, 1.0


class Service:
    """Serves page 7 at /7, and so on, and counts."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.accepted: deque[float] = deque()  # when, in the last second
        self.closed_until = 0.0
        self.requests = self.refused = 0
        self.tries: Counter[int] = Counter()  # by page, without those that were refused
        self.served: Counter[int] = Counter()  # by page

    def seconds_to_wait(self) -> float:
        """How long the client has to wait; 0 if the request is accepted."""
        now = monotonic()
        while self.accepted and self.accepted[0] <= now - 1:
            self.accepted.popleft()
        self.requests += 1
        if self.requests % CLOSES_AFTER == 0:
            self.closed_until = now + CLOSED
        opens = max(self.closed_until, self.accepted[0] + 1 if len(self.accepted) >= self.limit else 0)
        if opens > now:
            self.refused += 1
            return opens - now
        self.accepted.append(now)
        return 0

    async def page(self, request: web.Request) -> web.Response:
        """Answer a request for a page."""
        if wait := self.seconds_to_wait():
            return web.Response(status=429, headers={"Retry-After": f"{wait:.3f}"})
        number = int(request.match_info["number"])
        self.tries[number] += 1
        first = self.tries[number] == 1
        if first and number % 50 == 31:
            await asyncio.sleep(3600)
        await asyncio.sleep(0.05)
        if number % 100 == 13:
            return web.Response(status=404)
        if number % 200 == 57:
            return web.Response(status=500)
        if first and number % 20 == 7:
            return web.Response(status=503)
        self.served[number] += 1
        return web.json_response({"url": str(request.url), "title": f"Page {number}"})

    async def stats(self, _request: web.Request) -> web.Response:
        """Tell what was seen."""
        return web.json_response(
            {
                "requests": self.requests,
                "refused": self.refused,
                "tries": self.tries.total(),
                "served": self.served.total(),
                "pages": len(self.served),
            }
        )


async def serve(limit: int, hosts: int) -> None:
    """Serve until the standard input ends."""
    service = Service(limit)
    app = web.Application()
    app.add_routes([web.get(r"/{number:\d+}", service.page), web.get("/stats", service.stats)])
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    for _ in range(hosts):
        await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(*(f"http://127.0.0.1:{address[1]}" for address in runner.addresses), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
