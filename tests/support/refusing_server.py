"""A server that rejects every request, to test how clients handle it."""

from __future__ import annotations

from aiohttp import web


class RefusingServer:
    """A server that rejects every request with one status. It is not ours: the client is under test."""

    def __init__(self, status):
        self.n = 0
        self._status = status

    async def __aenter__(self):
        async def refuse(_request):
            self.n += 1
            return web.json_response({"error": {}, "error_type": ""}, status=self._status)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", refuse)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc):
        await self._runner.cleanup()
