"""Inside the sandbox: a port on `lo` that leads to the proxy's Unix socket, then the command in its place.

Runs as `python3 -I -S -c SOURCE SOCKET PORT COMMAND…`; standard library only. The command replaces this process,
so that its exit code and signals are its own; the forwarder is a child that ends with the sandbox. It decides
nothing: all that it could do the command could do itself, at the same socket.
"""

import asyncio
import os
import signal
import socket
import sys

NOT_FOUND, NOT_EXECUTABLE = 127, 126
_PIECE = 64 * 1024


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PIECE):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _forward(listener: socket.socket, path: str) -> None:
    running: set[asyncio.Task[None]] = set()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up, down = await asyncio.open_unix_connection(path)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, down), _copy(up, writer), return_exceptions=True)
        down.close()
        writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(client(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(accepted, sock=listener)
    await server.serve_forever()


def main(path: str, port: int, command: list[str]) -> None:
    """Start the forwarder beside, then become `command`."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)  # whoever connects before the forwarder runs waits
    if os.fork() == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        asyncio.run(_forward(listener, path))
        os._exit(0)
    listener.close()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and so would the command
    try:
        os.execvp(command[0], command)  # noqa: S606 - the command, without a shell, is the point
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
