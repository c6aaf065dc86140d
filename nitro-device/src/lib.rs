//! The Nitro Enclaves device, huge pages and the Nitro Security Module.
