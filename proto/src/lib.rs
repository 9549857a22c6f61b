//! The wire contract between Remora's proxies and its control plane: generated code only.
//!
//! The documents are `remora/v1/discovery.proto` and `remora/v1/identity.proto`; every field is
//! described there, and those descriptions are the doc comments of the types here.

/// Version 1 of the contract. Fields are only ever added; a meaning never changes.
#[expect(clippy::large_enum_variant, reason = "generated; one message at a time is alive")]
pub mod v1 {
    tonic::include_proto!("remora.v1");
}
