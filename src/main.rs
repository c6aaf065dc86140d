//! Runs an AWS Nitro Enclave as the entrypoint of a container.

fn main() {}
