//! HTTP/1.x through both proxies, byte for byte.

mod bodies;
mod connections;
mod fields;
mod interim;
mod refused;
mod upgrade;
mod versions;
