"""sbom.cdx.json: the bill of materials as CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json.

The model is a component of type machine-learning-model. Its pedigree names teacher and base. Without times and serial
number, so that equal bundles have equal bytes.
"""

from importlib.metadata import version
from pathlib import Path

from compress.checkpoint.digest import file_sha256
from compress.checkpoint.model_card import find_license
from compress.core.report import Row
from compress.ship.bundle.licenses import spdx
from compress.ship.bundle.lineage import ancestors
from compress.ship.bundle.plan import MODEL, BundlePlan
from compress.ship.bundle.quality import quality_rows

SBOM = "sbom.cdx.json"
METRICS = ("kl", "perplexity", "perplexity_ratio", "top1", "score", "retention")


def sbom(plan: BundlePlan, folder: Path) -> Row:
    """The bill of materials of the bundle in `folder`, whose model/ is complete."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "qcompress", "version": version("qcompress")}]},
            "component": model_component(plan),
        },
        "components": [*map(file_component, model_paths(folder)), image_component(plan)],
        "dependencies": [{"ref": "model", "dependsOn": ["image", *(path.name for path in model_paths(folder))]}],
    }


def model_paths(folder: Path) -> list[Path]:
    return sorted((folder / MODEL).iterdir())


def model_component(plan: BundlePlan) -> Row:
    """The component of the shipped model."""
    config = plan.checkpoint.config
    card: Row = {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": str(config.get("model_type", "unknown")),
            "modelArchitecture": str((config.get("architectures") or ["unknown"])[0]),
        }
    }
    if metrics := [metric for row in quality_rows(plan.checkpoint, plan.config.history) for metric in metrics_of(row)]:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    license_ = find_license(plan.checkpoint.path)
    pedigree = [ancestor_component(row) for row in ancestors(plan.checkpoint.record)]
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": plan.name,
        "version": plan.checkpoint.digest,
        **licenses(license_),
        **({"pedigree": {"ancestors": pedigree}} if pedigree else {}),
        "modelCard": card,
        "properties": properties({"digest": plan.checkpoint.digest, "license": license_ or "unknown"}),
    }


def metrics_of(row: Row) -> list[Row]:
    """The figures of a result, as CycloneDX's performance metrics."""
    against = row.get("reference") or row.get("kind")
    slices = {"slice": str(against)} if against else {}
    return [
        {"type": f"{row['from']}: {key}", "value": f"{row[key]:.6g}", **slices}
        for key in METRICS
        if isinstance(row.get(key), int | float)
    ]


def ancestor_component(row: Row) -> Row:
    """The component of a teacher, a base, or another ancestor. Its digest is over config.json and the weights."""
    facts = {"role": row["role"], "digest": row["digest"] or "unknown", "license": row["license"] or "unknown"}
    return {
        "type": "machine-learning-model",
        "name": row["name"],
        **licenses(row["license"]),
        "properties": properties(facts),
    }


def licenses(name: str | None) -> Row:
    """The key `licenses` for a licence's name on the hub; {} if it is unknown."""
    if not name:
        return {}
    return {"licenses": [{"license": {"id": spdx(name)} if spdx(name) else {"name": name}}]}


def properties(values: dict[str, str]) -> list[Row]:
    return [{"name": f"qcompress:{name}", "value": value} for name, value in values.items()]


def file_component(path: Path) -> Row:
    """The component of one file in model/."""
    hashes = [{"alg": "SHA-256", "content": file_sha256(path).hex()}]
    return {"type": "file", "bom-ref": path.name, "name": f"{MODEL}/{path.name}", "hashes": hashes}


def image_component(plan: BundlePlan) -> Row:
    """The component of the container image."""
    pin = {"version": plan.image.digest} if plan.image.digest else {}
    return {"type": "container", "bom-ref": "image", "name": plan.image.reference.partition("@")[0], **pin}
