#!/usr/bin/env python3
"""slow.py LISTEN TO MS: hands connections on, and holds everything that the caller sends for so many ms: an etcd whose disk is slow."""
import asyncio
import sys

listen, to, hold = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) / 1000


async def hand_on(source, sink, held):
    """In order, each piece `held` seconds after it came."""
    pieces, clock = asyncio.Queue(), asyncio.get_running_loop().time

    async def read():
        while True:
            piece = await source.read(65536)
            await pieces.put((clock() + held, piece))
            if not piece: return

    reader = asyncio.ensure_future(read())
    try:
        while True:
            at, piece = await pieces.get()
            await asyncio.sleep(max(0, at - clock()))
            if not piece: return
            sink.write(piece)
            await sink.drain()
    except OSError: pass
    finally:
        reader.cancel()
        sink.close()


async def one(reader, writer):
    try: far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to)
    except OSError: writer.close(); return
    await asyncio.gather(hand_on(reader, far_writer, hold), hand_on(far_reader, writer, 0), return_exceptions=True)


async def main():
    async with await asyncio.start_server(one, "127.0.0.1", listen) as server: await server.serve_forever()


asyncio.run(main())
