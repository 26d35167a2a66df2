"""The model card: README.md with the hub's front matter, generated from a checkpoint's record alone.

The card contains no dates, times or paths, so equal records give equal bytes. Values that the record lacks are left
out. The hub's format: https://huggingface.co/docs/hub/model-cards.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from compress.checkpoint.hub import hub_name
from compress.checkpoint.read import Checkpoint, read_json

Record = dict[str, Any]
CARD = "README.md"
LICENSES = {  # beginning of the licence text -> its name on the hub
    "apache license": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause": "bsd-3-clause",
}
QUANTIZED = ("quantize", "convert")  # commands that write quantized checkpoints
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
USUAL = re.compile(r"[\w./@ -]*")
MARKUP = re.compile(r"[\\`*_{}\[\]()<>#+!|~&-]")
HIDDEN = ("student", "text", "eval_text", "cache")  # shown elsewhere in the card, or local paths
SCORES = {
    "perplexity_teacher": "perplexity of the teacher",
    "perplexity_before": "perplexity before",
    "perplexity_after": "perplexity after",
    "kl_before": "KL to the teacher before, nats per token",
    "kl_after": "KL to the teacher after, nats per token",
    "kl": "KL to the source, nats per token",
    "perplexity_ratio": "perplexity ratio",
    "retention": "retention, %",
}
SIZES = {
    "parameters": "parameters",
    "steps": "optimizer steps",
    "best_step": "best step",
    "tokens_read": "tokens read in training",
    "tokens_scored": "tokens scored for KL and perplexity",
}


def origin(checkpoint: Checkpoint) -> Record:
    """A record's entry for a source checkpoint: path, digest, name on the hub, and licence or None."""
    return {
        "path": str(checkpoint),
        "digest": checkpoint.digest,
        "name": find_name(checkpoint.path),
        "license": find_license(checkpoint.path),
    }


def find_name(path: Path) -> str:
    """The name of a checkpoint: its name on the hub, if config.json or the hub's cache has it, else its directory's."""
    name = read_json(path / "config.json").get("_name_or_path") if (path / "config.json").is_file() else None
    if isinstance(name, str) and HUB_NAME.fullmatch(name) and not Path(name).exists():
        return name
    return hub_name(path) or path.absolute().name


def find_license(path: Path) -> str | None:
    """The licence in the checkpoint's model card, or else in its LICENSE file, or None."""
    license_ = front_matter(path / CARD).get("license")
    if isinstance(license_, str):
        return license_
    if not (path / "LICENSE").is_file():
        return None
    text = (path / "LICENSE").read_text(encoding="utf-8", errors="replace")[:400].strip().lower()
    return next((name for beginning, name in LICENSES.items() if text.startswith(beginning)), None)


def front_matter(card: Path) -> Record:
    """The YAML front matter of a model card; {} if it is missing or malformed."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        value = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_card(record: Record) -> str:
    """The text of README.md for a record (the content of qcompress.json)."""
    matter = yaml.safe_dump(card_matter(record), sort_keys=False, allow_unicode=True)
    figures = quantized(record) if record["command"] in QUANTIZED else results(record)
    parts = [introduction(record), figures, data(record), settings(record), loading()]
    return f"---\n{matter}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def origins(record: Record) -> list[Record]:
    """The source checkpoints in the record: first the student, then the teacher or the quantized model."""
    keys = ("student", "source") if "source" in record else ("converted",)
    return [record[key] for key in keys if isinstance(record.get(key), dict)]


def card_matter(record: Record) -> Record:
    """The front matter. It has a licence only if all source checkpoints have the same one."""
    licenses = {one.get("license") for one in origins(record)}
    license_ = licenses.pop() if len(licenses) == 1 else None
    quantized = record["command"] in QUANTIZED
    matter: Record = {"license": license_} if license_ else {}
    matter |= {"base_model": [name_of(one) for one in origins(record)]}
    matter |= {"base_model_relation": "quantized"} if quantized else {}
    matter |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    return matter | {"tags": list(dict.fromkeys(["qcompress", *kinds(record)]))}


def kinds(record: Record) -> list[str]:
    """The hub's tags: distillation, or quantization with its method and format."""
    if record["command"] in QUANTIZED:
        options = record["settings"]
        return ["quantization", "4-bit", *(str(options[key]) for key in ("method", "format") if options.get(key))]
    return ["distillation"]


def name_of(one: Record) -> str:
    return plain_text(str(one.get("name") or Path(str(one.get("path", "unknown"))).name))


def plain_text(text: str) -> str:
    """A text from a record as one line that Markdown shows as it is. Usual names stay unchanged."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    return line if USUAL.fullmatch(line) else MARKUP.sub(r"\\\g<0>", line)


def introduction(record: Record) -> str:
    source, versions = record.get("source") or record.get("converted", {}), record.get("versions", {})
    teacher = name_of(source)
    titles = {
        "quantize": (f"{teacher} in 4 bits", f"The weights of {teacher}, quantized"),
        "convert": (f"{teacher} in 4 bits", f"The quantized weights of {teacher}, in another layout"),
        "distill": (f"A student of {teacher}", f"A smaller model that learned from {teacher}"),
    }
    title, sentence = titles.get(record["command"], (f"A smaller {teacher}", f"Cut out of {teacher}, not trained"))
    lines = [
        f"# {title}",
        "",
        f"{sentence} with `qcompress {plain_text(record['command'])}` {versions.get('qcompress', '')}.",
    ]
    roles = {"student": "student before training", "source": "source" if "4 bits" in title else "teacher"}
    roles["converted"] = "converted from"
    lines += ["", "| | name | digest | license |", "|---|---|---|---|"]
    for key, role in roles.items():
        if isinstance(record.get(key), dict):
            one = record[key]
            lines.append(f"| {role} | {name_of(one)} | `{one.get('digest')}` | {one.get('license') or 'unknown'} |")
    kept = record.get("blocks")
    return "\n".join(
        [*lines, "", f"Blocks of the teacher that it has: {', '.join(map(str, kept))}."] if kept else lines
    )


def results(record: Record) -> str:
    """The section of results: figures of the summary row and the loss. "" without figures."""
    rows = record.get("rows") or []
    row = dict(rows[0]) if rows else {}
    row |= {key: record[key] for key in ("kl", "perplexity_ratio", "retention") if record.get(key) is not None}
    lines = [f"| {word} | {row[key]:,} |" for key, word in SIZES.items() if row.get(key) is not None]
    curve = record.get("loss") or []
    if curve:
        lines.append(f"| loss, first and last step | {curve[0]['loss']:.4g} → {curve[-1]['loss']:.4g} |")
    lines += [f"| {word} | {score(row, key)} |" for key, word in SCORES.items() if row.get(key) is not None]
    return "\n".join(["## Results, on held-out text", "", "| | |", "|---|---|", *lines]) if lines else ""


def score(row: Record, key: str) -> str:
    """A figure with its standard error, if the row has one."""
    error = row.get(f"{key}_se")
    return f"{row[key]:.4g}" + ("" if error is None else f" ± {error:.2g}")


def quantized(record: Record) -> str:
    """The results of a quantization: sizes, errors, KL before and after tuning, and the candidates of `auto`."""
    size = record.get("size") or {}
    rows = [row for row in record.get("rows") or [] if {"error", "rtn_error"} <= row.keys()]
    lines = []
    if size:
        share = size["bytes"] / size["source_bytes"]
        lines.append(f"| bytes of all weights | {size['bytes']:,}, {share:.1%} of the source |")
        lines.append(f"| bits per quantized weight, scales included | {size['bits_per_weight']:.2f} |")
    if rows:
        error, plain = (sum(row[key] for row in rows) / len(rows) for key in ("error", "rtn_error"))
        lines.append(f"| quantized linears | {len(rows)} |")
        lines.append(f"| output energy lost, mean over the linears | {error:.4g} |")
        lines.append(f"| the same by plain rounding | {plain:.4g} |")
    if trained := record.get("tune"):
        lines.append(f"| KL to the source before tuning, held-out windows | {trained['kl_before']:.4g} |")
        lines.append(f"| KL to the source after tuning | {trained['kl']:.4g} |")
    table = ["## Results", "", "| | |", "|---|---|", *lines] if lines else []
    return "\n".join([*table, *candidates(record)])


def candidates(record: Record) -> list[str]:
    """The table of candidates that `--method auto` compared; [] for other methods."""
    rows = record.get("candidates") or []
    lines = [f"| {row['candidate']} | {row['eval_kl']:.4g} |" for row in rows]
    head = [
        "",
        "Candidates, compared on held-out windows:",
        "",
        "| method | KL to the source, nats per token |",
        "|---|---|",
    ]
    return [*head, *lines] if lines else []


def data(record: Record) -> str:
    """The section of texts: calibration or training text, and evaluation text, each with its digest."""
    words = {"calibration": "calibration" if record["command"] == "quantize" else "training", "eval_text": "evaluation"}
    named = [(words[key], record.get(key)) for key in words]
    for stage in record.get("stages") or []:
        named += [(f"stage {stage['name']}, {words[key]}", stage.get(key)) for key in words]
    lines = []
    for role, manifest in named:
        if manifest and (held := manifest.get("held_out")):
            role += f", {held} of {manifest['n_samples'] + held} windows held out"
        for source in (manifest or {}).get("sources", []):
            name = Path(str(source["name"])).name
            lines.append(
                f"| {role} | {name} | {source.get('weight', 1):g} | {source['tokens']:,} | `{source['digest']}` |"
            )
    head = ["## Data", "", "| | text | weight | tokens | digest |", "|---|---|---|---|---|"]
    return "\n".join([*head, *dict.fromkeys(lines)]) if lines else ""


def settings(record: Record) -> str:
    """The section of settings, without None and local paths."""
    options = shown(record["settings"])
    if options.get("stages"):
        options["stages"] = [shown(stage) for stage in options["stages"]]
    text = json.dumps(options, indent=2, ensure_ascii=False, default=str)
    return f"## Settings\n\n```json\n{text}\n```\n\nEverything else is in `qcompress.json`."


def shown(options: Record) -> Record:
    return {name: value for name, value in options.items() if value not in (None, []) and name not in HIDDEN}


def loading() -> str:
    return """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
```

```console
$ vllm serve path/to/this/directory
```"""
