"""The rules of interception Redirect, in a network namespace of their own, by real connections."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.services import missing

from openhqm_operator.injecting.redirect import build_ruleset

HARNESS = """
    import socket, subprocess, sys, threading

    def run(*command):
        subprocess.run(command, check=True)

    def answer(name, family, address, port):
        server = socket.create_server((address, port), family=family)
        def serve():
            while True:
                connection, _ = server.accept()
                connection.sendall(name)
                connection.close()
        threading.Thread(target=serve, daemon=True).start()

    def ask(address, port, seconds=2.0):
        with socket.create_connection((address, port), seconds) as connection:
            return connection.recv(100).decode()

    if sys.argv[1] == "ask":
        print(ask(sys.argv[2], int(sys.argv[3])))
        sys.exit()

    rules = sys.argv[2]
    run("ip", "link", "set", "lo", "up")
    outside = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        import time
        while open(f"/proc/{outside.pid}/comm").read() != "sleep\\n":
            time.sleep(0.01)
        run("ip", "link", "add", "pod", "type", "veth", "peer", "name", "out", "netns", str(outside.pid))
        inside = ["nsenter", "-t", str(outside.pid), "--net"]
        for prefix, pod, out in (("24", "10.9.0.1", "10.9.0.2"), ("64", "fd00::1", "fd00::2")):
            extra = ("nodad",) if ":" in pod else ()
            run("ip", "addr", "add", f"{pod}/{prefix}", "dev", "pod", *extra)
            run(*inside, "ip", "addr", "add", f"{out}/{prefix}", "dev", "out", *extra)
        run("ip", "link", "set", "pod", "up")
        run(*inside, "ip", "link", "set", "out", "up")
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for name, port in ((b"app", 8080), (b"sidecar", 16080), (b"other", 9000)):
                answer(name, family, address, port)
        run("nft", rules)
        run("nft", rules)
        for pod in ("10.9.0.1", "fd00::1"):
            for port in (8080, 16080, 16081, 9000):
                came = subprocess.run([*inside, sys.executable, __file__, "ask", pod, str(port)],
                                      capture_output=True, text=True, check=True).stdout.strip()
                print("outside", pod, port, came)
            print("inside", pod, 8080, ask(pod, 8080))
        print("inside", "127.0.0.1", 8080, ask("127.0.0.1", 8080))
        print("inside", "::1", 8080, ask("::1", 8080))
    finally:
        outside.kill()
        outside.wait()
"""


@pytest.fixture
def harness(tmp_path: Path) -> list[str]:
    """A program that runs in a namespace of its own, with a second one as the world outside."""
    tools = [tool for tool in ("nft", "ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if tools or os.geteuid() != 0:
        missing(f"redirection needs root and {', '.join(tools) or 'namespaces'}")
    script = tmp_path / "harness.py"
    script.write_text(textwrap.dedent(HARNESS))
    return ["unshare", "--net", "--", sys.executable, str(script)]


def test_only_what_comes_from_outside_for_the_app_s_port_is_redirected(harness: list[str]) -> None:
    done = subprocess.run(
        [*harness, "rules", build_ruleset(8080)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "outside 10.9.0.1 8080 sidecar",
        "outside 10.9.0.1 16080 sidecar",
        "outside 10.9.0.1 16081 app",
        "outside 10.9.0.1 9000 other",
        "inside 10.9.0.1 8080 app",
        "outside fd00::1 8080 sidecar",
        "outside fd00::1 16080 sidecar",
        "outside fd00::1 16081 app",
        "outside fd00::1 9000 other",
        "inside fd00::1 8080 app",
        "inside 127.0.0.1 8080 app",
        "inside ::1 8080 app",
    ]
