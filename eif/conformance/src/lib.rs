//! What the tests and the bench share: inputs of an image, the two builders
//! that make one of them, and signers.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use aws_nitro_enclaves_image_format::{
    defs::EifIdentityInfo,
    utils::{EifBuilder, SignKeyData, eif_reader::EifReader},
};
use eif::{
    Architecture, ImageWriter, Measurements, Metadata,
    signature::{ImageSigner, PrivateKey, SigningCertificate},
};
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    x509::{X509, X509Builder, X509NameBuilder},
};
use sha2::{Digest, Sha384};
use tempfile::TempDir;

/// Registers by name, as the oracle gives them.
pub type Registers = BTreeMap<String, String>;

/// Everything that an image is made of, as files in a directory of their own.
pub struct Inputs {
    pub directory: TempDir,
    pub cmdline: String,
    pub metadata: Metadata,
    pub architecture: Architecture,
    ramdisks: usize,
}

impl Inputs {
    pub fn new(kernel: &[u8], cmdline: &str, ramdisks: &[Vec<u8>], metadata: Metadata) -> Inputs {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("kernel"), kernel).expect("the kernel");
        let inputs = Inputs {
            directory,
            cmdline: cmdline.to_owned(),
            metadata,
            architecture: Architecture::X86_64,
            ramdisks: ramdisks.len(),
        };
        for (index, ramdisk) in ramdisks.iter().enumerate() {
            fs::write(inputs.ramdisk(index), ramdisk).expect("a ramdisk");
        }
        inputs
    }

    /// A few KiB of each.
    pub fn small() -> Inputs {
        Inputs::new(&[7; 5000], "console=ttyS0", &[vec![1; 3000], vec![2; 9000]], metadata("sample"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ramdisk(&self, index: usize) -> PathBuf {
        self.path(&format!("ramdisk{index}"))
    }

    /// What this project makes of them, at `name`.
    pub fn ours(&self, name: &str, signer: Option<&ImageSigner<'_>>) -> (PathBuf, Measurements) {
        let path = self.path(name);
        let output = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let mut kernel = File::open(self.path("kernel")).expect("the kernel");
        let mut writer = ImageWriter::create(
            output.expect("an output"),
            self.architecture,
            &mut kernel,
            &self.cmdline,
            &self.metadata,
        )
        .expect("an image begins");
        for index in 0..self.ramdisks {
            let mut ramdisk = File::open(self.ramdisk(index)).expect("a ramdisk");
            writer.copy_ramdisk(&mut ramdisk).expect("a ramdisk is added");
        }
        let (_, measurements) = writer.finish_with(signer, |_| (), &|_| ()).expect("the image is finished");
        (path, measurements)
    }

    /// What AWS's builder makes of them, at `name`.
    pub fn theirs(&self, name: &str, signer: Option<&Signer>) -> (PathBuf, Registers) {
        let path = self.path(name);
        let mut output = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("an output");
        let flags = if self.architecture == Architecture::Aarch64 { 1 } else { 0 };
        let mut builder = EifBuilder::new(
            &self.path("kernel"),
            self.cmdline.clone(),
            signer.map(Signer::for_oracle),
            Sha384::new(),
            flags,
            identity(&self.metadata),
        );
        for index in 0..self.ramdisks {
            builder.add_ramdisk(&self.ramdisk(index));
        }
        let registers = builder.write_to(&mut output);
        (path, registers)
    }
}

pub fn metadata(name: &str) -> Metadata {
    Metadata {
        image_name: name.to_owned(),
        image_version: "1".to_owned(),
        build: eif::BuildMetadata {
            build_time: "1970-01-01T00:00:00Z".to_owned(),
            build_tool: "conformance".to_owned(),
            build_tool_version: "0".to_owned(),
            operating_system: "Linux".to_owned(),
            kernel_version: "6.1".to_owned(),
        },
        docker_info: serde_json::Value::Null,
        custom: serde_json::Value::Null,
    }
}

/// The oracle's type with the same values.
fn identity(metadata: &Metadata) -> EifIdentityInfo {
    let json = serde_json::to_value(metadata).expect("metadata is JSON");
    serde_json::from_value(json).expect("the oracle takes our field names")
}

/// What the oracle reads: its registers, and whether its checksum was right.
pub fn oracle_reads(path: &Path) -> Result<(EifReader, Registers), String> {
    let mut reader = EifReader::from_eif(path.display().to_string())?;
    let registers = reader.get_measurements()?;
    Ok((reader, registers))
}

/// The registers with the names that the oracle gives them, without the name
/// of the algorithm, which it formats by the type's debug output.
pub fn named(measurements: &Measurements) -> Registers {
    let json = serde_json::to_value(measurements).expect("registers are JSON");
    serde_json::from_value(json).expect("registers are texts by name")
}

/// As [`named`] has them.
pub fn without_algorithm(mut registers: Registers) -> Registers {
    registers.remove("HashAlgorithm");
    registers
}

/// A certificate and its key, made by OpenSSL.
pub struct Signer {
    pub directory: TempDir,
    pub certificate: X509,
    pub key: EcKey<Private>,
}

pub const CURVES: [Nid; 3] = [Nid::X9_62_PRIME256V1, Nid::SECP384R1, Nid::SECP521R1];

impl Signer {
    pub fn new(curve: Nid) -> Signer {
        Signer::named(curve, "signer", 0, 30)
    }

    /// Valid from the first to the second day from now.
    pub fn named(curve: Nid, name: &str, from: i64, until: i64) -> Signer {
        const DAY: i64 = 86_400;
        let group = EcGroup::from_curve_name(curve).expect("a curve");
        let key = EcKey::generate(&group).expect("a key");
        let pkey = PKey::from_ec_key(key.clone()).expect("a key");
        let since = SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs() as i64;
        let day = |days: i64| Asn1Time::from_unix(since + days * DAY - 60).expect("a time");
        let make = || {
            let mut subject = X509NameBuilder::new()?;
            subject.append_entry_by_text("C", "DE")?;
            subject.append_entry_by_text("O", "conformance")?;
            subject.append_entry_by_text("CN", name)?;
            let subject = subject.build();
            let mut builder = X509Builder::new()?;
            builder.set_version(2)?;
            let serial = BigNum::from_u32(7)?.to_asn1_integer()?;
            builder.set_serial_number(&serial)?;
            builder.set_subject_name(&subject)?;
            builder.set_issuer_name(&subject)?;
            builder.set_not_before(&*day(from))?;
            builder.set_not_after(&*day(until))?;
            builder.set_pubkey(&pkey)?;
            builder.sign(&pkey, MessageDigest::sha384())?;
            Ok::<_, openssl::error::ErrorStack>(builder.build())
        };
        let certificate = make().expect("a certificate");
        let directory = tempfile::tempdir().expect("a directory");
        let signer = Signer { directory, certificate, key };
        fs::write(signer.certificate_path(), signer.certificate_pem()).expect("the certificate");
        fs::write(signer.key_path(), signer.key_pem()).expect("the key");
        signer
    }

    pub fn certificate_path(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    pub fn key_path(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    pub fn certificate_pem(&self) -> Vec<u8> {
        self.certificate.to_pem().expect("PEM")
    }

    /// SEC1, as `openssl ecparam -genkey` writes it.
    pub fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem().expect("PEM")
    }

    /// PKCS#8, as `openssl genpkey` writes it.
    pub fn key_pkcs8(&self) -> Vec<u8> {
        let key = PKey::from_ec_key(self.key.clone()).expect("a key");
        key.private_key_to_pem_pkcs8().expect("PEM")
    }

    pub fn for_oracle(&self) -> SignKeyData {
        let key = self.key_path().display().to_string();
        SignKeyData::new(&key, &self.certificate_path()).expect("the oracle reads the files")
    }

    pub fn for_us(&self) -> (SigningCertificate, PrivateKey) {
        let certificate = SigningCertificate::from_pem(self.certificate_pem()).expect("a certificate");
        let key = PrivateKey::from_pem(&self.key_pem(), &certificate).expect("its key");
        (certificate, key)
    }

    /// Lets `sign` use this signer with this project's library.
    pub fn with<T>(&self, sign: impl FnOnce(&ImageSigner<'_>) -> T) -> T {
        let (certificate, key) = self.for_us();
        sign(&ImageSigner { certificate: &certificate, key: &key, now: SystemTime::now() })
    }
}
