"""How a process ends that is told to again and again."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, os, signal, sys
import uvloop
from cacheservice.server.stop_signals import on_stop_signal

change = signal.signal
stopping = False

def change_and_be_told_again(number, handler):
    before = change(number, handler)
    if stopping and number == signal.SIGTERM:
        os.kill(os.getpid(), number)
    return before

async def main():
    global stopping
    stopped = asyncio.Event()
    stops = []
    on_stop_signal(lambda: (stops.append(1), stopped.set()))
    stopping = True
    signal.signal = change_and_be_told_again
    print("ready", flush=True)
    await stopped.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0)
    assert stops == [1]

{runner}.run(main())
for number in (signal.SIGTERM, signal.SIGINT):
    os.kill(os.getpid(), number)
print("ended")
"""


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_whenever_it_is_told_again(runner: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM.replace("{runner}", runner)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("ended\n", "")
    assert process.returncode == 0
