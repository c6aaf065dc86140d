//! The agent: PID 1 inside the enclave.

fn main() {}
