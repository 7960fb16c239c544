"""What the README prints runs as printed."""

import re
import subprocess
import sys

from common.codehash import ROOT

README = (ROOT / "papers" / "mixmatch" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def execute(language, block, folder):
    command = [sys.executable, "-c", block] if language == "python" else ["bash", "-ec", block]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_data_and_library_run_as_printed(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    # A link to the interpreter would not know its environment.
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    outputs = [execute(language, block, tmp_path) for language, block in BLOCKS]
    assert [language for language, _ in BLOCKS] == ["python", "bash", "python"]
    error = float(re.search(r"test error: ([\d.]+) %", outputs[1])[1])
    assert error < 30
    predictions = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(predictions) == 1 + len(list((tmp_path / "digits" / "unlabeled").iterdir()))
    accuracy = float(re.search(r"accuracy on the unlabelled part: ([\d.]+)", outputs[2])[1])
    assert accuracy > 0.6
