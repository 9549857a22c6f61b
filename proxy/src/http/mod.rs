//! HTTP pieces that both directions share: head hygiene, bodies, upstream connections, servers.

pub mod answer;
pub mod body;
pub mod headers;
pub mod pool;
pub mod replay;
pub mod server;
pub mod upgrade;

/// Largest request or response head, in bytes, on both codecs.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most header fields in one head.
pub const MAX_HEADERS: usize = 256;

/// Version that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0 and HTTP/1.1.
    H1,
    /// HTTP/2, with prior knowledge or by ALPN.
    H2,
}
