//! An image's configuration: how it wants to be run (OCI image specification,
//! config.md; Docker's has the same fields).

use serde::Deserialize;

use super::Digest;

/// How a container image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunConfig {
    /// ENTRYPOINT. The program, when there is one.
    pub entrypoint: Vec<String>,
    /// CMD. Arguments of the entrypoint, or the program and its arguments.
    pub cmd: Vec<String>,
    /// ENV, as `NAME=value`, in the image's order.
    pub env: Vec<String>,
    /// USER as the image has it; empty when it names none.
    pub user: String,
    /// WORKDIR as the image has it; empty when it names none.
    pub workdir: String,
}

/// The file.
#[derive(Deserialize)]
pub(crate) struct Config {
    pub(crate) architecture: String,
    pub(crate) os: String,
    config: Option<Execution>,
    pub(crate) rootfs: RootFs,
}

/// Docker writes null for what is not set.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    pub(crate) fn run(&self) -> RunConfig {
        let Execution { entrypoint, cmd, env, user, working_dir } = match &self.config {
            Some(config) => config,
            None => return RunConfig::default(),
        };
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        RunConfig {
            entrypoint: list(entrypoint),
            cmd: list(cmd),
            env: list(env),
            user: text(user),
            workdir: text(working_dir),
        }
    }
}
