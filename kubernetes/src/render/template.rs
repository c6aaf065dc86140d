//! As much of Helm's templates as the chart uses: `{{ .Values.name }}` within
//! a line; `{{- if .Values.name }}`, `{{- range .Values.names }}` and
//! `{{- end }}` as whole lines. So the chart and `render` cannot differ.

use std::collections::BTreeMap;

use serde_json::Value;

/// A template that uses more of Helm than this knows, or a missing value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template line {line}: {what}")]
pub struct TemplateError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Fills a template.
pub(super) fn fill(template: &str, values: &BTreeMap<String, Value>) -> Result<String, TemplateError> {
    let lines: Vec<(usize, &str)> = template.lines().enumerate().map(|(at, line)| (at + 1, line)).collect();
    let mut out = String::new();
    block(&lines, values, None, &mut out)?;
    Ok(out)
}

fn block(
    lines: &[(usize, &str)],
    values: &BTreeMap<String, Value>,
    item: Option<&Value>,
    out: &mut String,
) -> Result<(), TemplateError> {
    let mut at = 0;
    while at < lines.len() {
        let (number, line) = lines[at];
        let fault = |what: &str| TemplateError { line: number, what: what.to_owned() };
        let Some(control) = control(line) else {
            out.push_str(&inline(number, line, values, item)?);
            out.push('\n');
            at += 1;
            continue;
        };
        let end = matching_end(&lines[at + 1..]).ok_or_else(|| fault("no end"))? + at + 1;
        let inner = &lines[at + 1..end];
        let (verb, name) = control.split_once(' ').ok_or_else(|| fault("unknown control"))?;
        let value = lookup(name, values, item).ok_or_else(|| fault("no such value"))?;
        match verb {
            "if" if is_true(value) => block(inner, values, item, out)?,
            "if" => {}
            "range" => {
                for one in value.as_array().ok_or_else(|| fault("not a list"))? {
                    block(inner, values, Some(one), out)?;
                }
            }
            _ => return Err(fault("unknown control")),
        }
        at = end + 1;
    }
    Ok(())
}

/// What a control line says, without its braces.
fn control(line: &str) -> Option<&str> {
    line.trim().strip_prefix("{{- ")?.strip_suffix(" }}")
}

fn matching_end(lines: &[(usize, &str)]) -> Option<usize> {
    let mut depth = 0;
    for (at, (_, line)) in lines.iter().enumerate() {
        match control(line) {
            Some("end") if depth == 0 => return Some(at),
            Some("end") => depth -= 1,
            Some(_) => depth += 1,
            None => {}
        }
    }
    None
}

fn inline(
    number: usize,
    line: &str,
    values: &BTreeMap<String, Value>,
    item: Option<&Value>,
) -> Result<String, TemplateError> {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, behind)) = rest.split_once("{{ ") {
        let fault = |what: String| TemplateError { line: number, what };
        let (name, after) = behind.split_once(" }}").ok_or_else(|| fault("unclosed braces".to_owned()))?;
        out.push_str(before);
        match lookup(name, values, item) {
            Some(Value::String(text)) => out.push_str(text),
            Some(Value::Number(number)) => out.push_str(&number.to_string()),
            _ => return Err(fault(format!("no text for {name}"))),
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup<'v>(name: &str, values: &'v BTreeMap<String, Value>, item: Option<&'v Value>) -> Option<&'v Value> {
    match name.strip_prefix(".Values.") {
        Some(name) if item.is_none() => values.get(name),
        Some(_) => None,
        None => item?.get(name.strip_prefix('.')?),
    }
}

/// As Go's templates see truth.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_conditions_and_lists_are_filled() {
        let values: BTreeMap<String, Value> =
            serde_json::from_str(r#"{"a": "x", "on": true, "off": [], "list": [{"n": "1"}, {"n": "2"}]}"#)
                .unwrap();
        let template = "a: {{ .Values.a }}-{{ .Values.a }}\n{{- if .Values.on }}\nb:\n{{- range .Values.list }}\n- {{ .n }}\n{{- end }}\n{{- end }}\n{{- if .Values.off }}\nc\n{{- end }}\n";
        assert_eq!(fill(template, &values).unwrap(), "a: x-x\nb:\n- 1\n- 2\n");
        for wrong in
            ["{{ .Values.b }}", "{{- if .Values.on }}", "{{- with .Values.a }}\n{{- end }}", "{{ .Values.a"]
        {
            assert!(fill(wrong, &values).is_err(), "{wrong}");
        }
    }
}
