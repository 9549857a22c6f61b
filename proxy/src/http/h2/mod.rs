//! HTTP/2, and gRPC on it: hyper's codec, with bodies that can be sent again and whose end is told,
//! and one upstream connection per endpoint that all streams of a worker share.

pub mod body;
mod edit;
pub mod guard;
pub mod headers;
pub mod pool;
pub mod replay;
pub mod request;
pub mod server;
pub mod upgrade;

/// What the codec takes for a head, in bytes with 32 more for each field (RFC 9113 §6.5.2). A request
/// over its own limit is answered by us, with the reason; one over this, or over twice its limit where
/// that is more, by the codec, which knows none.
const MAX_HEADER_LIST: u32 = 128 * 1024;
