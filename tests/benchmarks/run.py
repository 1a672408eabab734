"""Measures speed and cost, beside what people use instead.

python tests/benchmarks/run.py [--quick] [--only NAME] [--json FILE] [--plots FOLDER]
python tests/benchmarks/run.py --only failover --timings 1/3/2/1

Prints a table: medians, the spread, how often. What a machine lacks (a server, a
driver) is left out with the reason.
"""

import argparse
import importlib
import json
import os
import platform
import py_compile
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(os.path.dirname(HERE)), os.path.dirname(HERE), HERE]
import cost  # noqa: E402
import faults  # noqa: E402

MEASURES = {
    "import": cost.importing,
    "is_primary": cost.is_primary,
    "storage": cost.storage,
    "propagation": faults.propagation,
    "failover": faults.failover,
    "others": faults.others,
    "thaw": faults.thaw,
    "bare": cost.bare,
    "idle": cost.idle,
    "large": cost.large,
    "simulated": cost.simulated,
}


def readable(value, unit):
    """A number for people: seconds in the unit that fits."""
    if unit != "s":
        return "%.4g %s" % (value, unit)
    for least, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= least:
            return "%.3g %s" % (value / least, name)
    return "%.3g ns" % (value * 1e9)


def row(what, unit, values):
    if unit is None:
        return "%-62s not measured: %s" % (what, values)
    values = sorted(values)
    cells = [readable(statistics.median(values), unit)]
    if len(values) > 1:
        cells += [readable(values[0], unit), readable(values[-1], unit)]
    return "%-62s" % what + "".join("%16s" % cell for cell in cells)


def about():
    """The machine and the versions, for whoever compares."""
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for name in ("redis", "psycopg", "kazoo", "filelock"):
        try:
            versions[name] = importlib.import_module(name).__version__
        except ImportError:
            versions[name] = None
        except AttributeError:
            versions[name] = "?"
    return dict(versions, cores=os.cpu_count(), load=os.getloadavg()[0])


def plot(measure, rows, folder):
    """One picture for each measure: medians as bars, the spread as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [each for each in rows if each[1] is not None]
    for unit in sorted({unit for _, unit, _ in rows}):
        chosen = [(what, values) for what, u, values in rows if u == unit][::-1]
        figure, axes = pyplot.subplots(figsize=(9, 1 + 0.35 * len(chosen)))
        for place, (what, values) in enumerate(chosen):
            axes.barh(place, statistics.median(values), color="tab:blue")
            axes.plot([min(values), max(values)], [place] * 2, color="black")
        axes.set_yticks(range(len(chosen)))
        axes.set_yticklabels([what for what, _ in chosen], fontsize=7)
        axes.set_xlabel(unit)
        if min(map(min, (values for _, values in chosen))) > 0:
            axes.set_xscale("log")
        figure.tight_layout()
        name = "%s-%s.png" % (measure, "".join(c for c in unit if c.isalnum()))
        figure.savefig(os.path.join(folder, name))
        pyplot.close(figure)


def timings(text):
    """Heartbeat interval, time-out, missed count and check interval, as `1/3/2/1`."""
    interval, timeout, missed, check = text.split("/")
    return dict(
        hb_interval=float(interval), hb_timeout=float(timeout),
        hb_missed_count=int(missed), check_interval=float(check),
    )  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a taste, in seconds")
    parser.add_argument("--only", action="append", choices=list(MEASURES))
    parser.add_argument("--count", type=int, default=10, help="how often each fault")
    parser.add_argument("--json", help="a file for all values")
    parser.add_argument("--plots", help="a folder for pictures; needs matplotlib")
    parser.add_argument(
        "--timings", type=timings, default={},
        help="hb_interval/hb_timeout/hb_missed_count/check_interval of our own nodes "
        "in propagation, failover and thaw; with others', leave it out",
    )  # fmt: skip
    parser.add_argument("--dir", help="where to make the shared folders")
    options = parser.parse_args(arguments)
    faults.TIMINGS.update(options.timings)
    count = 1 if options.quick else options.count
    py_compile.compile(cost.cluster.__file__)  # else each process would do it anew
    machine, found = about(), {}
    print(", ".join("%s %s" % item for item in machine.items()))
    print("%-62s%16s%16s%16s" % ("", "median", "least", "most"))
    for name in options.only or MEASURES:
        found[name] = []
        for each in MEASURES[name](options.quick, count, options.dir):
            found[name].append(each)
            print(row(*each), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "at": time.time(), "found": found}, file)
    if options.plots:
        os.makedirs(options.plots, exist_ok=True)
        for name, rows in found.items():
            plot(name, rows, options.plots)


if __name__ == "__main__":
    main()
