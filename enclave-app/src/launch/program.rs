//! Finds the workload's program and becomes it.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Why the program does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// No such file, in any directory of PATH.
    #[error("program {program:?} is not in the image (looked in {looked_in})")]
    NotFound { program: String, looked_in: String },
    /// A file, and yet ENOENT: what should load it is missing.
    #[error("program {path:?} cannot be loaded: its interpreter or dynamic loader is not in the image")]
    NoLoader { path: String },
    /// A file that the kernel does not execute.
    #[error("cannot execute {path:?}")]
    NotExecutable { path: String, source: io::Error },
}

impl ProgramError {
    /// The code that a shell exits with.
    pub(super) fn code(&self) -> u8 {
        match self {
            ProgramError::NotFound { .. } | ProgramError::NoLoader { .. } => 127,
            ProgramError::NotExecutable { .. } => 126,
        }
    }
}

/// Becomes `argv[0]` with `variables` as its only environment; the last one of
/// a name counts. Ignored signals and the signal mask are the default again.
/// A name without a slash is looked up in the workload's PATH.
pub(super) fn exec(
    argv: &[String],
    variables: &[(String, String)],
) -> Result<std::convert::Infallible, ProgramError> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(ProgramError::NotFound { program: String::new(), looked_in: "nothing".to_owned() });
    };
    let path =
        variables.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    let mut refused = None;
    for candidate in candidates(program, path) {
        let error = Command::new(&candidate)
            .arg0(program)
            .args(arguments)
            .env_clear()
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .exec();
        match error.kind() {
            io::ErrorKind::NotFound if Path::new(&candidate).is_file() => {
                return Err(ProgramError::NoLoader { path: candidate });
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
            // Another directory of PATH may hold one that may be executed.
            _ => refused = refused.or(Some(ProgramError::NotExecutable { path: candidate, source: error })),
        }
    }
    let looked_in = if program.contains('/') { "its root filesystem".to_owned() } else { path.to_owned() };
    Err(refused.unwrap_or(ProgramError::NotFound { program: program.clone(), looked_in }))
}

/// An empty entry of PATH is the working directory. Source: environ(7).
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| format!("{directory}/{program}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(program: &str, path: &str) -> ProgramError {
        let variables = [("PATH".to_owned(), "/unused".to_owned()), ("PATH".to_owned(), path.to_owned())];
        match exec(&[program.to_owned()], &variables) {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    #[test]
    fn a_missing_program_is_127_and_names_where_it_was_looked_for() {
        let error = refused("no-such-program", "/bin:/usr/bin");
        assert_eq!(error.code(), 127);
        assert!(error.to_string().contains("/bin:/usr/bin"), "{error}");
        assert_eq!(refused("/no/such/program", "").code(), 127);
    }

    #[test]
    fn a_file_that_is_not_executable_is_126_and_a_missing_loader_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tool");
        std::fs::write(&file, "#!/no/such/interpreter\n").unwrap();
        let path = directory.path().to_str().unwrap();
        assert_eq!(refused("tool", path).code(), 126);
        assert_eq!(refused("tool", &format!("/no/such/directory:{path}")).code(), 126);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        let error = refused("tool", path);
        assert!(matches!(error, ProgramError::NoLoader { .. }), "{error}");
    }

    #[test]
    fn an_empty_entry_of_the_path_is_the_working_directory() {
        assert_eq!(candidates("tool", "/bin::/sbin"), ["/bin/tool", "./tool", "/sbin/tool"]);
        assert_eq!(candidates("bin/tool", "/bin"), ["bin/tool"]);
    }
}
