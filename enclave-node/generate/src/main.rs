//! Translates kubelet's device plugin API into Rust, without protoc: the
//! messages, the client of `Registration`, the server of `DevicePlugin`.

use std::fs;
use std::path::Path;

/// Each client and each server begins with this.
const SECTION: &str = "\n/// Generated ";
const WANTED: [&str; 2] = ["pub mod registration_client", "pub mod device_plugin_server"];

fn main() -> anyhow::Result<()> {
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/device_plugin/api");
    let files = protox::compile(["v1beta1.proto"], [&api])?;
    tonic_prost_build::configure().build_transport(false).btree_map(".").out_dir(&api).compile_fds(files)?;
    let file = api.join("v1beta1.rs");
    let code = fs::read_to_string(&file)?;
    let (messages, services) = code.split_once(SECTION).unwrap_or((&code, ""));
    let mut kept = messages.to_owned();
    for section in services.split(SECTION) {
        if WANTED.iter().any(|wanted| section.contains(wanted)) {
            kept = kept + SECTION + section;
        }
    }
    fs::write(&file, kept)?;
    Ok(())
}
