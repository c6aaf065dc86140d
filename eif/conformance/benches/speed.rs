//! Building and inspecting an image, beside AWS's crate and beside one pass
//! of SHA-384 over the same bytes, which no builder can do without.
//!
//! `cargo test --manifest-path eif/conformance/Cargo.toml --target-dir target/conformance --bench speed [-- ROUNDS]`
//!
//! Everything is measured in turns, round after round; each ratio is of two
//! measurements of one round, and the median of the rounds counts: whatever
//! else runs on the machine hits both. The gates leave room for cores that
//! are not ours alone; with SPEED_VERDICT set (`make bench`) they are the promises
//! themselves, which need idle ones.

use std::{
    fs::{self, File},
    hint::black_box,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use aws_lc_rs::digest::{Context, SHA256, SHA384, digest};
use eif::{
    Architecture, Image, ImageWriter,
    ramdisk::{Workload, write_agent},
    rootfs::{Limits, Opening, Tree, open_directory, open_oci_layout},
};
use eif_conformance::{Inputs, metadata, oracle_reads};

const MIB: usize = 1 << 20;
const KERNEL: usize = 8 * MIB;
const FIRST_RAMDISK: usize = MIB;
const RAMDISK: usize = 300_000_000;
/// Files of the root filesystem whose contents make as much.
const FILES: usize = 3_000;
const ROUNDS: usize = 3;

/// What is promised on two idle cores, and where the gate is.
struct Promise {
    text: &'static str,
    promised: f64,
    gate: f64,
    /// Whether a smaller value is better.
    at_most: bool,
    values: Vec<f64>,
}

fn main() -> ExitCode {
    // `cargo test` and `cargo bench` pass flags of their own.
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    let inputs = Inputs::new(
        &noise(KERNEL, 1),
        "reboot=k panic=30",
        &[noise(FIRST_RAMDISK, 2), half_noise(RAMDISK)],
        metadata("speed"),
    );
    let rootfs = inputs.path("rootfs");
    make_rootfs(&rootfs);
    let layout = inputs.path("layout");
    make_layout(&rootfs, &layout);

    let strict = std::env::var_os("SPEED_VERDICT").is_some();
    let promise = |text, promised, gate, at_most| {
        let gate = if strict { promised } else { gate };
        Promise { text, promised, gate, at_most, values: Vec::new() }
    };
    let mut promises = [
        promise("build: times faster than EifBuilder", 3.5, 2.4, false),
        promise("build: passes of SHA-384", 1.6, 2.4, true),
        promise("inspect: times faster than EifReader", 2.5, 1.7, false),
        promise("root filesystem to EIF: passes of SHA-384", f64::NAN, f64::NAN, true),
        promise("OCI layout (gzip) to EIF: passes of SHA-384", f64::NAN, f64::NAN, true),
    ];
    // The first round warms caches and allocator, and does not count.
    for round in 0..=rounds {
        let pass = time(|| one_pass(&inputs));
        // Freeing an earlier image's pages is the file system's work, not a builder's.
        for image in ["ours.eif", "theirs.eif"] {
            let _ = std::fs::remove_file(inputs.path(image));
        }
        let (ours, our_image) = timed(|| inputs.ours("ours.eif", None).0);
        let (theirs, their_image) = timed(|| inputs.theirs("theirs.eif", None).0);
        let our_inspect = time(|| drop(black_box(Image::open_measured(&our_image).expect("an image"))));
        let their_inspect = time(|| drop(black_box(oracle_reads(&their_image).expect("an image"))));
        let (from_rootfs, content) = timed(|| pack(&inputs, open_directory(&rootfs).expect("a tree")));
        let from_layout = timed(|| pack(&inputs, open_layout(&layout))).0;
        // These have a pass of their own: their content differs in size.
        let scale = content as f64 / (KERNEL + FIRST_RAMDISK + RAMDISK) as f64;
        println!(
            "{} SHA-384 {pass:.3} s, build {ours:.3} / {theirs:.3} s, inspect {our_inspect:.3} / {their_inspect:.3} s, \
             rootfs {from_rootfs:.3} s, layout {from_layout:.3} s",
            if round == 0 { "warm-up:".to_owned() } else { format!("round {round}:") },
        );
        if round > 0 {
            let ratios = [
                theirs / ours,
                ours / pass,
                their_inspect / our_inspect,
                from_rootfs / (pass * scale),
                from_layout / (pass * scale),
            ];
            promises.iter_mut().zip(ratios).for_each(|(promise, ratio)| promise.values.push(ratio));
        }
    }
    let missed = promises.iter_mut().map(Promise::hold).filter(|holds| !holds).count();
    if missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Promise {
    /// Prints the median, and tells whether it is on the right side of the gate.
    fn hold(&mut self) -> bool {
        self.values.sort_by(f64::total_cmp);
        let median = self.values[self.values.len() / 2];
        let (word, holds) = if self.at_most {
            ("at most", !(median > self.gate))
        } else {
            ("at least", !(median < self.gate))
        };
        if self.gate.is_nan() {
            println!("{:<46} {median:>6.2}", self.text);
        } else {
            println!(
                "{:<46} {median:>6.2}   promised {word} {:.1}, gate {:.1}{}",
                self.text,
                self.promised,
                self.gate,
                if holds { "" } else { "   MISSED" }
            );
        }
        holds
    }
}

fn time(work: impl FnOnce()) -> f64 {
    timed(work).0
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let begun = Instant::now();
    let result = work();
    (begun.elapsed().as_secs_f64(), result)
}

/// Hashes everything that PCR0 covers once, as it is read from its files.
fn one_pass(inputs: &Inputs) {
    let mut context = Context::new(&SHA384);
    let mut buffer = vec![0; 256 << 10];
    for name in ["kernel", "ramdisk0", "ramdisk1"] {
        let mut file = File::open(inputs.path(name)).expect("an input");
        loop {
            match file.read(&mut buffer).expect("an input") {
                0 => break,
                count => context.update(&buffer[..count]),
            }
        }
    }
    black_box(context.finish());
}

/// An image of a root filesystem. Gives the bytes that PCR0 covers.
fn pack(inputs: &Inputs, tree: Tree) -> u64 {
    let path = inputs.path("packed.eif");
    let output = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let mut kernel = File::open(inputs.path("kernel")).expect("a kernel");
    let mut writer = ImageWriter::create(
        output.expect("an output"),
        Architecture::X86_64,
        &mut kernel,
        "",
        &inputs.metadata,
    )
    .expect("an image");
    let agent = inputs.path("ramdisk0");
    writer
        .generate_ramdisk(|ramdisk| {
            let mut file = File::open(&agent).expect("an agent");
            write_agent(&mut file, &agent, &[], ramdisk).expect("a ramdisk");
            Ok::<_, eif::WriteError>(())
        })
        .expect("a ramdisk");
    let workload = Workload::of(tree);
    writer
        .generate_ramdisk(|ramdisk| {
            workload.write(b"{}", ramdisk, &|_| ()).expect("a ramdisk");
            Ok::<_, eif::WriteError>(())
        })
        .expect("a ramdisk");
    let (file, _) = writer.finish().expect("an image");
    file.metadata().expect("an image").len()
}

fn make_rootfs(rootfs: &Path) {
    let all = half_noise(RAMDISK);
    for (index, content) in all.chunks(RAMDISK / FILES).enumerate() {
        let directory = rootfs.join(format!("usr/lib/package-{}", index / 50));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(format!("file-{index}")), content).expect("a file");
    }
}

/// One layer, compressed as registries have them.
fn make_layout(rootfs: &Path, layout: &Path) {
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory");
    let mut plain = tar::Builder::new(Vec::new());
    plain.append_dir_all(".", rootfs).expect("a layer");
    let plain = plain.into_inner().expect("a layer");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(&plain).expect("a layer");
    let gzip = gzip.finish().expect("a layer");
    let hash = |bytes: &[u8]| {
        digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let blob = |kind: &str, bytes: &[u8]| {
        let name = hash(bytes);
        fs::write(layout.join("blobs/sha256").join(&name), bytes).expect("a blob");
        serde_json::json!({"mediaType": kind, "digest": format!("sha256:{name}"), "size": bytes.len()})
    };
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hash(&plain))]},
    });
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let layer = blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let manifest = blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).expect("an index");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a mark");
}

fn open_layout(layout: &Path) -> Tree {
    let spool = tempfile::tempfile().expect("a spool");
    let opening = Opening { architecture: Architecture::X86_64, limits: Limits::default(), spool };
    open_oci_layout(&PathBuf::from(layout), None, opening).expect("a layout").tree
}

/// Bytes that do not compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Half of it does compress.
fn half_noise(len: usize) -> Vec<u8> {
    let mut bytes = noise(len / 2, 3);
    bytes.resize(len, 0);
    bytes
}
