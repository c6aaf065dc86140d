//! `enclavectl verify`.
