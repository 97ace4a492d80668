"""A page in headless Chromium, driven over the DevTools protocol with the standard library alone.

The browser reads commands from its file descriptor 3 and writes answers and events to 4, each a
JSON text ended by NUL. What the browser asks of any network is recorded in `requested`; scripts of
the tests run by `Runtime.evaluate`, which the page's own content policy does not bind.
"""

import base64
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 30.0  # that any answer may take
# Puts the two pipes at descriptors 3 and 4 and becomes the browser.
_LAUNCH = """
import fcntl, os, sys
# Copies above 4 first: either pipe may lie where the other has to go, and a copy of a descriptor
# onto itself would stay closed to the program that follows.
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_FLAGS = (
  "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
  " --disable-background-networking --disable-component-update --disable-sync"
  " --disable-extensions --hide-scrollbars --remote-debugging-pipe"
)


def find() -> str | None:
  """The path of a Chromium, from the variable CHROMIUM or the search path."""
  named = os.environ.get("CHROMIUM")
  return named or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
  """One tab; a context manager. `open` loads a file, `evaluate` runs JavaScript in it."""

  def __init__(self, binary: str, profile: pathlib.Path):
    self._requested: dict[str, str] = {}  # by the request's number
    self.logged: list[str] = []  # errors and console messages, refusals by the content policy
    self._received = b""
    self._numbers = iter(range(1, 10**9))
    self._session = ""
    commands, self._commands = os.pipe()
    self._answers, answers = os.pipe()
    launcher = [sys.executable, "-S", "-E", "-c", _LAUNCH, str(commands), str(answers)]
    self._process = subprocess.Popen(
      [*launcher, binary, *_FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
      pass_fds=(commands, answers),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    os.close(commands)
    os.close(answers)

  @property
  def requested(self) -> list[str]:
    """The addresses asked for, the page's own included, those its policy refused left out."""
    return list(self._requested.values())

  def __enter__(self) -> "Page":
    targets = self.call("Target.getTargets")["targetInfos"]
    target = next(one["targetId"] for one in targets if one["type"] == "page")
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Network", "Runtime", "Log"):
      self.call(f"{domain}.enable")
    return self

  def __exit__(self, *_) -> None:
    # The browser's own group: its helper processes end with it.
    os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    os.close(self._commands)
    os.close(self._answers)

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """Sends a command and returns its result."""
    number = next(self._numbers)
    command = {"id": number, "method": method, "params": parameters}
    if self._session:
      command["sessionId"] = self._session
    os.write(self._commands, json.dumps(command).encode() + b"\0")
    while True:
      message = self._next()
      if message.get("id") == number:
        if "error" in message:
          raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]
      self._note(message)

  def open(
    self, path: pathlib.Path, width: int = 1280, height: int = 900, scheme: str = "light"
  ) -> None:
    """Loads a file at a width in CSS pixels and in a colour scheme; returns once it is loaded."""
    self._requested.clear()
    self.logged.clear()
    self.resize(width, height)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    self.call("Emulation.setEmulatedMedia", features=features)
    self.call("Page.navigate", url=path.as_uri())
    while True:
      message = self._next()
      self._note(message)
      if message.get("method") == "Page.loadEventFired":
        return

  def resize(self, width: int, height: int = 900) -> None:
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )

  def evaluate(self, script: str) -> Any:
    """The JSON value of an expression; promises are waited for.

    Raises:
      RuntimeError: the script threw.
    """
    found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in found:
      raise RuntimeError(f"{script}: {found['exceptionDetails']}")
    return found["result"].get("value")

  def press(self, key: str) -> None:
    """Presses and releases a key that has a name, as a person would."""
    codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36}
    event = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
    if key == "Enter":
      event["text"] = "\r"
    self.call("Input.dispatchKeyEvent", type="keyDown", **event)
    self.call("Input.dispatchKeyEvent", type="keyUp", **event)

  def screenshot(self, path: pathlib.Path) -> None:
    """A picture of the whole page."""
    shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot["data"]))

  def _note(self, message: dict[str, Any]) -> None:
    method, found = message.get("method"), message.get("params", {})
    if method == "Network.requestWillBeSent":
      self._requested[found["requestId"]] = found["request"]["url"]
    elif method == "Network.loadingFailed" and found.get("blockedReason") == "csp":
      self._requested.pop(found["requestId"], None)
    elif method == "Runtime.exceptionThrown":
      self.logged.append(json.dumps(found["exceptionDetails"]))
    elif method in ("Log.entryAdded", "Runtime.consoleAPICalled"):
      self.logged.append(json.dumps(found))

  def _next(self) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while b"\0" not in self._received:
      ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
      if not ready:
        raise TimeoutError(f"Chromium said nothing for {SECONDS} s")
      read = os.read(self._answers, 1 << 20)
      if not read:
        raise RuntimeError(f"Chromium ended with status {self._process.wait()}")
      self._received += read
    message, self._received = self._received.split(b"\0", 1)
    return json.loads(message)
