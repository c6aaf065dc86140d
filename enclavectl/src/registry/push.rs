//! Sends an image: its layer and configuration, then the manifest, so that the
//! tag appears when everything is there, or not at all.

use std::io::{self, Read};

use eif::rootfs::Digest;
use hyper::{body::Bytes, header::HeaderValue};
use oci_client::{Reference, errors::OciDistributionError, manifest::OCI_IMAGE_MEDIA_TYPE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Registry, RegistryError, RegistryOperation, persistently};

/// Of the layer, read at once.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the network.
const PIECES: usize = 4;

/// A registry that will take an image.
pub(crate) struct Push(Registry);

/// What is sent.
pub(crate) struct PushedImage<'a> {
    pub(crate) manifest: &'a [u8],
    pub(crate) digest: &'a Digest,
    pub(crate) config: &'a [u8],
    pub(crate) config_digest: &'a Digest,
    pub(crate) layer_digest: &'a Digest,
    pub(crate) layer_len: u64,
}

type Piece = Result<Bytes, OciDistributionError>;

impl Push {
    /// Finds out that the registry is there and knows us, before anything is built.
    pub(crate) fn open(reference: &Reference, plain_http: bool) -> Result<Push, RegistryError> {
        let registry = Registry::connect(reference, RegistryOperation::Push, plain_http)?;
        let asked =
            registry.runtime.block_on(registry.client.fetch_manifest_digest(reference, &registry.auth));
        match asked.map_err(|error| registry.error(error)) {
            // New, as a rule.
            Ok(_) | Err(RegistryError::NotFound { .. }) => Ok(Push(registry)),
            Err(error) => Err(error),
        }
    }

    /// Sends the image; `layer` gives its layer from the beginning, as often as needed.
    pub(crate) fn send(
        &self,
        image: &PushedImage<'_>,
        layer: &dyn Fn() -> io::Result<Box<dyn Read + Send>>,
    ) -> Result<(), RegistryError> {
        self.0.runtime.block_on(async {
            persistently(async || self.layer(image, layer).await).await?;
            persistently(async || self.config(image).await).await?;
            persistently(async || self.manifest(image).await).await
        })
    }

    async fn layer(
        &self,
        image: &PushedImage<'_>,
        layer: &dyn Fn() -> io::Result<Box<dyn Read + Send>>,
    ) -> Result<(), RegistryError> {
        let Registry { client, reference, .. } = &self.0;
        let digest = image.layer_digest.to_string();
        if self.is_there(&digest).await? {
            return Ok(());
        }
        let name = || format!("{digest} to {}", reference.whole());
        let read_error = |source| RegistryError::File { doing: "read the layer", name: name(), source };
        let reader = layer().map_err(read_error)?;
        let (pieces, receiver) = mpsc::channel(PIECES);
        let reading = tokio::task::spawn_blocking(move || read(reader, &pieces));
        let stream = ReceiverStream::new(receiver);
        let pushed = client.push_blob_stream(reference, stream, &digest, Some(image.layer_len)).await;
        // The stream is gone, and so the reader ends.
        reading.await.map_err(|error| RegistryError::Start(error.into()))?.map_err(read_error)?;
        pushed.map(drop).map_err(|error| self.0.error(error))
    }

    async fn config(&self, image: &PushedImage<'_>) -> Result<(), RegistryError> {
        let digest = image.config_digest.to_string();
        if self.is_there(&digest).await? {
            return Ok(());
        }
        let pushed = self.0.client.push_blob(&self.0.reference, image.config.to_vec(), &digest).await;
        pushed.map(drop).map_err(|error| self.0.error(error))
    }

    async fn is_there(&self, digest: &str) -> Result<bool, RegistryError> {
        let asked = self.0.client.blob_exists(&self.0.reference, digest).await;
        asked.map_err(|error| self.0.error(error))
    }

    async fn manifest(&self, image: &PushedImage<'_>) -> Result<(), RegistryError> {
        let Registry { client, reference, auth, .. } = &self.0;
        let media_type = HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
        let pushed = client.push_manifest_raw(reference, image.manifest.to_vec(), media_type).await;
        pushed.map_err(|error| self.0.error(error))?;
        let actual = client.fetch_manifest_digest(reference, auth).await;
        let actual = actual.map_err(|error| self.0.error(error))?;
        let expected = image.digest.to_string();
        if actual == expected {
            return Ok(());
        }
        Err(RegistryError::WrongDigest {
            registry: reference.resolve_registry().to_owned(),
            expected,
            actual,
        })
    }
}

/// Ends early, without an error, when nobody takes the pieces any more.
fn read(mut reader: Box<dyn Read + Send>, pieces: &mpsc::Sender<Piece>) -> io::Result<()> {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        if reader.by_ref().take(PIECE as u64).read_to_end(&mut piece)? == 0 {
            return Ok(());
        }
        if pieces.blocking_send(Ok(piece.into())).is_err() {
            return Ok(());
        }
    }
}
