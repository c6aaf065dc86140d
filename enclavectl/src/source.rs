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
        ContainerImage, Digest, Limits, Opening, RunConfig, SourceError, Tree, open_directory,
        open_docker_archive, open_oci_archive, open_oci_document, open_oci_layout, open_tar,
        read_docker_archive, read_oci_archive,
    },
};
use oci_client::Reference;

use crate::{
    daemon::{self, DaemonError},
    failure::{Blame, Failure},
    registry::{Pulled, RegistryError},
};

/// Where a root filesystem comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    OciLayout(PathBuf, Option<String>),
    OciArchive(PathBuf, Option<String>),
    DockerArchive(PathBuf, Option<String>),
    Directory(PathBuf),
    Tar(PathBuf),
    Registry(Reference),
    /// A name with its tag, or an ID.
    DockerDaemon(String),
}

/// Why text names no source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParseSourceError {
    #[error(
        "a source is docker://NAME[:TAG][@DIGEST] in a registry, docker-daemon:NAME[:TAG], oci:DIR[:TAG], \
         oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], rootfs:DIR or tar:FILE"
    )]
    Kind,
    #[error("{name:?} is not the name of a container image")]
    Name { name: String },
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
            "docker" => Source::Registry(registry_name(rest)?),
            "docker-daemon" => Source::DockerDaemon(daemon_name(rest)?),
            _ => return Err(ParseSourceError::Kind),
        };
        if path.is_empty() { Err(ParseSourceError::NoPath) } else { Ok(source) }
    }
}

/// `//NAME[:TAG][@DIGEST]`; short names are Docker Hub's, as everywhere.
fn registry_name(text: &str) -> Result<Reference, ParseSourceError> {
    let name = text.strip_prefix("//").ok_or(ParseSourceError::Kind)?;
    let wrong = || ParseSourceError::Name { name: name.to_owned() };
    let reference: Reference = name.parse().map_err(|_| wrong())?;
    match reference.digest() {
        Some(digest) if digest.parse::<Digest>().is_err() => Err(wrong()),
        _ => Ok(reference),
    }
}

/// Without a tag Docker would give all that it has of this name.
fn daemon_name(name: &str) -> Result<String, ParseSourceError> {
    if !daemon::is_name(name) {
        return Err(ParseSourceError::Name { name: name.to_owned() });
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    Ok(if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") })
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
    /// Names all content of a container image.
    pub(crate) digest: Option<Digest>,
}

/// How a source may be read.
pub(crate) struct Access<'a> {
    pub(crate) limits: Limits,
    /// For unnamed files of what was compressed or fetched: should be on a disk
    /// with room for it.
    pub(crate) scratch: &'a Path,
    /// Whether registries may be asked without TLS.
    pub(crate) plain_http: bool,
}

impl Access<'_> {
    fn spool(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.scratch)
    }
}

impl Source {
    /// Opens the source; of several images the one for `architecture`.
    pub(crate) fn open(&self, architecture: Architecture, access: &Access<'_>) -> Result<Opened, Failure> {
        let mut spool = || access.spool();
        let opening = |spool: io::Result<File>| {
            let spool = spool.map_err(SourceError::Spool)?;
            Ok::<_, SourceError>(Opening { architecture, limits: access.limits, spool })
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
            Source::Registry(reference) => pull(reference, access, opening(spool())?)?,
            Source::DockerDaemon(name) => {
                let mut file = spool().map_err(SourceError::Spool)?;
                daemon::save(name, &mut file, access.limits.total)?;
                saved(name, &file, &|| opening(access.spool()), &mut spool)?
            }
        };
        let ContainerImage { tree, config, notes, digest } = image;
        Ok(Opened { tree, config, notes, digest: Some(digest) })
    }

    /// The same source, with a relative path meant from `directory`.
    pub(crate) fn relative_to(self, directory: &Path) -> Source {
        match self {
            Source::OciLayout(path, reference) => Source::OciLayout(directory.join(path), reference),
            Source::OciArchive(path, reference) => Source::OciArchive(directory.join(path), reference),
            Source::DockerArchive(path, reference) => Source::DockerArchive(directory.join(path), reference),
            Source::Directory(path) => Source::Directory(directory.join(path)),
            Source::Tar(path) => Source::Tar(directory.join(path)),
            elsewhere @ (Source::Registry(_) | Source::DockerDaemon(_)) => elsewhere,
        }
    }
}

fn pull(reference: &Reference, access: &Access<'_>, opening: Opening) -> Result<ContainerImage, Failure> {
    let pulled = Pulled::open(reference, access.plain_http, access.scratch)?;
    let name = reference.whole();
    let mut image = open_oci_document(&name, &pulled.document, pulled.pinned.as_ref(), &pulled, opening)?;
    if pulled.pinned.is_none() {
        let digest = Digest::sha256(&pulled.document);
        image.notes.push(format!("{name} is {digest} now: name it with @{digest} to build the same again"));
    }
    Ok(image)
}

/// An image that the daemon has saved into `file`. An ID is the digest of the
/// image's configuration or, where Docker keeps its images in containerd, of its
/// manifest: then the archive is a layout as well.
fn saved(
    name: &str,
    file: &File,
    opening: &dyn Fn() -> Result<Opening, SourceError>,
    spool: &mut dyn FnMut() -> io::Result<File>,
) -> Result<ContainerImage, SourceError> {
    let title = PathBuf::from(format!("docker-daemon:{name}"));
    let again = || file.try_clone().map_err(SourceError::Spool);
    let image = read_docker_archive(again()?, &title, None, opening()?, spool)?;
    match name.parse::<Digest>() {
        Ok(id) if id != image.digest => {
            read_oci_archive(again()?, &title, Some(&id.to_string()), opening()?, spool)
        }
        _ => Ok(image),
    }
}

impl Opened {
    fn plain(tree: Tree) -> Opened {
        Opened { notes: tree.notes(), tree, config: RunConfig::default(), digest: None }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Failure {
        let blame = match &error {
            SourceError::Read { .. } => Blame::NoInput,
            SourceError::Spool(_) => Blame::Io,
            SourceError::NoSuchImage { .. } | SourceError::Ambiguous { .. } => Blame::Usage,
            SourceError::Fetch { source, .. } => match source.downcast_ref::<RegistryError>() {
                Some(error) => Blame::from(error),
                None => Blame::Io,
            },
            _ => Blame::Data,
        };
        Failure::new(blame, error)
    }
}

impl From<&RegistryError> for Blame {
    fn from(error: &RegistryError) -> Blame {
        match error {
            RegistryError::Credentials(_) => Blame::Usage,
            RegistryError::Unreachable { .. } | RegistryError::Interrupted { .. } => Blame::Unavailable,
            RegistryError::Denied { .. } => Blame::NoPermission,
            RegistryError::NotFound { .. } => Blame::NoInput,
            RegistryError::WrongDigest { .. }
            | RegistryError::TooLong { .. }
            | RegistryError::Protocol { .. } => Blame::Data,
            RegistryError::File { .. } | RegistryError::Start(_) => Blame::Io,
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        Failure::new(Blame::from(&error), error)
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Failure {
        let blame = match error {
            DaemonError::Host { .. } => Blame::Usage,
            DaemonError::Unreachable { .. } | DaemonError::Interrupted { .. } => Blame::Unavailable,
            DaemonError::NoSuchImage { .. } => Blame::NoInput,
            DaemonError::Status { .. } | DaemonError::TooLong { .. } => Blame::Data,
            DaemonError::Spool { .. } => Blame::Io,
        };
        Failure::new(blame, error)
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "a test fails by panicking")]
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
        assert_eq!(parse(&format!("oci:a@{digest}")), Source::OciLayout("a".into(), Some(digest.clone())));
        let Source::Registry(pinned) = parse(&format!("docker://127.0.0.1:5000/a/b:v1@{digest}")) else {
            panic!()
        };
        assert_eq!((pinned.registry(), pinned.digest()), ("127.0.0.1:5000", Some(digest.as_str())));
        let Source::Registry(short) = parse("docker://busybox") else { panic!() };
        assert_eq!(short.whole(), "docker.io/library/busybox:latest");
        for (text, name) in
            [("a/b", "a/b:latest"), ("h:5000/a", "h:5000/a:latest"), ("a:1", "a:1"), (&digest, &digest)]
        {
            assert_eq!(parse(&format!("docker-daemon:{text}")), Source::DockerDaemon(name.to_owned()));
        }
    }

    #[test]
    fn what_names_no_source_is_refused() {
        for text in [
            "",
            "a",
            "oci",
            "docker:a",
            "oci:",
            "tar:",
            "oci-archive::v1",
            "docker://",
            "docker://A",
            "docker://a@sha256:12",
            "docker-daemon:",
            "docker-daemon:a b",
            "docker-daemon:../a",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
