//! Who the workload is: `user`, `user:group`, `uid`, `uid:gid`, looked up as
//! container runtimes do, in the workload's own /etc/passwd and /etc/group.

use std::fs;
use std::io;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups; none when the settings name a group.
    pub(super) groups: Vec<u32>,
    /// `/` for a user without an entry.
    pub(super) home: String,
}

/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// A name without an entry.
    #[error("user {user:?} is not in the image's /etc/passwd")]
    NoUser { user: String },
    /// A name without an entry.
    #[error("group {group:?} is not in the image's /etc/group")]
    NoGroup { group: String },
    /// The file is there and cannot be read.
    #[error("cannot read {path}")]
    Unreadable { path: &'static str, source: io::Error },
}

impl Identity {
    /// Looks `user` up in the files below `/`, which is the workload's root by now.
    pub(super) fn resolve(user: &str) -> Result<Identity, IdentityError> {
        Identity::look_up(user, &read("/etc/passwd")?, &read("/etc/group")?)
    }

    fn look_up(user: &str, passwd: &str, group: &str) -> Result<Identity, IdentityError> {
        let (user, group_wanted) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (user, None),
        };
        let entry = users(passwd).find(|entry| entry.name == user || Some(entry.uid) == number(user));
        let (uid, own_gid, home) = match (&entry, number(user)) {
            (Some(entry), _) => (entry.uid, entry.gid, entry.home),
            (None, Some(uid)) => (uid, 0, ""),
            (None, None) => return Err(IdentityError::NoUser { user: user.to_owned() }),
        };
        let gid = match group_wanted {
            None => own_gid,
            Some(wanted) => find_group(wanted, group)?,
        };
        let groups = match (&entry, group_wanted) {
            (Some(entry), None) => memberships(entry.name, group),
            _ => Vec::new(),
        };
        let home = if home.is_empty() { "/" } else { home };
        Ok(Identity { uid, gid, groups, home: home.to_owned() })
    }
}

/// An image without the file has no names, only numbers.
fn read(path: &'static str) -> Result<String, IdentityError> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(IdentityError::Unreadable { path, source }),
    }
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// `name:password:uid:gid:comment:home:shell`. Lines that are not so are skipped. Source: passwd(5).
fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let &[name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
        Some(User { name, uid: number(uid)?, gid: number(gid)?, home })
    })
}

/// `name:password:gid:member,member`. Source: group(5).
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let &[name, _, gid, members, ..] = fields.as_slice() else { return None };
        Some((name, number(gid)?, members))
    })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, IdentityError> {
    groups(group)
        .find(|(name, _, _)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| number(wanted))
        .ok_or_else(|| IdentityError::NoGroup { group: wanted.to_owned() })
}

fn memberships(name: &str, group: &str) -> Vec<u32> {
    groups(group)
        .filter(|(_, _, members)| members.split(',').any(|member| member == name))
        .map(|(_, gid, _)| gid)
        .collect()
}

/// Digits only: `+5` is a name, and (u32)-1 means "unchanged" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken line\napp:x:1000:1001:App:/home/app:/bin/false\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\naudio:x:29:alice,app\nvideo:x:44:app\nothers:x:50:apple\n";

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn users_are_found_as_container_runtimes_find_them() {
        for (user, expected) in [
            ("0:0", identity(0, 0, &[], "/root")),
            ("app", identity(1000, 1001, &[29, 44], "/home/app")),
            ("1000", identity(1000, 1001, &[29, 44], "/home/app")),
            ("app:", identity(1000, 1001, &[29, 44], "/home/app")),
            ("app:video", identity(1000, 44, &[], "/home/app")),
            ("app:7", identity(1000, 7, &[], "/home/app")),
            ("4711", identity(4711, 0, &[], "/")),
            ("4711:audio", identity(4711, 29, &[], "/")),
        ] {
            assert_eq!(Identity::look_up(user, PASSWD, GROUP).unwrap(), expected, "{user}");
        }
    }

    #[test]
    fn names_without_an_entry_are_refused() {
        for (user, message) in [
            ("nobody", "user \"nobody\""),
            ("", "user \"\""),
            ("+5", "user \"+5\""),
            ("4294967295", "user \"4294967295\""),
            ("app:wheel", "group \"wheel\""),
        ] {
            let error = Identity::look_up(user, PASSWD, GROUP).unwrap_err().to_string();
            assert!(error.contains(message), "{user}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_file_panics(user in ".{0,20}", passwd in "[a-z0-9:\n,]{0,200}", group in "[a-z0-9:\n,]{0,200}") {
            let _ = Identity::look_up(&user, &passwd, &group);
        }
    }
}
