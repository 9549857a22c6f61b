//! The data path: client, outbound proxy, mTLS, inbound proxy, application.

#![allow(clippy::unwrap_used, reason = "clippy sees only the tests themselves as tests")]

mod access_log;
mod balance;
mod change;
mod decisions;
mod discovery;
mod figures;
mod grpc;
mod http1;
mod http2;
mod identity;
mod leak;
mod loss;
mod machine;
mod overload;
mod protocol;
mod replay;
mod retry;
mod sharing;
mod tcp;
mod timeouts;
mod topology;
mod tracing;
