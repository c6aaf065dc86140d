//! Parses and verifies AWS Nitro Enclaves attestation documents.
