"""One Python process that runs many commands of the project, so that a test pays for their imports once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from children import environment


class Interpreter:
    """A process with one device, in a folder; commands run in it one after another."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-u", __file__]
        self.errors = folder.with_name(f"{folder.name}.stderr")
        with self.errors.open("w") as errors:
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
            self.process = subprocess.Popen(command, cwd=folder, env=environment(), **pipes)

    def run(self, words: list[str]) -> str:
        """Run `bin/X --flags` and return its output; raise AssertionError if its exit code is not 0."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin
        assert stdout
        stdin.write(json.dumps(words) + "\n")
        stdin.flush()
        printed = list[str]()
        for line in stdout:
            if line.startswith("exit code "):
                break
            printed.append(line)
        else:
            line = "the process ended"
        assert line == "exit code 0\n", f"{words}: {line}\n{self.errors.read_text()[-3000:]}"
        return "".join(printed)

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    """Run the commands on standard input, one JSON list of words per line."""
    from converters.__main__ import main as convert
    from jaxtempl import __main__, cli

    for line in sys.stdin:
        script, *argv = json.loads(line)
        name = script.removeprefix("bin/")
        code = cli.run(convert if name == "convert" else __main__.command(name), argv)
        print(f"exit code {code}", flush=True)


if __name__ == "__main__":
    main()
