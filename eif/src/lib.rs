//! Reads, writes, measures and builds Enclave Image Format files.
