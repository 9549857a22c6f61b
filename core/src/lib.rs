//! What all of Remora's programs share, and no I/O beyond the admin server:
//!
//! - [`names`] the one table of annotations, labels, environment variables, ports and defaults;
//! - [`authority`] hosts and ports as applications name them;
//! - [`spiffe`] workload identities, parsed once at the edge;
//! - [`settings`] what the annotations mean: parsed values with errors that name the mend;
//! - [`drain`] the shutdown sequence every server follows;
//! - [`failure`] how a program says why it ends;
//! - [`telemetry`] log set-up with a level that can change at run time;
//! - [`latency`] bounded histograms, one per worker, merged on reading;
//! - [`admin`] the base of every program's admin HTTP server;
//! - [`admission`] the messages between an API server and a webhook.

pub mod admin;
pub mod admission;
pub mod authority;
pub mod drain;
pub mod failure;
pub mod latency;
pub mod names;
pub mod settings;
pub mod spiffe;
pub mod telemetry;
