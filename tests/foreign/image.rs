//! An image of another hand: examples/foreign in one ramdisk.

use std::fs::File;
use std::path::PathBuf;

use eif::cpio::{Entry, Writer};
use eif::{Architecture, ImageWriter, Metadata};

use crate::machine::{self, Node};

const METADATA: &[u8] = br#"{"ImageName": "foreign", "ImageVersion": "1", "BuildMetadata": {"BuildTime": "", "BuildTool": "",
    "BuildToolVersion": "", "OperatingSystem": "", "KernelVersion": ""}, "DockerInfo": null, "CustomMetadata": null}"#;
const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=1 pci=off nomodules";

/// An image of examples/foreign: one ramdisk, no agent, no settings.
pub fn image(node: &Node, silent: bool) -> PathBuf {
    let path = node.scratch().join(format!("foreign-{silent}.eif"));
    let init = std::fs::read(machine::program_path("foreign-init")).unwrap();
    let mut ramdisk = Writer::new(Vec::new());
    let mut files: Vec<(&[u8], &[u8])> = vec![(b"init", &init)];
    if silent {
        files.push((b"silent", b"yes"));
    }
    for (inode, (name, data)) in (1..).zip(files) {
        let size = u32::try_from(data.len()).unwrap();
        let entry = Entry { name, mode: 0o100_755, uid: 0, gid: 0, inode, links: 1, device: (0, 0), size };
        ramdisk.append(&entry, &mut &*data).unwrap();
    }
    let archive = node.scratch().join("foreign.cpio");
    std::fs::write(&archive, ramdisk.finish().unwrap()).unwrap();
    let output = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let mut kernel = File::open(machine::image::kernel()).unwrap();
    let metadata = Metadata::from_json(METADATA).unwrap();
    let mut writer =
        ImageWriter::create(output, Architecture::HOST, &mut kernel, CMDLINE, &metadata).unwrap();
    writer.copy_ramdisk(&mut File::open(&archive).unwrap()).unwrap();
    writer.finish().unwrap();
    path
}
