//! Carries bytes between a TCP and a vsock connection.
