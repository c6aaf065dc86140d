//! Fetches an image's documents and blobs, each blob into an unnamed file that
//! grows no further than its manifest says. A transfer that is cut goes on
//! where it ended.

use std::{
    error::Error,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
};

use eif::rootfs::{Blobs, Digest, Wanted};
use oci_client::{
    Client, Reference,
    client::BlobResponse,
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
        OCI_IMAGE_MEDIA_TYPE,
    },
    secrets::RegistryAuth,
};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, LocalSet},
};
use tokio_stream::StreamExt;

use super::{Registry, RegistryError, RegistryOperation, persistently};

const DOCUMENTS: &[&str] = &[
    OCI_IMAGE_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];
/// Blobs on their way at the same time.
const AT_ONCE: usize = 3;

/// What a registry has under a name: an index or a manifest. Its blobs are
/// fetched when they are asked for.
pub(crate) struct Pulled<'a> {
    registry: Registry,
    scratch: &'a Path,
    pub(crate) document: Vec<u8>,
    /// The one that the name states, if it states one.
    pub(crate) pinned: Option<Digest>,
}

impl<'a> Pulled<'a> {
    /// Blobs will go into files in `scratch`.
    pub(crate) fn open(
        reference: &Reference,
        plain_http: bool,
        scratch: &'a Path,
    ) -> Result<Pulled<'a>, RegistryError> {
        let registry = Registry::connect(reference, RegistryOperation::Pull, plain_http)?;
        let document = registry.runtime.block_on(persistently(async || {
            let pulled = registry.client.pull_manifest_raw(reference, &registry.auth, DOCUMENTS).await;
            pulled.map_err(|error| registry.error(error))
        }))?;
        // The reference was parsed with it, by the same rules.
        let pinned = reference.digest().and_then(|digest| digest.parse().ok());
        Ok(Pulled { registry, scratch, document: document.0.to_vec(), pinned })
    }
}

impl Blobs for Pulled<'_> {
    fn fetch(&self, wanted: &[Wanted]) -> Result<Vec<File>, Box<dyn Error + Send + Sync>> {
        let files = wanted.iter().map(|_| tempfile::tempfile_in(self.scratch));
        let files = files.collect::<io::Result<Vec<_>>>()?;
        let transfers = wanted.iter().cloned().zip(files).map(|(wanted, file)| Transfer {
            client: self.registry.client.clone(),
            auth: self.registry.auth.clone(),
            reference: self.registry.reference.clone(),
            wanted,
            file,
            offset: 0,
        });
        Ok(self.registry.runtime.block_on(all(transfers))?)
    }
}

/// The first that fails ends the others: the set is dropped.
async fn all(transfers: impl Iterator<Item = Transfer>) -> Result<Vec<File>, RegistryError> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    let local = LocalSet::new();
    for (at, mut transfer) in transfers.enumerate() {
        let permits = permits.clone();
        let one = async move {
            // The semaphore is never closed.
            let _permit = permits.acquire().await;
            persistently(async || transfer.go_on().await).await?;
            Ok::<_, RegistryError>((at, transfer.file))
        };
        running.spawn_local_on(one, &local);
    }
    let mut done = Vec::new();
    local
        .run_until(async {
            while let Some(ended) = running.join_next().await {
                done.push(ended.map_err(|error| RegistryError::Start(error.into()))??);
            }
            Ok::<_, RegistryError>(())
        })
        .await?;
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, file)| file).collect())
}

/// One blob on its way.
struct Transfer {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
    wanted: Wanted,
    file: File,
    /// Bytes that are there.
    offset: u64,
}

impl Transfer {
    async fn go_on(&mut self) -> Result<(), RegistryError> {
        let digest = self.wanted.digest.to_string();
        if self.wanted.is_manifest {
            let reference = self.reference.clone_with_digest(digest);
            let pulled = self.client.pull_manifest_raw(&reference, &self.auth, DOCUMENTS).await;
            let (document, _) = pulled.map_err(|error| RegistryError::of(error, &reference, &self.auth))?;
            return self.keep(&document);
        }
        let (client, reference) = (&self.client, &self.reference);
        let answer = match self.offset {
            0 => client.pull_blob_stream(reference, digest.as_str()).await.map(BlobResponse::Full),
            offset => client.pull_blob_stream_partial(reference, digest.as_str(), offset, None).await,
        };
        let mut stream = match answer.map_err(|error| RegistryError::of(error, reference, &self.auth))? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                self.offset = 0;
                stream
            }
        };
        self.file.seek(SeekFrom::Start(self.offset)).map_err(|source| self.write_error(source))?;
        while self.offset < self.wanted.size {
            match stream.next().await {
                Some(Ok(bytes)) => self.keep(&bytes)?,
                Some(Err(error)) => return Err(self.interrupted(error)),
                None => return Err(self.interrupted(io::ErrorKind::UnexpectedEof)),
            }
        }
        Ok(())
    }

    /// Written at once, between two pieces: the others wait no longer for a
    /// page cache than for the network.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        self.offset += bytes.len() as u64;
        if self.offset > self.wanted.size {
            return Err(RegistryError::TooLong { name: self.name(), size: self.wanted.size });
        }
        self.file.write_all(bytes).map_err(|source| self.write_error(source))
    }

    fn name(&self) -> String {
        format!("{} of {}", self.wanted.digest, self.reference.whole())
    }

    fn interrupted(&self, error: impl Into<io::Error>) -> RegistryError {
        let error: io::Error = error.into();
        RegistryError::Interrupted { name: self.name(), source: Box::new(error) }
    }

    fn write_error(&self, source: io::Error) -> RegistryError {
        RegistryError::File { doing: "write the temporary file", name: self.name(), source }
    }
}
