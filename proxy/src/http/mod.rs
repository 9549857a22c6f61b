//! HTTP as both directions need it: [`h1`] is our own, [`h2`] is hyper's.

pub mod answer;
pub mod h1;
pub mod h2;
pub mod told;

/// Largest response head and trailer section, in bytes, on both codecs. Requests' limit is a setting.
pub const MAX_HEAD: usize = 64 * 1024;
/// Bytes that a proxy of ours may add to a head, at most.
pub const MAX_ADDED: u32 = 1024;
/// Most header fields in one head.
pub const MAX_HEADERS: usize = 256;
/// Bytes of one request's body that are kept for a repetition.
pub const MAX_KEPT: usize = 64 * 1024;

/// Version that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0 and HTTP/1.1.
    H1,
    /// HTTP/2, with prior knowledge or by ALPN.
    H2,
}
