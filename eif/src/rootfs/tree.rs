//! A root filesystem in memory: names and metadata, but no content.
//!
//! ```text
//! Name  ─ parent, text, layer ─┬─▶ Inode ─ mode, owner ─▶ Data ─▶ directory
//! Name  ───────────────────────┘ (hard links share one)       └─▶ file, offset
//! ```
//! About 90 bytes a file besides its name, because a build must not need more
//! memory for a larger image. Removed names stay in the arrays: how many there
//! can be is bounded by the entries that a source may have.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::PathBuf,
};

use hashbrown::HashTable;

use super::attributes::LeftOut;
use crate::cpio::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};

/// What Linux unpacks (PATH_MAX with the NUL is 4096), less the directories
/// that the root filesystem lies in.
pub(crate) const MAX_PATH: usize = 4095 - "workload/rootfs/".len();
/// NAME_MAX of Linux.
const MAX_NAME: usize = 255;
/// Mode of directories that no layer describes.
const IMPLIED: u32 = S_IFDIR | 0o755;

/// Why a name has no place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum Misplaced {
    #[error("its path goes through the symbolic link {through:?}, which tools follow differently", through = String::from_utf8_lossy(.name.as_bytes()))]
    ThroughLink { name: Component },
    #[error("its path goes through {through:?}, which is not a directory", through = String::from_utf8_lossy(.name.as_bytes()))]
    ThroughFile { name: Component },
    #[error("its path holds \"..\"")]
    DotDot,
    #[error("its path holds a NUL byte")]
    Nul,
    #[error("its path has {len} bytes, at most {MAX_PATH} are unpacked by Linux")]
    LongPath { len: usize },
    #[error("its path has a name of {len} bytes, at most {MAX_NAME} are possible")]
    LongName { len: usize },
    #[error("the tree is full")]
    Full,
}

/// The start of a name, for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    bytes: [u8; 32],
    len: u8,
}

impl Component {
    fn new(name: &[u8]) -> Component {
        let len = name.len().min(32);
        let mut bytes = [0; 32];
        bytes[..len].copy_from_slice(&name[..len]);
        Component { bytes, len: len as u8 }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Which name. Stays the same while the tree grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NameId(u32);

const ROOT: NameId = NameId(0);
const NONE: u32 = u32::MAX;

struct Name {
    parent: u32,
    /// [`NONE`] once it was removed.
    inode: u32,
    /// Where its text starts in [`Tree::texts`].
    text: u32,
    first_child: u32,
    next_sibling: u32,
    /// The layer that described it last; lower for what was only implied.
    layer: u16,
    len: u8,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode {
    /// Type and permissions as in stat(2).
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) data: Data,
}

/// Where content lies: a file's, or a symbolic link's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    None,
    Device {
        major: u32,
        minor: u32,
    },
    /// Under its own name in the directory that was scanned.
    Named {
        size: u32,
    },
    /// In file `origin` from `offset`.
    Stored {
        origin: u16,
        size: u32,
        offset: u64,
    },
}

impl Data {
    pub(crate) fn size(self) -> u32 {
        match self {
            Data::Named { size } | Data::Stored { size, .. } => size,
            Data::None | Data::Device { .. } => 0,
        }
    }
}

/// One live name, as [`Tree::visit`] shows it.
pub(crate) struct Visited<'a> {
    /// Relative to the root, without a leading slash.
    pub(crate) path: &'a [u8],
    pub(crate) inode: &'a Inode,
    /// Tells which names are one file.
    pub(crate) number: u32,
}

/// A root filesystem.
pub struct Tree {
    names: Vec<Name>,
    inodes: Vec<Inode>,
    texts: Vec<u8>,
    /// Live names by parent and text.
    index: HashTable<u32>,
    hasher: RandomState,
    /// Where [`Data::Named`] is, and the files of [`Data::Stored`].
    pub(crate) directory: PathBuf,
    pub(crate) origins: Vec<File>,
    pub(crate) left_out: LeftOut,
}

impl Default for Tree {
    fn default() -> Tree {
        let root =
            Name { parent: 0, inode: 0, text: 0, first_child: NONE, next_sibling: NONE, layer: 0, len: 0 };
        Tree {
            names: vec![root],
            inodes: vec![Inode { mode: IMPLIED, uid: 0, gid: 0, data: Data::None }],
            texts: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            directory: PathBuf::new(),
            origins: Vec::new(),
            left_out: LeftOut::default(),
        }
    }
}

impl Tree {
    /// Live entries, the root itself not counted.
    pub fn entries(&self) -> usize {
        self.index.len()
    }

    /// What could not be kept, in words for a person.
    pub fn notes(&self) -> Vec<String> {
        self.left_out.notes()
    }

    /// Bytes of content that a ramdisk of this tree carries.
    pub fn bytes(&self) -> u64 {
        let counted: u64 = self.link_counts().iter().zip(&self.inodes).fold(0, |sum, (&links, inode)| {
            // Names of one symbolic link each carry its target.
            let copies = if inode.mode & S_IFMT == S_IFREG { links.min(1) } else { links };
            sum + u64::from(inode.data.size()) * u64::from(copies)
        });
        counted
    }

    /// The content of the regular file at `path`; nothing where there is none,
    /// or only through a symbolic link. More than `limit` bytes are an error.
    pub fn read(&self, path: &[u8], limit: u32) -> io::Result<Option<Vec<u8>>> {
        let Ok(Some(name)) = self.find(path) else { return Ok(None) };
        let inode = self.inode(name);
        let size = inode.data.size();
        if inode.mode & S_IFMT != S_IFREG {
            return Ok(None);
        }
        if size > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut content = vec![0; size as usize];
        match inode.data {
            Data::Named { .. } => {
                let path = self.directory.join(OsStr::from_bytes(path));
                File::open(path)?.read_exact_at(&mut content, 0)?;
            }
            Data::Stored { origin, offset, .. } => {
                self.origins[usize::from(origin)].read_exact_at(&mut content, offset)?;
            }
            Data::None | Data::Device { .. } => {}
        }
        Ok(Some(content))
    }

    /// The names in the directory at `path`, sorted; none where there is none,
    /// or only through a symbolic link.
    pub fn list(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let Ok(Some(directory)) = self.find_directory(path) else { return Vec::new() };
        let mut names: Vec<_> = self.children(directory).map(|name| self.text(name).to_vec()).collect();
        names.sort();
        names
    }

    /// How many live names each inode has.
    pub(crate) fn link_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.inodes.len()];
        for name in self.names.iter().filter(|name| name.inode != NONE) {
            counts[name.inode as usize] += 1;
        }
        counts
    }

    pub(crate) fn root(&self) -> &Inode {
        &self.inodes[0]
    }

    /// Shows every live name but the root, paths ascending bytewise.
    pub(crate) fn visit<E>(&self, visit: &mut dyn FnMut(Visited<'_>) -> Result<(), E>) -> Result<(), E> {
        self.visit_below(ROOT, &mut Vec::new(), visit)
    }

    /// Recurses as deep as a path has components: at most half of [`MAX_PATH`].
    fn visit_below<E>(
        &self,
        directory: NameId,
        path: &mut Vec<u8>,
        visit: &mut dyn FnMut(Visited<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        // "a-b" sorts between "a" and "a/b": a directory's content has a place of its own.
        let mut steps: Vec<(u32, bool)> = Vec::new();
        for child in self.children(directory) {
            steps.push((child, false));
            if self.names[child as usize].first_child != NONE {
                steps.push((child, true));
            }
        }
        let key = |&(name, below): &(u32, bool)| self.text(name).iter().copied().chain(below.then_some(b'/'));
        steps.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        let len = path.len();
        for (name, below) in steps {
            path.extend_from_slice(self.text(name));
            let number = self.names[name as usize].inode;
            if below {
                path.push(b'/');
                self.visit_below(NameId(name), path, visit)?;
            } else {
                visit(Visited { path, inode: &self.inodes[number as usize], number })?;
            }
            path.truncate(len);
        }
        Ok(())
    }

    /// Looks `path` up. Symbolic links on the way are not followed.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Option<NameId>, Misplaced> {
        let mut at = ROOT;
        for text in components(path)? {
            self.enter(at)?;
            match self.child(at, text) {
                Some(child) => at = child,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Looks a directory up. What is there but no directory is an error.
    pub(crate) fn find_directory(&self, path: &[u8]) -> Result<Option<NameId>, Misplaced> {
        let found = self.find(path)?;
        found.map_or(Ok(()), |found| self.enter(found))?;
        Ok(found)
    }

    /// Finds the directory `path`, making what is missing on the way.
    pub(crate) fn make_directories(&mut self, path: &[u8], layer: u16) -> Result<NameId, Misplaced> {
        let mut at = ROOT;
        for text in components(path)? {
            self.enter(at)?;
            at = match self.child(at, text) {
                Some(child) => child,
                None => {
                    self.add(at, text, Inode { mode: IMPLIED, uid: 0, gid: 0, data: Data::None }, layer)?
                }
            };
        }
        self.enter(at)?;
        Ok(at)
    }

    /// Puts `inode` at `text` in `directory`. A directory over a directory
    /// changes its metadata; everything else takes the place of what was there.
    pub(crate) fn put(
        &mut self,
        directory: NameId,
        text: &[u8],
        inode: Inode,
        layer: u16,
    ) -> Result<(), Misplaced> {
        let Some(existing) = self.child(directory, text) else {
            return self.add(directory, text, inode, layer).map(drop);
        };
        let is_directory = |inode: &Inode| inode.mode & S_IFMT == S_IFDIR;
        if is_directory(&inode) && is_directory(self.inode(existing)) {
            let number = self.names[existing.0 as usize].inode;
            self.inodes[number as usize] = inode;
        } else {
            self.remove_below(existing, None);
            let number = self.new_inode(inode)?;
            self.names[existing.0 as usize].inode = number;
        }
        self.names[existing.0 as usize].layer = layer;
        Ok(())
    }

    /// Gives the root directory's mode and owner.
    pub(crate) fn describe_root(&mut self, mode: u32, uid: u32, gid: u32) {
        self.inodes[0] = Inode { mode: S_IFDIR | mode & 0o7777, uid, gid, data: Data::None };
    }

    /// Makes `text` in `directory` another name of `target`, which must not be
    /// in the place that is taken.
    pub(crate) fn link(
        &mut self,
        directory: NameId,
        text: &[u8],
        target: NameId,
        layer: u16,
    ) -> Result<(), Misplaced> {
        let number = self.names[target.0 as usize].inode;
        if let Some(existing) = self.child(directory, text) {
            self.remove_below(existing, None);
            self.names[existing.0 as usize].inode = number;
            self.names[existing.0 as usize].layer = layer;
            return Ok(());
        }
        let inode = self.inodes[number as usize];
        let name = self.add(directory, text, inode, layer)?;
        // The copy that `add` made was the last: take it back.
        self.inodes.pop();
        self.names[name.0 as usize].inode = number;
        Ok(())
    }

    /// Removes what layers before `layer` have put at `text` in `directory`.
    pub(crate) fn whiteout(&mut self, directory: NameId, text: &[u8], layer: u16) {
        let Some(name) = self.child(directory, text) else { return };
        let survives = self.remove_below(name, Some(layer));
        if self.names[name.0 as usize].layer >= layer {
            return;
        }
        if survives {
            // Gone, and made again for what this layer has put in it.
            let number = self.names[name.0 as usize].inode;
            self.inodes[number as usize] = Inode { mode: IMPLIED, uid: 0, gid: 0, data: Data::None };
        } else {
            self.remove(name);
        }
    }

    /// Removes everything that layers before `layer` have put in `directory`.
    pub(crate) fn make_opaque(&mut self, directory: NameId, layer: u16) {
        self.remove_below(directory, Some(layer));
    }

    /// Whether `name` is still in the tree.
    pub(crate) fn is_live(&self, name: NameId) -> bool {
        self.names[name.0 as usize].inode != NONE
    }

    pub(crate) fn inode(&self, name: NameId) -> &Inode {
        &self.inodes[self.names[name.0 as usize].inode as usize]
    }

    /// Removes what is below `directory`, or only what is older than `keep`.
    /// Tells whether anything is left.
    fn remove_below(&mut self, directory: NameId, keep: Option<u16>) -> bool {
        let mut left = false;
        let mut next = std::mem::replace(&mut self.names[directory.0 as usize].first_child, NONE);
        while next != NONE {
            let child = next;
            next = self.names[child as usize].next_sibling;
            if self.names[child as usize].inode == NONE {
                continue;
            }
            let content_left = self.remove_below(NameId(child), keep);
            if content_left || keep.is_some_and(|keep| self.names[child as usize].layer >= keep) {
                left = true;
                let first = std::mem::replace(&mut self.names[directory.0 as usize].first_child, child);
                self.names[child as usize].next_sibling = first;
            } else {
                self.remove(NameId(child));
            }
        }
        left
    }

    fn remove(&mut self, name: NameId) {
        let Name { parent, .. } = self.names[name.0 as usize];
        let hash = self.hash(parent, self.text(name.0));
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == name.0) {
            entry.remove();
        }
        self.names[name.0 as usize].inode = NONE;
    }

    fn add(&mut self, directory: NameId, text: &[u8], inode: Inode, layer: u16) -> Result<NameId, Misplaced> {
        let id = u32::try_from(self.names.len()).ok().filter(|&id| id != NONE).ok_or(Misplaced::Full)?;
        let start = u32::try_from(self.texts.len()).map_err(|_| Misplaced::Full)?;
        let len = u8::try_from(text.len()).map_err(|_| Misplaced::LongName { len: text.len() })?;
        let number = self.new_inode(inode)?;
        self.texts.extend_from_slice(text);
        let next_sibling = std::mem::replace(&mut self.names[directory.0 as usize].first_child, id);
        self.names.push(Name {
            parent: directory.0,
            inode: number,
            text: start,
            first_child: NONE,
            next_sibling,
            layer,
            len,
        });
        let (names, texts, hasher) = (&self.names, &self.texts, &self.hasher);
        let rehash = |&other: &u32| {
            let name = &names[other as usize];
            hasher.hash_one((name.parent, &texts[name.text as usize..][..usize::from(name.len)]))
        };
        self.index.insert_unique(hasher.hash_one((directory.0, text)), id, rehash);
        Ok(NameId(id))
    }

    fn new_inode(&mut self, inode: Inode) -> Result<u32, Misplaced> {
        let number = u32::try_from(self.inodes.len()).ok().filter(|&id| id != NONE).ok_or(Misplaced::Full)?;
        self.inodes.push(inode);
        Ok(number)
    }

    fn child(&self, directory: NameId, text: &[u8]) -> Option<NameId> {
        let is_it =
            |&other: &u32| self.names[other as usize].parent == directory.0 && self.text(other) == text;
        self.index.find(self.hash(directory.0, text), is_it).copied().map(NameId)
    }

    fn children(&self, directory: NameId) -> impl Iterator<Item = u32> {
        let first = self.names[directory.0 as usize].first_child;
        std::iter::successors((first != NONE).then_some(first), |&name| {
            let next = self.names[name as usize].next_sibling;
            (next != NONE).then_some(next)
        })
        .filter(|&name| self.names[name as usize].inode != NONE)
    }

    fn enter(&self, name: NameId) -> Result<(), Misplaced> {
        match self.inode(name).mode & S_IFMT {
            S_IFDIR => Ok(()),
            S_IFLNK => Err(Misplaced::ThroughLink { name: Component::new(self.text(name.0)) }),
            _ => Err(Misplaced::ThroughFile { name: Component::new(self.text(name.0)) }),
        }
    }

    fn text(&self, name: u32) -> &[u8] {
        let name = &self.names[name as usize];
        &self.texts[name.text as usize..][..usize::from(name.len)]
    }

    fn hash(&self, parent: u32, text: &[u8]) -> u64 {
        self.hasher.hash_one((parent, text))
    }
}

/// The names that `path` consists of; slashes at its ends, doubled ones and
/// `.` do not count.
pub(crate) fn components(path: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Misplaced> {
    let parts = || path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    if path.contains(&0) {
        return Err(Misplaced::Nul);
    }
    let mut len = 0;
    for part in parts() {
        if part == b".." {
            return Err(Misplaced::DotDot);
        }
        if part.len() > MAX_NAME {
            return Err(Misplaced::LongName { len: part.len() });
        }
        len += part.len() + 1;
    }
    // One slash fewer than names.
    if len > MAX_PATH + 1 {
        return Err(Misplaced::LongPath { len: len - 1 });
    }
    Ok(parts())
}

/// Hard links while names are visited: which number a file got, and whether
/// this name is its last.
pub(crate) struct Links {
    counts: Vec<u32>,
    seen: HashMap<u32, (u32, u32)>,
}

/// What a name is among the names of its file.
pub(crate) struct Place {
    pub(crate) inode: u32,
    pub(crate) links: u32,
    /// The last name of a file carries its data, as newc archives have it.
    pub(crate) carries_data: bool,
}

impl Links {
    pub(crate) fn of(tree: &Tree) -> Links {
        Links { counts: tree.link_counts(), seen: HashMap::new() }
    }

    /// `number` is what the file gets when this is its first name.
    pub(crate) fn place(&mut self, name: &Visited<'_>, number: u32) -> Place {
        let links = self.counts[name.number as usize];
        if links == 1 || name.inode.mode & S_IFMT != S_IFREG {
            return Place { inode: number, links: 1, carries_data: true };
        }
        let (first, seen) = self.seen.entry(name.number).or_insert((number, 0));
        *seen += 1;
        Place { inode: *first, links, carries_data: *seen == links }
    }
}
