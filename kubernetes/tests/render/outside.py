"""Programs of other hands read what was rendered: Helm's own engine fills the
chart, and the core kinds are held against Kubernetes' own schemas.

Usage: outside.py CHART RENDERED KUBERNETES-VERSION
"""

import pathlib
import sys

import helm_python as helm
import kubernetes_validate
import yaml

CORE = ("apps/v1", "v1")


def main(chart_path, rendered_path, version):
    rendered = pathlib.Path(rendered_path)
    values = helm.values_from_yaml((rendered / "values.yaml").read_text())
    with helm.Chart.load(chart_path) as chart:
        filled = chart.render(values, name="release", namespace="default")
    compared = validated = 0
    for path, text in filled.items():
        name = pathlib.PurePosixPath(path).name
        ours = (rendered / name).read_text()
        if list(yaml.safe_load_all(text)) != list(yaml.safe_load_all(ours)):
            sys.exit(f"{name}: Helm makes other objects of it:\n{text}")
        compared += 1
        for item in yaml.safe_load_all(ours):
            if item["apiVersion"] in CORE:
                kubernetes_validate.validate(item, version, strict=True)
                validated += 1
    report = helm.lint(chart_path, values, strict=True)
    if report["errors"]:
        sys.exit(f"helm lint: {report}")
    refuses(rendered, version)
    print(f"{compared} files as Helm fills them, {validated} core objects valid")


def refuses(rendered, version):
    """The validator is one that can refuse."""
    broken = next(yaml.safe_load_all((rendered / "device-plugin.yaml").read_text()))
    broken["spec"]["template"]["spec"]["containers"][0]["privilege"] = True
    try:
        kubernetes_validate.validate(broken, version, strict=True)
    except kubernetes_validate.ValidationError:
        return
    sys.exit("an unknown field is not refused")


main(*sys.argv[1:])
