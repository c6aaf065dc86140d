//! Extended attributes. newc has no room for them, so none reaches the enclave;
//! those that mean something are told, by file.
//!
//! | attribute | what is lost |
//! |---|---|
//! | `security.capability` | nothing: the agent sets no_new_privs, under which Linux ignores it |
//! | `system.posix_acl_*` | rights of further users; owner, group and mode are kept |
//! | `user.*` | what programs have noted there |
//!
//! Labels of security modules and marks of overlay file systems belong to the
//! machine where they were made, and are passed over.

use std::fmt;

/// Files that a message names; the others are counted.
const NAMED: usize = 5;

/// What is left out, of the entries seen so far.
#[derive(Default)]
pub(crate) struct LeftOut {
    capabilities: Paths,
    access_lists: Paths,
    user: Paths,
}

#[derive(Default)]
struct Paths {
    count: u64,
    first: Vec<String>,
}

impl LeftOut {
    /// Takes note of the attributes `names` of the entry `path`.
    pub(crate) fn note<'a>(&mut self, path: &[u8], names: impl Iterator<Item = &'a [u8]>) {
        // An entry with a default list as well has one list.
        let mut seen = [false; 3];
        for name in names {
            let (paths, seen) = match name {
                b"security.capability" => (&mut self.capabilities, &mut seen[0]),
                b"system.posix_acl_access" | b"system.posix_acl_default" => {
                    (&mut self.access_lists, &mut seen[1])
                }
                name if name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") => {
                    (&mut self.user, &mut seen[2])
                }
                _ => continue,
            };
            if !std::mem::replace(seen, true) {
                paths.add(path);
            }
        }
    }

    /// One sentence for each kind.
    pub(crate) fn notes(&self) -> Vec<String> {
        let kinds = [
            (
                &self.capabilities,
                "capabilities",
                "programs in an enclave gain no rights by being started, capabilities of files have no effect there",
            ),
            (
                &self.access_lists,
                "access control lists",
                "owner, group and mode are kept, rights of others are not",
            ),
            (&self.user, "user attributes", "programs will not find them"),
        ];
        let kinds = kinds.iter().filter(|(paths, ..)| paths.count > 0);
        kinds
            .map(|(paths, what, effect)| {
                format!("{what} of {paths} are left out, a ramdisk has none: {effect}")
            })
            .collect()
    }
}

impl Paths {
    fn add(&mut self, path: &[u8]) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(String::from_utf8_lossy(path).into_owned());
        }
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.first[0])?;
        self.first[1..].iter().try_for_each(|path| write!(f, ", {path:?}"))?;
        match self.count - self.first.len() as u64 {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
