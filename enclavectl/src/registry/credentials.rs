//! Credentials as Docker's configuration has them: in `auths`, or told by a
//! helper program that `credHelpers` or `credsStore` names.

use std::{env, fs, io, path::PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use oci_client::secrets::RegistryAuth;

/// Under this name `docker login` keeps Docker Hub's.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What helpers print for a registry that they do not know.
const NOT_FOUND: &str = "credentials not found";

/// Why the credentials that are configured cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("cannot read Docker's configuration {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot use the credentials for {registry} in {}", .path.display())]
    Unusable { registry: String, path: PathBuf, source: CredentialRetrievalError },
    #[error(
        "the credential for {registry} in {} is an identity token, which is not supported: log in with a user and a password or access token",
        .path.display()
    )]
    IdentityToken { registry: String, path: PathBuf },
}

/// None that are configured is no error: much can be read without.
pub(super) fn of_registry(registry: &str) -> Result<RegistryAuth, CredentialsError> {
    let Some(path) = configuration() else { return Ok(RegistryAuth::Anonymous) };
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RegistryAuth::Anonymous),
        read => read.map_err(|source| CredentialsError::Read { path: path.clone(), source })?,
    };
    let key = match registry {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        other => other,
    };
    match get_credential_from_reader(&text[..], key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Ok(DockerCredential::IdentityToken(_)) => {
            Err(CredentialsError::IdentityToken { registry: registry.to_owned(), path })
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(RegistryAuth::Anonymous),
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if stdout.contains(NOT_FOUND) || stderr.contains(NOT_FOUND) =>
        {
            Ok(RegistryAuth::Anonymous)
        }
        Err(source) => Err(CredentialsError::Unusable { registry: registry.to_owned(), path, source }),
    }
}

/// DOCKER_CONFIG is the directory of the file; ~/.docker otherwise.
fn configuration() -> Option<PathBuf> {
    let directory = match env::var_os("DOCKER_CONFIG") {
        Some(directory) if !directory.is_empty() => PathBuf::from(directory),
        _ => PathBuf::from(env::var_os("HOME").filter(|home| !home.is_empty())?).join(".docker"),
    };
    Some(directory.join("config.json"))
}
