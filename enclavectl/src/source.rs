//! `--image SOURCE`: which kind of source, where, and which image of several.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    str::FromStr,
};

use eif::{
    Architecture,
    rootfs::{
        self, Digest, Limits, Opening, RunConfig, SourceError, Tree, open_directory, open_docker_archive,
        open_oci_archive, open_oci_layout, open_tar,
    },
};

use crate::failure::{Blame, Failure};

/// Where a root filesystem comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    OciLayout(PathBuf, Option<String>),
    OciArchive(PathBuf, Option<String>),
    DockerArchive(PathBuf, Option<String>),
    Directory(PathBuf),
    Tar(PathBuf),
}

/// Why text names no source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParseSourceError {
    #[error(
        "a source is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], rootfs:DIR or tar:FILE"
    )]
    Kind,
    #[error("the path is empty")]
    NoPath,
}

impl FromStr for Source {
    type Err = ParseSourceError;

    /// What follows a path's last colon is the tag or digest, if it has one;
    /// a tag cannot hold a slash.
    fn from_str(text: &str) -> Result<Source, ParseSourceError> {
        let (kind, rest) = text.split_once(':').ok_or(ParseSourceError::Kind)?;
        let (path, reference) = split_reference(rest);
        let source = match kind {
            "oci" => Source::OciLayout(path.into(), reference),
            "oci-archive" => Source::OciArchive(path.into(), reference),
            "docker-archive" => Source::DockerArchive(path.into(), reference),
            "rootfs" => Source::Directory(rest.into()),
            "tar" => Source::Tar(rest.into()),
            _ => return Err(ParseSourceError::Kind),
        };
        if path.is_empty() { Err(ParseSourceError::NoPath) } else { Ok(source) }
    }
}

/// `PATH`, `PATH:TAG`, `PATH:NAME:TAG` or `PATH@DIGEST`.
fn split_reference(text: &str) -> (&str, Option<String>) {
    if let Some((path, digest)) = text.rsplit_once('@')
        && digest.parse::<Digest>().is_ok()
    {
        return (path, Some(digest.to_owned()));
    }
    match text.split_once(':') {
        Some((path, reference)) => (path, Some(reference.to_owned())),
        None => (text, None),
    }
}

/// A root filesystem and how it wants to be run.
pub(crate) struct Opened {
    pub(crate) tree: Tree,
    /// Empty for what is no container image.
    pub(crate) config: RunConfig,
    /// What was left out.
    pub(crate) notes: Vec<String>,
}

impl Source {
    /// Opens the source. Layers that are compressed go into an unnamed file in
    /// `scratch`, which should be on a disk with room for them.
    pub(crate) fn open(
        &self,
        architecture: Architecture,
        limits: Limits,
        scratch: &Path,
    ) -> Result<Opened, Failure> {
        let mut spool = || tempfile::tempfile_in(scratch);
        let opening = |spool: io::Result<File>| {
            let spool = spool.map_err(SourceError::Spool)?;
            Ok::<_, SourceError>(Opening { architecture, limits, spool })
        };
        let image = match self {
            Source::Directory(path) => return Ok(open_directory(path).map(Opened::plain)?),
            Source::Tar(path) => return Ok(open_tar(path, opening(spool())?).map(Opened::plain)?),
            Source::OciLayout(path, reference) => {
                open_oci_layout(path, reference.as_deref(), opening(spool())?)?
            }
            Source::OciArchive(path, reference) => {
                open_oci_archive(path, reference.as_deref(), opening(spool())?, &mut spool)?
            }
            Source::DockerArchive(path, reference) => {
                open_docker_archive(path, reference.as_deref(), opening(spool())?, &mut spool)?
            }
        };
        let rootfs::ContainerImage { tree, config, notes, .. } = image;
        Ok(Opened { tree, config, notes })
    }
}

impl Opened {
    fn plain(tree: Tree) -> Opened {
        Opened { tree, config: RunConfig::default(), notes: Vec::new() }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Failure {
        let blame = match error {
            SourceError::Read { .. } => Blame::NoInput,
            SourceError::Spool(_) => Blame::Io,
            SourceError::NoSuchImage { .. } | SourceError::Ambiguous { .. } => Blame::Usage,
            _ => Blame::Data,
        };
        Failure::new(blame, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn sources_are_told_apart_by_their_prefix() {
        let tag = |text: &str| Some(text.to_owned());
        assert_eq!(parse("oci:a/b"), Source::OciLayout("a/b".into(), None));
        assert_eq!(parse("oci:a/b:v1"), Source::OciLayout("a/b".into(), tag("v1")));
        assert_eq!(parse("oci-archive:a.tar"), Source::OciArchive("a.tar".into(), None));
        assert_eq!(parse("docker-archive:a.tar:app:1"), Source::DockerArchive("a.tar".into(), tag("app:1")));
        assert_eq!(parse("rootfs:/a:b"), Source::Directory("/a:b".into()));
        assert_eq!(parse("tar:/a:b"), Source::Tar("/a:b".into()));
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(parse(&format!("oci:a@{digest}")), Source::OciLayout("a".into(), Some(digest)));
    }

    #[test]
    fn what_names_no_source_is_refused() {
        for text in ["", "a", "oci", "docker:a", "oci:", "tar:", "oci-archive::v1"] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
