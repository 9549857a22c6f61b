//! Remora's per-pod proxy.
//!
//! Floors, each importing only from those before it: [`error`], [`metrics`], [`config`] ←
//! [`balance`] (decisions, pure) ← [`net`] (sockets), [`tls`] (identity), [`discovery`] (what the
//! control plane tells), [`route`] (what it tells of single requests) ← [`http`] (codec-level pieces)
//! ← [`sight`] (what happened to requests), [`shared`] ← [`outbound`], [`inbound`] (the two paths)
//! ← [`redirect`], [`probe`], [`admin`], [`runtime`], [`ready_wait`], [`app`] ← [`program`] (the command line).

pub mod admin;
pub mod app;
pub mod balance;
pub mod collect;
pub mod config;
pub mod discovery;
pub mod error;
pub mod fields;
pub mod hosts;
pub mod http;
pub mod inbound;
pub mod metrics;
pub mod net;
pub mod outbound;
pub mod probe;
pub mod program;
pub mod ready_wait;
pub mod redirect;
pub mod route;
pub mod runtime;
pub mod shared;
pub mod sight;
pub mod tls;
