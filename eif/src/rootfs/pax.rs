//! PAX extended headers: `LENGTH KEY=VALUE\n`, length and all (POSIX.1-2017,
//! pax(1), "pax Extended Header").

use super::sparse::Described;

/// Why an extended header cannot be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum PaxError {
    #[error("record {index} does not fit its length")]
    Record { index: usize },
    #[error("{key} is not a number that is possible there")]
    Number { key: String },
    #[error("{key} is given twice")]
    Twice { key: String },
    #[error("{key} would apply to every entry that follows, which tools do differently")]
    Global { key: String },
}

/// What one extended header changes.
#[derive(Default)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) sparse: Option<Described>,
    /// Names only.
    pub(crate) xattrs: Vec<Vec<u8>>,
}

/// star and GNU tar, then libarchive.
const XATTRS: [&[u8]; 2] = [b"SCHILY.xattr.", b"LIBARCHIVE.xattr."];

pub(crate) fn parse(bytes: &[u8]) -> Result<Records, PaxError> {
    let mut found = Records::default();
    records(bytes, |key, value| {
        let name = || String::from_utf8_lossy(key).into_owned();
        let number = || decimal(value).ok_or_else(|| PaxError::Number { key: name() });
        let is_new = match key {
            b"path" => found.path.replace(value.to_vec()).is_none(),
            b"linkpath" => found.link.replace(value.to_vec()).is_none(),
            b"size" => found.size.replace(number()?).is_none(),
            b"uid" => found.uid.replace(number()?).is_none(),
            b"gid" => found.gid.replace(number()?).is_none(),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    let sparse = found.sparse.get_or_insert_default();
                    sparse.record(key, value).ok_or_else(|| PaxError::Number { key: name() })?;
                } else if let Some(name) = XATTRS.iter().find_map(|prefix| key.strip_prefix(*prefix)) {
                    found.xattrs.push(name.to_vec());
                }
                true
            }
        };
        if is_new { Ok(()) } else { Err(PaxError::Twice { key: name() }) }
    })?;
    Ok(found)
}

/// A global header may say what it likes, as long as no entry is changed.
pub(crate) fn check_global(bytes: &[u8]) -> Result<(), PaxError> {
    records(bytes, |key, _| {
        let changes = matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid")
            || key.starts_with(b"GNU.sparse.")
            || XATTRS.iter().any(|prefix| key.starts_with(prefix));
        if changes {
            return Err(PaxError::Global { key: String::from_utf8_lossy(key).into_owned() });
        }
        Ok(())
    })
}

fn records(
    mut bytes: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), PaxError>,
) -> Result<(), PaxError> {
    let mut index = 0;
    while !bytes.is_empty() {
        let (key, value, rest) = record(bytes).ok_or(PaxError::Record { index })?;
        each(key, value)?;
        bytes = rest;
        index += 1;
    }
    Ok(())
}

/// Key, value, and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(21).position(|&byte| byte == b' ')?;
    let len = usize::try_from(decimal(&bytes[..space])?).ok()?;
    if len <= space + 1 || len > bytes.len() {
        return None;
    }
    let (content, newline) = bytes[space + 1..len].split_at(len - space - 2);
    let equals = content.iter().position(|&byte| byte == b'=')?;
    (newline == b"\n" && equals > 0).then(|| (&content[..equals], &content[equals + 1..], &bytes[len..]))
}

/// Digits only.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}
