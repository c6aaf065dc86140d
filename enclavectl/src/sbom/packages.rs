//! The package databases of dpkg (Debian Policy, "Control files and their
//! fields"; also as distroless images split it) and of apk ("apk-tools,
//! installed database").

use std::{collections::BTreeMap, io};

use eif::rootfs::Tree;

/// That of a full desktop has some 5 MiB.
const MAX_DATABASE: u32 = 16 << 20;

/// What a root filesystem's databases tell.
pub(super) struct Found {
    /// Sorted by name, version and architecture.
    pub(super) packages: Vec<Package>,
    pub(super) distribution: Option<Distribution>,
    /// What was not looked into, in words for a person.
    pub(super) notes: Vec<&'static str>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    architecture: String,
    kind: Kind,
    /// The source package, where it has another name.
    source: Option<String>,
    pub(super) maintainer: Option<String>,
    pub(super) license: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deb,
    Apk,
}

/// ID and VERSION_ID of os-release(5).
pub(super) struct Distribution {
    pub(super) id: String,
    pub(super) version: Option<String>,
}

impl Distribution {
    /// `debian-12`.
    pub(super) fn name(&self) -> String {
        self.version.as_ref().map_or_else(|| self.id.clone(), |version| format!("{}-{version}", self.id))
    }
}

impl Package {
    /// The package's URL (package-url/purl-spec, types deb and apk).
    pub(super) fn purl(&self, distribution: Option<&Distribution>) -> String {
        let (kind, default) = match self.kind {
            Kind::Deb => ("deb", "debian"),
            Kind::Apk => ("apk", "alpine"),
        };
        let namespace = distribution.map_or(default, |distribution| &distribution.id);
        let name = distribution.map(Distribution::name);
        let qualifiers = [
            ("arch", Some(&self.architecture)),
            ("distro", name.as_ref()),
            ("upstream", self.source.as_ref()),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", escaped(value?))))
        .collect::<Vec<_>>();
        let (name, version) = (escaped(&self.name), escaped(&self.version));
        format!("pkg:{kind}/{}/{name}@{version}?{}", escaped(namespace), qualifiers.join("&"))
    }
}

pub(super) fn find(tree: &Tree) -> io::Result<Found> {
    let mut packages = Vec::new();
    if let Some(text) = text(tree, b"var/lib/dpkg/status")? {
        packages.extend(records(&text, ": ").filter_map(deb));
    }
    for name in tree.list(b"var/lib/dpkg/status.d") {
        if name.ends_with(b".md5sums") {
            continue;
        }
        if let Some(text) = text(tree, &[b"var/lib/dpkg/status.d/", &name[..]].concat())? {
            packages.extend(records(&text, ": ").filter_map(deb));
        }
    }
    for path in [&b"lib/apk/db/installed"[..], b"usr/lib/apk/db/installed"] {
        if let Some(text) = text(tree, path)? {
            packages.extend(records(&text, ":").filter_map(apk));
        }
    }
    packages.sort();
    packages.dedup();
    let mut notes = Vec::new();
    let rpm = [&b"var/lib/rpm"[..], b"usr/lib/sysimage/rpm"].iter().any(|path| !tree.list(path).is_empty());
    if rpm {
        notes.push("there is a package database of rpm, which is not read: its packages are not in the SBOM");
    } else if packages.is_empty() {
        notes.push("there is no package database of dpkg or apk: the SBOM lists no packages");
    }
    Ok(Found { packages, distribution: distribution(tree)?, notes })
}

fn deb(fields: BTreeMap<&str, &str>) -> Option<Package> {
    // Removed packages stay with their configuration. Distroless has no status.
    if fields.get("Status").is_some_and(|status| !status.ends_with(" installed")) {
        return None;
    }
    let field = |name: &str| fields.get(name).map(|value| (*value).to_owned());
    // "glibc (2.36-9)" when the versions differ.
    let source = fields.get("Source").and_then(|source| source.split(' ').next()).map(str::to_owned);
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture").unwrap_or_else(|| "all".to_owned()),
        kind: Kind::Deb,
        source,
        maintainer: field("Maintainer"),
        license: None,
    })
}

fn apk(fields: BTreeMap<&str, &str>) -> Option<Package> {
    let field = |name: &str| fields.get(name).map(|value| (*value).to_owned());
    let name = field("P")?;
    Some(Package {
        version: field("V")?,
        architecture: field("A").unwrap_or_else(|| "noarch".to_owned()),
        kind: Kind::Apk,
        source: field("o").filter(|origin| *origin != name),
        maintainer: field("m"),
        license: field("L"),
        name,
    })
}

/// Records between empty lines; the first line of each field. Of apk's
/// fields, those of files come after those of the package, with other letters.
fn records<'a>(text: &'a str, separator: &'a str) -> impl Iterator<Item = BTreeMap<&'a str, &'a str>> {
    text.split("\n\n").map(move |record| {
        let mut fields = BTreeMap::new();
        for line in record.lines().filter(|line| !line.starts_with([' ', '\t'])) {
            if let Some((name, value)) = line.split_once(separator) {
                fields.entry(name).or_insert(value.trim());
            }
        }
        fields
    })
}

fn distribution(tree: &Tree) -> io::Result<Option<Distribution>> {
    // The first is a symbolic link to the second, or a file.
    for path in [&b"etc/os-release"[..], b"usr/lib/os-release"] {
        let Some(text) = text(tree, path)? else { continue };
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(line.trim_matches(['"', '\'']).to_owned())
        };
        if let Some(id) = value("ID") {
            return Ok(Some(Distribution { id, version: value("VERSION_ID") }));
        }
    }
    Ok(None)
}

fn text(tree: &Tree, path: &[u8]) -> io::Result<Option<String>> {
    let content = tree.read(path, MAX_DATABASE)?;
    let text = |content: Vec<u8>| {
        String::from_utf8(content)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    };
    Ok(content.map(text))
}

fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_packages_are_those_that_are_installed() {
        let text = "Package: libc6\nStatus: install ok installed\nMaintainer: A <a@b>\nArchitecture: amd64\n\
                    Source: glibc (2.36-9)\nVersion: 2.36-9+deb12u4\nDescription: x\n Version: 9\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n";
        let packages: Vec<_> = records(text, ": ").filter_map(deb).collect();
        let [libc] = packages.as_slice() else { panic!("{packages:?}") };
        let distribution = Distribution { id: "debian".to_owned(), version: Some("12".to_owned()) };
        assert_eq!(
            libc.purl(Some(&distribution)),
            "pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12&upstream=glibc"
        );
        assert_eq!(libc.maintainer.as_deref(), Some("A <a@b>"));
    }

    #[test]
    fn alpine_packages_keep_their_own_fields() {
        let text =
            "C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\no:musl\nm:N <n@o>\nF:lib\nR:ld.so\na:0:0:755\n\n";
        let packages: Vec<_> = records(text, ":").filter_map(apk).collect();
        let [musl] = packages.as_slice() else { panic!("{packages:?}") };
        assert_eq!(musl.purl(None), "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64");
        assert_eq!(musl.license.as_deref(), Some("MIT"));
    }
}
