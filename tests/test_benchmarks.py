"""The benchmarks run, and print and write what they measured."""

import json
import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
RUN = os.path.join(HERE, "benchmarks", "run.py")
MEASURES = [
    "import", "is_primary", "storage", "propagation", "failover", "bare", "simulated",
]  # fmt: skip


@pytest.mark.processes
def test_a_quick_run_prints_a_table_and_writes_all_values(tmp_path):
    path = str(tmp_path / "values.json")
    command = [sys.executable, RUN, "--quick", "--json", path]
    command += [word for name in MEASURES for word in ("--only", name)]
    table = subprocess.check_output(command, universal_newlines=True, timeout=60)
    with open(path) as file:
        written = json.load(file)
    assert written["machine"]["python"] in table
    assert list(written["found"]) == MEASURES
    for rows in written["found"].values():
        for what, unit, values in rows:
            assert what in table
            assert isinstance(values, str if unit is None else list) and values
