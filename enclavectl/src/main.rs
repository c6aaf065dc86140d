//! Builds, inspects and verifies enclave images and attestation documents.

mod verify;

fn main() {}
