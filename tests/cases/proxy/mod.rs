//! The data path: client, outbound proxy, mTLS, inbound proxy, application.

mod balance;
mod change;
mod http1;
mod http2;
mod identity;
mod retry;
mod tcp;
