"""Draw the plots of the documentation: python scripts/make_plots.py

Reads docs/results/data/*.json, which contain measured numbers with their command lines and dates. Writes
docs/images/*.svg. The same data give the same bytes.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DATA = Path(__file__).parents[1] / "docs" / "results" / "data"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
OURS, GPTQMODEL, LLM_COMPRESSOR, GREY = "#00796b", "#c2571a", "#7b3fa0", "#6b6b6b"
COLOURS = {"qcompress": OURS, "GPTQModel 7.7.0": GPTQMODEL, "llm-compressor 0.14.0.1": LLM_COMPRESSOR}
BESIDE = (8, -3)  # offset of a label from its point
NEAR = {"awq": (8, 2), "gptq": (8, -10), "gptq, 8 windows": (-30, 12), "awq+gptq, 16 windows": (-70, -17)}
LINES = ("#6b6b6b", "#1f6feb", "#00796b", "#c2571a")


def load(name: str) -> dict[str, Any]:
    """The content of one data file for the results pages."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def label(row: dict[str, Any]) -> str:
    return row["name"] if row["tool"] == "qcompress" else f"{row['tool']}, {row['name']}"


def kl_axis(axes: Axes) -> None:
    """Make the vertical axis one of KL: logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
    axes.minorticks_off()
    axes.set_ylim(0.05, 0.45)
    axes.set_ylabel("KL to the FP16 model, nats (lower is better)")


def plot_size() -> Figure:
    """KL against size, for the checkpoints of one benchmark. Bars are one standard error."""
    figure, axes = canvas()
    names = ("awq+gptq", "awq", "gptq", "gptq, no error correction", "GPTQ")
    for row in (row for row in load("quality")["rows"] if row["name"] in names):
        draw_point(axes, row["mb"], row, offset=NEAR.get(row["name"], BESIDE))
    axes.set_xlim(100, 225)
    axes.set_xlabel("size of the checkpoint, MB (the FP16 model has 269)")
    axes.set_title("SmolLM2-135M in 4 bits: KL against size")
    kl_axis(axes)
    return figure


def plot_time() -> Figure:
    """KL against the seconds of quantization."""
    figure, axes = canvas()
    for row in load("quality")["rows"]:
        draw_point(axes, row["seconds"], row, offset=NEAR.get(row["name"], BESIDE))
    axes.set_xscale("log")
    axes.set_xticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
    axes.set_xlim(18, 1000)
    axes.set_xlabel("seconds to quantize, 2 CPU cores")
    axes.set_title("SmolLM2-135M in 4 bits: KL against time")
    kl_axis(axes)
    return figure


def draw_point(axes: Axes, x: float, row: dict[str, Any], *, offset: tuple[float, float]) -> None:
    colour = COLOURS[row["tool"]]
    axes.errorbar(x, row["kl"], yerr=row["kl_se"], fmt="o", color=colour, markersize=7, capsize=3)
    axes.annotate(label(row), (x, row["kl"]), xytext=offset, textcoords="offset points", color=colour, fontsize=9)


def plot_distillation() -> Figure:
    """Held-out KL against training tokens, for four losses."""
    figure, axes = canvas()
    for row, colour in zip(load("distill-curve")["rows"], LINES, strict=True):
        axes.plot([tokens / 1000 for tokens in row["tokens"]], row["kl"], "o-", color=colour, label=row["name"])
    axes.set_xlabel("training tokens, thousands")
    axes.set_ylabel("held-out KL to the teacher, nats")
    axes.set_title("SmolLM2-135M, 30 to 20 blocks: four losses compared")
    axes.legend(frameon=False)
    return figure


def plot_memory() -> Figure:
    """Predicted and measured peak memory."""
    data = load("memory")
    parts = {"quantize_1_5b": "1.5B shape", "quantize": "7B shape", "distill": "SmolLM2"}
    rows = [(f"{title}\n{row['name']}", row) for key, title in parts.items() for row in data[key]["rows"]]
    figure, axes = canvas(width=9.0)
    places = range(len(rows))
    for shift, key, colour in ((-0.2, "predicted_gb", "#b0b0b0"), (0.2, "measured_gb", OURS)):
        bars = axes.bar([place + shift for place in places], [row[key] for _, row in rows], 0.38, color=colour)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
        bars.set_label(key.removesuffix("_gb"))
    axes.set_xticks(list(places), [name.replace("with --", "with\n--") for name, _ in rows], fontsize=8)
    axes.set_ylabel("peak memory of the process, GB")
    axes.set_title("Memory: predicted before the work, and measured")
    axes.legend(frameon=False)
    return figure


def plot_training() -> Figure:
    """Training speed of qcompress and TRL."""
    rows = load("speed")["training"]["rows"]
    figure, axes = canvas(height=2.6)
    colours = [GREY if "TRL" in row["name"] else OURS for row in rows]
    bars = axes.barh([row["name"] for row in rows], [row["tokens_per_s"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 270)
    axes.set_xlabel("training tokens per second, 2 CPU cores")
    axes.set_title("Distillation: SmolLM2-135M to 15 blocks")
    return figure


def canvas(*, width: float = 8.0, height: float = 4.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


PLOTS = {
    "kl-size": plot_size,
    "kl-time": plot_time,
    "distill-curve": plot_distillation,
    "memory": plot_memory,
    "training-speed": plot_training,
}


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "qcompress"  # so that ids in the file are the same in every run
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        plot().savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
        print(f"wrote docs/images/{name}.svg")


if __name__ == "__main__":
    main()
