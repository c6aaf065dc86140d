//! Metadata and command line of two images, value by value.

use std::collections::BTreeMap;

use eif::Image;

use super::Value;
use crate::failure::{Blame, Failure, OrBlame};

pub(super) fn compare(first: &Image<'_>, second: &Image<'_>) -> Result<Vec<Value>, Failure> {
    let (one, other) = (values(first)?, values(second)?);
    let mut names: Vec<_> = one.keys().chain(other.keys()).collect();
    names.sort();
    names.dedup();
    let differing = names.into_iter().filter_map(|name| {
        Value::if_different(name.as_str(), one.get(name).cloned(), other.get(name).cloned())
    });
    Ok(differing.collect())
}

/// The command line and each leaf of the metadata by its path.
fn values(image: &Image<'_>) -> Result<BTreeMap<String, String>, Failure> {
    let mut values = BTreeMap::new();
    values.insert("command line".to_owned(), format!("\"{}\"", image.cmdline()?.escape_ascii()));
    if let Some(metadata) = image.metadata()? {
        let json = serde_json::to_value(metadata).or_blame(Blame::Io)?;
        flatten("metadata", &json, &mut values);
    }
    Ok(values)
}

fn flatten(path: &str, value: &serde_json::Value, into: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, value)| flatten(&format!("{path}.{name}"), value, into));
        }
        serde_json::Value::Array(items) if !items.is_empty() => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| flatten(&format!("{path}[{index}]"), item, into));
        }
        leaf => {
            into.insert(path.to_owned(), leaf.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_has_its_path() {
        let mut values = BTreeMap::new();
        let json = serde_json::json!({"a": {"b": [1, {"c": null}]}, "d": {}});
        flatten("m", &json, &mut values);
        let found: Vec<_> = values.iter().map(|(name, value)| format!("{name} {value}")).collect();
        assert_eq!(found, ["m.a.b[0] 1", "m.a.b[1].c null", "m.d {}"]);
    }
}
