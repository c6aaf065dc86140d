//! A small HTTP server to run in an enclave.

fn main() {}
