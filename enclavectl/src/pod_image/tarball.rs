//! A tar archive whose bytes are known before they are written: times are 0,
//! everything belongs to root. ustar, with GNU's base 256 for large sizes.

use std::{
    fs::{self, File, Permissions},
    io::{self, Cursor, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use eif::rootfs::Digest;

const BLOCK: u64 = 512;
/// What 11 octal digits can say.
const OCTAL_LIMIT: u64 = 1 << 33;

#[derive(Default)]
pub(crate) struct Tarball {
    members: Vec<Member>,
}

struct Member {
    name: String,
    mode: u32,
    header: Vec<u8>,
    content: Content,
}

/// What a member holds.
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// All of a file, and its size.
    File(File, u64),
    Tarball(Tarball),
}

impl Content {
    pub(crate) fn of_file(file: &File) -> io::Result<Content> {
        Ok(Content::File(file.try_clone()?, file.metadata()?.len()))
    }

    fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, len) => *len,
            Content::Tarball(tarball) => tarball.len(),
        }
    }

    fn try_clone(&self) -> io::Result<Content> {
        Ok(match self {
            Content::Bytes(bytes) => Content::Bytes(bytes.clone()),
            Content::File(file, len) => Content::File(file.try_clone()?, *len),
            Content::Tarball(tarball) => Content::Tarball(tarball.try_clone()?),
        })
    }

    fn reader(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Content::Bytes(bytes) => Box::new(Cursor::new(bytes.clone())),
            Content::File(file, len) => Box::new(Whole { file: file.try_clone()?, position: 0, len: *len }),
            Content::Tarball(tarball) => tarball.reader()?,
        })
    }

    fn write(&self, output: &mut File) -> io::Result<()> {
        match self {
            Content::Bytes(bytes) => output.write_all(bytes),
            Content::File(file, len) => {
                let mut file = file;
                file.seek(SeekFrom::Start(0))?;
                if io::copy(&mut file.take(*len), output)? < *len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(())
            }
            Content::Tarball(tarball) => tarball.write(output),
        }
    }
}

impl Tarball {
    /// `name` ends in a slash.
    pub(crate) fn directory(&mut self, name: &str) {
        self.push(b'5', name, 0o755, Content::Bytes(Vec::new()));
    }

    /// `name` has at most 100 bytes.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: Content) {
        self.push(b'0', name, mode, content);
    }

    fn push(&mut self, kind: u8, name: &str, mode: u32, content: Content) {
        let header = header(kind, name, mode, content.len());
        self.members.push(Member { name: name.to_owned(), mode, header, content });
    }

    pub(crate) fn len(&self) -> u64 {
        let members = self.members.iter().map(|member| BLOCK + member.content.len().next_multiple_of(BLOCK));
        members.sum::<u64>() + 2 * BLOCK
    }

    pub(crate) fn try_clone(&self) -> io::Result<Tarball> {
        let members = self.members.iter().map(|member| {
            let (name, header) = (member.name.clone(), member.header.clone());
            Ok(Member { name, mode: member.mode, header, content: member.content.try_clone()? })
        });
        Ok(Tarball { members: members.collect::<io::Result<_>>()? })
    }

    /// Digest of the bytes that [`Tarball::write`] writes.
    pub(crate) fn digest(&self) -> io::Result<Digest> {
        Digest::sha256_of(self.reader()?)
    }

    /// The bytes that [`Tarball::write`] writes.
    pub(crate) fn reader(&self) -> io::Result<Box<dyn Read + Send>> {
        let mut stream: Box<dyn Read + Send> = Box::new(io::empty());
        for Member { header, content, .. } in &self.members {
            let padding = io::repeat(0).take(padding(content.len()));
            let member = Cursor::new(header.clone()).chain(content.reader()?).chain(padding);
            stream = Box::new(stream.chain(member));
        }
        Ok(Box::new(stream.chain(io::repeat(0).take(2 * BLOCK))))
    }

    /// Writes the members as files below `root`.
    pub(crate) fn unpack(&self, root: &Path) -> io::Result<()> {
        for Member { name, mode, content, .. } in &self.members {
            let path = root.join(name);
            if name.ends_with('/') {
                fs::create_dir(&path)?;
            } else {
                content.write(&mut File::create_new(&path)?)?;
            }
            fs::set_permissions(&path, Permissions::from_mode(*mode))?;
        }
        Ok(())
    }

    pub(crate) fn write(&self, output: &mut File) -> io::Result<()> {
        for Member { header, content, .. } in &self.members {
            output.write_all(header)?;
            content.write(output)?;
            output.write_all(&[0; BLOCK as usize][..padding(content.len()) as usize])?;
        }
        output.write_all(&[0; 2 * BLOCK as usize])
    }
}

/// All of a file; one that has become shorter is an error, not the end.
struct Whole {
    file: File,
    position: u64,
    len: u64,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.len - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

fn padding(len: u64) -> u64 {
    len.next_multiple_of(BLOCK) - len
}

fn header(kind: u8, name: &str, mode: u32, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let len = name.len().min(100);
    block[..len].copy_from_slice(&name.as_bytes()[..len]);
    let mut octal = |at: usize, width: usize, value: u64| {
        block[at..at + width].copy_from_slice(format!("{value:0width$o}").as_bytes());
    };
    octal(100, 7, u64::from(mode));
    octal(108, 7, 0);
    octal(116, 7, 0);
    octal(136, 11, 0);
    if size < OCTAL_LIMIT {
        octal(124, 11, size);
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
