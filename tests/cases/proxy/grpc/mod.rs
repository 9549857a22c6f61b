//! gRPC through both proxies.

mod calls;
mod deadlines;
mod endings;
