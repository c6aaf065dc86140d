//! enclave_manifest.json, as AWS's tools for enclaves in Kubernetes have it
//! (aws-nitro-enclaves-with-k8s, both of its forms).
//!
//! There a container clones `repository`, runs `docker build`, and gives the
//! image to nitro-cli. Here the image is taken from Docker under the name that
//! the manifest gives it; how it came there is left to whoever built it.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::Manifest;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AwsManifest {
    name: String,
    eif: Option<Eif>,
    /// The older form has no `eif` around them.
    docker: Option<Docker>,
    #[serde(rename = "eif_name")]
    _eif_name: Option<IgnoredAny>,
    /// Where `docker build` is run, and what it leaves to the parent instance.
    #[serde(rename = "repository")]
    _repository: Option<IgnoredAny>,
    #[serde(rename = "tag")]
    _tag: Option<IgnoredAny>,
    #[serde(rename = "instance")]
    _instance: Option<IgnoredAny>,
    #[serde(rename = "exports")]
    _exports: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eif {
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    docker: Docker,
}

#[derive(Deserialize)]
struct Docker {
    image_name: String,
    image_tag: String,
}

/// Nothing when `text` is no such manifest.
pub(super) fn parse(text: &str) -> anyhow::Result<Option<Manifest>> {
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return Ok(None) };
    if !["eif", "docker", "eif_name"].iter().any(|field| fields.contains_key(*field)) {
        return Ok(None);
    }
    let AwsManifest { name, eif, docker, .. } = serde_json::from_value(Value::Object(fields))?;
    let Docker { image_name, image_tag } = match (eif, docker) {
        (Some(Eif { docker, .. }), None) | (None, Some(docker)) => docker,
        _ => anyhow::bail!("it must have one of `eif` and `docker`"),
    };
    Ok(Some(Manifest {
        name,
        image: Some(format!("docker-daemon:{image_name}:{image_tag}")),
        version: image_tag,
        ..Manifest::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = r#"{"image_name": "ne-build-app", "image_tag": "1.0", "target": "",
        "x86_64": {"file_path": "a", "file_name": "Dockerfile", "build_path": "a"}}"#;

    #[test]
    fn both_forms_name_the_image_that_docker_has() {
        let newer = format!(
            r#"{{"name": "app", "repository": "https://example.org/app.git", "tag": "v1",
                "eif": {{"name": "app.eif", "docker": {DOCKER}}},
                "instance": {{"docker": {DOCKER}, "exports": ["/a"]}}}}"#
        );
        let older = format!(
            r#"{{"name": "app", "repository": "https://example.org/app.git", "tag": "v1",
                "docker": {DOCKER}, "eif_name": "app.eif", "exports": ["/a"]}}"#
        );
        for text in [newer, older] {
            let manifest = Manifest::parse(&text).unwrap();
            assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("app", "1.0"));
            assert_eq!(manifest.image.as_deref(), Some("docker-daemon:ne-build-app:1.0"));
        }
    }

    #[test]
    fn what_is_neither_is_refused_and_json_of_our_own_is_ours() {
        for text in [
            r#"{"name": "app", "eif_name": "app.eif"}"#,
            &format!(r#"{{"name": "app", "docker": {DOCKER}, "colour": "red"}}"#),
            &format!(r#"{{"name": "app", "docker": {DOCKER}, "eif": {{"docker": {DOCKER}}}}}"#),
        ] {
            assert!(Manifest::parse(text).is_err(), "{text}");
        }
        let ours = Manifest::parse(r#"{"name": "app", "version": "1", "image": "oci:app"}"#).unwrap();
        assert_eq!(ours.image.as_deref(), Some("oci:app"));
    }
}
