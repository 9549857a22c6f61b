//! Remora's per-pod proxy.

pub mod balance;
pub mod discovery;
pub mod redirect;
pub mod tls;
