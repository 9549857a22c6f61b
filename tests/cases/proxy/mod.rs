//! The data path: client, outbound proxy, mTLS, inbound proxy, application.

mod http1;
