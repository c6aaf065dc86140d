//! SHA-256 digests as container images write them, and readers that compare.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use aws_lc_rs::digest::{Context, SHA256, SHA512};

/// `sha256:` or `sha512:` and lower-case hex digits (OCI image specification,
/// descriptor.md). Nothing else can be one, so it is safe in a path.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Sha512,
}

/// Why text is no digest.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a sha256 or sha512 digest")]
pub struct ParseDigestError {
    text: String,
}

impl Digest {
    /// SHA-256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Digest {
        let digest = aws_lc_rs::digest::digest(&SHA256, bytes);
        Digest { algorithm: Algorithm::Sha256, bytes: digest.as_ref().to_vec() }
    }

    /// SHA-256 of what `reader` yields.
    pub fn sha256_of(mut reader: impl Read) -> io::Result<Digest> {
        let mut hashing = Hashing::new(Algorithm::Sha256);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(hashing.finish()),
                Ok(count) => hashing.context.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts another digest by the same algorithm.
    pub(crate) fn again(&self) -> Hashing {
        Hashing::new(self.algorithm)
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The hex digits alone.
    pub fn hex(&self) -> String {
        hex::encode(&self.bytes)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        let error = || ParseDigestError { text: text.chars().take(160).collect() };
        let (algorithm, digits) = text.split_once(':').ok_or_else(error)?;
        let (algorithm, len) = match algorithm {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(error()),
        };
        if digits.len() != len || digits.bytes().any(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error());
        }
        Ok(Digest { algorithm, bytes: hex::decode(digits).map_err(|_| error())? })
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest being computed.
pub(crate) struct Hashing {
    algorithm: Algorithm,
    context: Context,
}

impl Hashing {
    fn new(algorithm: Algorithm) -> Hashing {
        let by = match algorithm {
            Algorithm::Sha256 => &SHA256,
            Algorithm::Sha512 => &SHA512,
        };
        Hashing { algorithm, context: Context::new(by) }
    }

    pub(crate) fn finish(self) -> Digest {
        Digest { algorithm: self.algorithm, bytes: self.context.finish().as_ref().to_vec() }
    }
}

/// Passes bytes on, counts them and, when somebody vouches for them, hashes
/// them.
pub(crate) struct Observed<R> {
    input: R,
    hashing: Option<Hashing>,
    pub(crate) count: u64,
    /// More bytes than this are an error.
    limit: u64,
}

impl<R: Read> Observed<R> {
    pub(crate) fn new(input: R, expected: Option<&Digest>, limit: u64) -> Observed<R> {
        Observed { input, hashing: expected.map(Digest::again), count: 0, limit }
    }

    pub(crate) fn finish(self) -> Option<Digest> {
        self.into_parts().1
    }

    /// The input, and the digest of what was read from it.
    pub(crate) fn into_parts(self) -> (R, Option<Digest>) {
        (self.input, self.hashing.map(Hashing::finish))
    }

    /// Whether more bytes came than were allowed.
    pub(crate) fn over_limit(&self) -> bool {
        self.count > self.limit
    }
}

impl<R: Read> Read for Observed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count += count as u64;
        if self.over_limit() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if let Some(hashing) = &mut self.hashing {
            hashing.context.update(&buffer[..count]);
        }
        Ok(count)
    }
}
