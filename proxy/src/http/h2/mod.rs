//! HTTP/2, and gRPC on it: hyper's codec, with bodies that can be sent again and whose end is told,
//! and one upstream connection per endpoint that all streams of a worker share.

pub mod body;
pub mod guard;
pub mod headers;
pub mod pool;
pub mod replay;
pub mod server;
pub mod upgrade;
