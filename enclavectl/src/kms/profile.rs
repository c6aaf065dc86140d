//! Static keys of a profile in AWS's shared files (`~/.aws/credentials`,
//! `~/.aws/config`).

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use super::{credentials::Credentials, variable};

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no profile {name:?} in ~/.aws/credentials or ~/.aws/config")]
    Missing { name: String },
    #[error(
        "profile {name:?} uses {setting}, which needs AWS's own program: export its credentials first \
         (aws configure export-credentials --profile {name} --format env)"
    )]
    Indirect { name: String, setting: &'static str },
    #[error("profile {name:?} has {present} without {missing}")]
    Half { name: String, present: &'static str, missing: &'static str },
}

type Settings = BTreeMap<String, String>;

/// The keys of AWS_PROFILE, or of `default` if there is one; nothing when no
/// profile is meant.
pub(super) fn credentials() -> Result<Option<Credentials>, ProfileError> {
    let wanted = variable("AWS_PROFILE");
    let name = wanted.clone().unwrap_or_else(|| "default".to_owned());
    let mut settings = read("AWS_CONFIG_FILE", "config", &[&format!("profile {name}"), &name])?;
    // The credentials file wins.
    settings.extend(read("AWS_SHARED_CREDENTIALS_FILE", "credentials", &[&name])?);
    if settings.is_empty() && wanted.is_some() {
        return Err(ProfileError::Missing { name });
    }
    of(name, &settings)
}

fn of(name: String, settings: &Settings) -> Result<Option<Credentials>, ProfileError> {
    const INDIRECT: [&str; 5] =
        ["role_arn", "sso_session", "sso_start_url", "credential_process", "login_session"];
    const ACCESS: &str = "aws_access_key_id";
    const SECRET: &str = "aws_secret_access_key";
    match (settings.get(ACCESS), settings.get(SECRET)) {
        (Some(access), Some(secret)) => Ok(Some(Credentials {
            access_key: access.clone(),
            secret_key: secret.clone(),
            token: settings.get("aws_session_token").cloned(),
        })),
        (Some(_), None) => Err(ProfileError::Half { name, present: ACCESS, missing: SECRET }),
        (None, Some(_)) => Err(ProfileError::Half { name, present: SECRET, missing: ACCESS }),
        (None, None) => match INDIRECT.into_iter().find(|setting| settings.contains_key(*setting)) {
            Some(setting) => Err(ProfileError::Indirect { name, setting }),
            // One that has a region only leaves the keys to other sources.
            None => Ok(None),
        },
    }
}

/// The first of `sections` in the file that `name_of_path` names.
fn read(name_of_path: &str, file: &str, sections: &[&str]) -> Result<Settings, ProfileError> {
    let path = match (variable(name_of_path), variable("HOME")) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(home)) => PathBuf::from(home).join(".aws").join(file),
        (None, None) => return Ok(Settings::new()),
    };
    match fs::read_to_string(&path) {
        Ok(text) => Ok(parse(&text, sections)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Settings::new()),
        Err(source) => Err(ProfileError::Read { path, source }),
    }
}

fn parse(text: &str, sections: &[&str]) -> Settings {
    let mut settings = Settings::new();
    let mut inside = false;
    for line in text.lines() {
        // What is indented belongs to the setting before it.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.split(']').next().unwrap_or_default().trim();
            inside = sections.contains(&name);
        } else if let Some((name, value)) = line.split_once('=').filter(|_| inside) {
            settings.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_without_its_neighbours() {
        let text = "[default]\naws_access_key_id = A\n\n[profile images]\n# no\naws_access_key_id=B\n\
                    AWS_SECRET_ACCESS_KEY = c=d\ns3 =\n  region = x\n[other]\naws_session_token = T\n";
        let settings = parse(text, &["profile images", "images"]);
        let found: Vec<_> = settings.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        assert_eq!(found, ["aws_access_key_id:B", "aws_secret_access_key:c=d", "s3:"]);
    }

    #[test]
    fn what_needs_another_program_is_named() {
        let settings = Settings::from([("sso_session".to_owned(), "work".to_owned())]);
        let error = of("images".to_owned(), &settings).err().unwrap().to_string();
        assert!(error.contains("uses sso_session") && error.contains("export-credentials"), "{error}");
        let settings = Settings::from([("region".to_owned(), "eu-central-1".to_owned())]);
        assert!(of("images".to_owned(), &settings).unwrap().is_none());
        let settings = Settings::from([("aws_access_key_id".to_owned(), "A".to_owned())]);
        assert!(of("images".to_owned(), &settings).is_err());
    }
}
